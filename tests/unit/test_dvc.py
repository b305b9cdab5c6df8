"""DVC as the nights call it, on a real repository: what another command holds is waited for, what fails is named."""

import subprocess
import sys
import time

import pytest
import yaml

from genrec.config import Settings
from genrec.data.version import data_version
from genrec.errors import DataError
from tasks.data import dvc, push

HOLD = "import time; from dvc.repo import Repo\nwith Repo('.').lock: open('held', 'w').close(); time.sleep(4)"
STAGE = "stages: {read: {cmd: 'touch held && sleep 4', deps: [data]}}"
PREPARE = "stages: {prepare: {cmd: 'cp -r data prepared && touch prepared/b', deps: [data], outs: [prepared]}}"


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


def test_a_data_version_is_sent_where_there_is_a_remote_and_after_an_outage_again(workspace, monkeypatch):
    store, pin = workspace.root / "store", data_version(workspace.data_pin)
    (workspace.root / "dvc.yaml").write_text(PREPARE)
    dvc(workspace, "repro", "prepare")
    prepared = yaml.safe_load((workspace.root / "dvc.lock").read_text())["stages"]["prepare"]["outs"][0]["md5"]
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        push(workspace)  # nobody is asked where there is no remote
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    remote(workspace, "s3://nowhere/store", endpointurl="http://me:secret@127.0.0.1:1", connect_timeout=1)
    with pytest.raises(DataError, match=f"data version {pin}: .*dvc push.*the next purge try again") as raised:
        push(workspace)
    assert "secret" not in str(raised.value)
    remote(workspace, str(store))
    for _ in range(2):
        push(workspace)
        sent = {path.parent.name + path.name for path in store.rglob("*.dir")}
        assert sent == {pin, prepared}


def remote(workspace, url, **options):
    said = "".join(f"    {name} = {value}\n" for name, value in {"url": url, **options}.items())
    (workspace.root / ".dvc" / "config").write_text(
        f"[core]\n    no_scm = True\n    remote = store\n['remote \"store\"']\n{said}"
    )
