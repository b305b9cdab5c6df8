"""A newcomer's way through docs/tutorial.md, from a clean clone: own tables, init, check, train, forget, a night, the
certificate, and the way back that is refused.

The clone is of this repository at HEAD with the changes of the working tree, and its code is what runs. What `make
install` would install is taken from the environment of the tests: the interpreter through PATH, the clone's packages
through PYTHONPATH. The tables are those of the simulated shop, as plain CSV; the model is smaller than the tutorial's.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from genrec.config import Params
from genrec.data.simulator import simulate
from genrec.data.tables import write_tables
from genrec.requests.certificates import verify
from genrec.workspace import params_yaml
from tests.conftest import TINY, genrec
from tests.snippets import ROOT, blocks

GENREC = f'genrec() {{ {sys.executable} -m genrec.cli "$@"; }}\n'
SMALL = {name: TINY[name] for name in ("split", "sid", "decoding", "gates")} | {
    "architecture": TINY["architecture"],
    "backbone": {"visits": 700, "learning_rate": 0.005},
    "train": {**TINY["train"], "epochs": 8},
}
CPU_S = 600
"""Of all commands together, so at most ten minutes on any machine like those it was measured on."""


def git(*arguments: str, folder: Path, **options) -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, **options).stdout


def clone(folder: Path) -> None:
    """This repository at HEAD, and on top of it what the working tree has changed and added."""
    git("clone", "--quiet", str(ROOT), str(folder), folder=ROOT)
    if changes := git("diff", "--binary", "HEAD", folder=ROOT):
        git("apply", "--whitespace=nowarn", folder=folder, input=changes)
    for name in git("ls-files", "--others", "--exclude-standard", "-z", folder=ROOT).decode().split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())


def shell(text: str, folder: Path, code: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(code), "GENREC_HOME": ""}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", GENREC + text], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}"
    return done.stdout


def shrink(file: Path) -> dict:
    """A smaller model in `params.yaml`, with all that `init --from` saw in the tables; what it was before."""
    found = yaml.safe_load(file.read_text())
    small = {**SMALL, "data": found["data"], "architecture": {**SMALL["architecture"], "window": 20}}
    file.write_text(params_yaml(Params.model_validate({**found, **small})))
    return found


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The workspace at the end, the parameters that `init` wrote, what each step printed, and the CPU seconds."""
    root = tmp_path_factory.mktemp("newcomer")
    clone(root / "genrec")
    (root / "my-tables").mkdir()
    params = Params.model_validate(TINY)
    write_tables(simulate(params.data.simulated, params.seed), root / "my-tables")
    steps = [block.text for block in blocks(root / "genrec" / "docs" / "tutorial.md") if block.language == "bash"]
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    where = shell(f"{sys.executable} -c 'import genrec, flows; print(genrec.__file__)'", root, root / "genrec")
    assert where.strip() == str(root / "genrec" / "genrec" / "__init__.py")
    assert steps[0] == "genrec init shop --from my-tables\ncd shop\n"
    printed = [shell(steps[0], root, root / "genrec")]
    written = shrink(root / "shop" / "params.yaml")
    printed += [shell(step, root / "shop", root / "genrec") for step in steps[1:]]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return root / "shop", written, printed, sum(ended[:2]) - sum(began[:2])


def test_the_walk_is_over_within_ten_minutes(walked):
    assert walked[3] < CPU_S


def test_init_wrote_parameters_for_these_tables_and_names_the_next_commands(walked):
    _, written, (first, second, *_), _ = walked
    assert (written["data"]["rating_min"], written["data"]["rating_max"]) == (1.0, 5.0)
    assert (written["data"]["k_core"], written["sid"]["codes"]) == (5, "auto")
    assert 20 < written["architecture"]["window"] < 32
    assert "  cd shop && genrec data check ../my-tables\n" in first
    assert "  genrec data fetch tables --from ../my-tables\n  genrec train\n" in first
    assert "rows: 3191" in second


def test_the_certificate_holds_and_a_changed_one_does_not(walked, tmp_path):
    home, _, printed, _ = walked
    (path,) = (home / "reports" / "certificates").glob("*.json")
    checked = verify(path)
    assert checked.ok
    assert f"request_id: {checked.request_id}" in printed[-2]
    assert printed[-2].endswith("ok: True\n")
    assert json.loads(path.read_text())["method"] == "retrain"
    (changed := tmp_path / path.name).write_text(path.read_text().replace('"retrain"', '"tracer"'))
    refused = genrec(home, "certificate", "verify", str(changed), check=False)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"RequestError: {path.name} is not sound: The content does not match its hash")
    assert "Ask the issuer for the original" in line


def test_the_way_back_is_refused_with_the_remedy(walked):
    home, _, printed, _ = walked
    refusal, code = printed[-1].splitlines()
    assert code == "refused with exit code 1"
    assert refusal.startswith("RegistryError: Version 1 is older than 1 fulfilled requests (r-")
    assert "genrec models rollback 1 --reapply" in refusal
    versions = json.loads(genrec(home, "models", "list", "--json").stdout)
    assert [v["aliases"] for v in versions] == [["challenger", "champion"], ["previous"]]


def test_the_person_of_the_tutorial_is_gone(walked):
    home, _, printed, _ = walked
    assert "u00000-0642" not in (home / "data" / "interactions.csv").read_text()
    assert "u00000-0642" not in "".join(printed)
    (request,) = json.loads(genrec(home, "requests", "list", "--json").stdout)
    assert (request["state"], request["verified_by"], request["verified_how"]) == ("fulfilled", "desk", "signed in")
