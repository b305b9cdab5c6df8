"""The tutorial, command by command, on tables of the simulated shop and tiny parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genrec.config import Params
from genrec.data.simulator import simulate
from genrec.data.tables import write_tables
from genrec.requests.certificates import verify
from tests.conftest import TINY, genrec, set_params
from tests.snippets import ROOT, blocks

GENREC = f'genrec() {{ {sys.executable} -m genrec.cli "$@"; }}\n'


def shell(text: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GENREC_HOME": ""}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", GENREC + text], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> tuple[Path, str]:
    """The workspace at the end of the tutorial, and everything that was printed."""
    root = tmp_path_factory.mktemp("tutorial")
    (root / "my-tables").mkdir()
    params = Params.model_validate(TINY)
    write_tables(simulate(params.data.simulated, params.seed), root / "my-tables")
    steps = [block for block in blocks(ROOT / "docs" / "tutorial.md") if block.language == "bash"]
    assert steps[0].text == "genrec init shop\ncd shop\n"
    printed = shell(steps[0].text, root)
    set_params(root / "shop", backbone={"visits": 700, "learning_rate": 0.005}, train={**TINY["train"], "epochs": 8})
    for step in steps[1:]:
        printed += shell(step.text, root / "shop")
    return root / "shop", printed


def test_the_tutorial_ends_in_a_certificate_that_holds(shop):
    home, printed = shop
    (path,) = (home / "reports" / "certificates").glob("*.json")
    checked = verify(path)
    assert checked.ok
    assert printed.endswith("ok: True\n")
    assert f"request_id: {checked.request_id}" in printed
    assert json.loads(path.read_text())["method"] == "retrain"


def test_the_person_of_the_tutorial_is_gone(shop):
    home, printed = shop
    assert "u00000-0642" not in (home / "data" / "interactions.csv").read_text()
    assert "u00000-0642" not in printed
    (request,) = json.loads(genrec(home, "requests", "list", "--json").stdout)
    assert (request["state"], request["verified_by"], request["verified_how"]) == ("fulfilled", "desk", "signed in")
