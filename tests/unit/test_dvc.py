"""DVC as the nights call it, on a real repository: what another command holds is waited for, what fails is named."""

import subprocess
import sys
import time

import pytest

from genrec.config import Settings
from genrec.errors import DataError
from tasks.data import dvc

HOLD = "import time; from dvc.repo import Repo\nwith Repo('.').lock: open('held', 'w').close(); time.sleep(4)"
STAGE = "stages: {read: {cmd: 'touch held && sleep 4', deps: [data]}}"


@pytest.fixture
def workspace(tmp_path):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    workspace = Settings(home=tmp_path).workspace
    workspace.data.mkdir()
    (workspace.data / "a.csv").write_text("a")
    (tmp_path / "dvc.yaml").write_text(STAGE)
    dvc(workspace, "add", "data")
    return workspace


@pytest.mark.parametrize("other", [("-c", HOLD), ("-m", "dvc", "repro", "read")], ids=["the repository", "a path"])
def test_what_another_command_holds_is_waited_for(workspace, other):
    (workspace.data / "b.csv").write_text("b")
    with subprocess.Popen([sys.executable, *other], cwd=workspace.root, stdout=subprocess.DEVNULL) as holder:
        while not (workspace.root / "held").exists():
            time.sleep(0.05)
        dvc(workspace, "add", "data")
        assert holder.wait() == 0
    assert "nfiles: 2" in workspace.data_pin.read_text()


def test_a_failure_says_what_dvc_said(workspace):
    with pytest.raises(DataError, match=r"`dvc add nothing` failed \(1\): .*nothing"):
        dvc(workspace, "add", "nothing")
