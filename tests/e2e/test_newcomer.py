"""A newcomer's way through docs/tutorial.md, from a clean clone: own tables, init, check, train, forget, a night, its
signed certificate, and the way back that is refused.

The clone is of this repository at HEAD with the changes of the working tree, and its code is what runs. What `make
install` would install is taken from the environment of the tests: the interpreter through PATH, the clone's packages
through PYTHONPATH. The tables are those of the simulated shop, as plain CSV; the model is smaller than the tutorial's.
"""

import json
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from genrec.config import Params
from genrec.data.simulator import simulate
from genrec.data.tables import write_tables
from genrec.requests.certificates import verify
from genrec.workspace import params_yaml
from tests.clone import clone
from tests.conftest import TINY, genrec
from tests.servers import BIN
from tests.snippets import runnable
from tests.terminal import Terminal

SMALL = {name: TINY[name] for name in ("split", "sid", "decoding", "gates")} | {
    "architecture": TINY["architecture"],
    "backbone": {"visits": 700, "learning_rate": 0.005},
    "train": {**TINY["train"], "epochs": 8},
}
LIMIT_S = 600


@dataclass(frozen=True)
class Walk:
    """The workspace at the end, the parameters that `init` wrote, what each step printed, and what all of them took."""

    home: Path
    written: dict
    printed: list[str]
    wall_s: float
    cpu_s: float


def shrink(file: Path) -> dict:
    """A smaller model in `params.yaml`, with all that `init --from` saw in the tables; what it was before."""
    found = yaml.safe_load(file.read_text())
    small = {**SMALL, "data": found["data"], "architecture": {**SMALL["architecture"], "window": 20}}
    file.write_text(params_yaml(Params.model_validate({**found, **small})))
    return found


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    root = tmp_path_factory.mktemp("newcomer")
    clone(root / "genrec")
    (root / "my-tables").mkdir()
    params = Params.model_validate(TINY)
    write_tables(simulate(params.data.simulated, params.seed), root / "my-tables")
    first, *steps = runnable(root / "genrec" / "docs" / "tutorial.md")
    terminal = Terminal(root, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=str(root / "genrec"))
    where = terminal.run("python -c 'import genrec, flows; print(genrec.__file__)'")
    assert where.strip() == str(root / "genrec" / "genrec" / "__init__.py")
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = [terminal.run(first)]
    written = shrink(root / "shop" / "params.yaml")
    printed += [terminal.run(step) for step in steps]
    wall_s, ended = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert terminal.folder == root / "shop"
    return Walk(root / "shop", written, printed, wall_s, sum(ended[:2]) - sum(cpu[:2]))


def test_the_walk_is_over_within_ten_minutes(walked):
    assert walked.wall_s < LIMIT_S
    assert walked.cpu_s < LIMIT_S


def test_init_wrote_parameters_for_these_tables_and_names_the_next_commands(walked):
    written, (first, second, *_) = walked.written, walked.printed
    assert (written["data"]["rating_min"], written["data"]["rating_max"]) == (1.0, 5.0)
    assert (written["data"]["k_core"], written["sid"]["codes"]) == (5, "auto")
    assert 20 < written["architecture"]["window"] < 32
    assert "  cd shop && genrec data check ../my-tables\n" in first
    assert "  genrec data fetch tables --from ../my-tables\n  genrec train\n" in first
    assert "rows: 3191" in second


def test_the_certificate_holds_and_a_changed_one_does_not(walked, tmp_path):
    home, printed = walked.home, walked.printed
    (path,) = (home / "reports" / "certificates").glob("*.json")
    checked = verify(path)
    assert checked.ok
    assert f"request_id: {checked.request_id}" in printed[-2]
    assert printed[-2].endswith("ok: True\n")
    assert "signature: valid\nsigner_known: True\n" in printed[-2]
    assert checked.signature == "valid"
    assert json.loads(path.read_text())["method"] == "retrain"
    (changed := tmp_path / path.name).write_text(path.read_text().replace('"retrain"', '"tracer"'))
    refused = genrec(home, "certificate", "verify", str(changed), check=False)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"RequestError: {path.name} is not sound: The content does not match its hash")
    assert "Ask the issuer for the original" in line


def test_the_way_back_is_refused_with_the_remedy(walked):
    home, printed = walked.home, walked.printed
    refusal, code = printed[-1].splitlines()
    assert code == "refused with exit code 1"
    assert refusal.startswith("RegistryError: Version 1 is older than 1 fulfilled requests (r-")
    assert "genrec models rollback 1 --reapply" in refusal
    versions = json.loads(genrec(home, "models", "list", "--json").stdout)
    assert [v["aliases"] for v in versions] == [["challenger", "champion"], ["previous"]]


def test_the_person_of_the_tutorial_is_gone(walked):
    home, printed = walked.home, walked.printed
    assert "u00000-0642" not in (home / "data" / "interactions.csv").read_text()
    assert "u00000-0642" not in "".join(printed)
    (request,) = json.loads(genrec(home, "requests", "list", "--json").stdout)
    assert (request["state"], request["verified_by"], request["verified_how"]) == ("fulfilled", "desk", "signed in")
