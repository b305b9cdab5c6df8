"""Shared by all tests: quiet tools, and workspaces small enough for minutes."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from genrec.config import Params
from genrec.environment import QUIET
from genrec.workspace import params_yaml
from tests import commands
from tests.browser import chromium
from tests.postgres import server

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
os.environ["OMP_NUM_THREADS"] = "1"  # the tests run on two workers; more threads than cores are slower than one

TINY = {
    "data": {"simulated": {"users": 220, "items": 64, "mean_length": 14}},
    "split": {"holdout_users": 0.15},
    "sid": {"codes": 8, "iterations": 5},
    "architecture": {"hidden": 48, "layers": 2, "heads": 2, "feed_forward": 96, "window": 20},
    "backbone": {"visits": 2000, "learning_rate": 0.005},
    "train": {"rank": 16, "alpha": 32, "epochs": 15, "learning_rate": 0.01, "batch_tokens": 2000},
    "decoding": {"beam": 20},
    "unlearning": {"tracer": {"steps": 40, "phi_learning_rate": 0.2, "repair_steps": 10}},
    "gates": {"bootstrap": 500},
}


def genrec(home: Path, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run the real command line in the workspace `home`, in a process of its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {**os.environ, "PATH": path, "GENREC_HOME": str(home), **environment}
    result = commands.run(list(arguments), home, own)
    assert not check or result.returncode == 0, f"{arguments}: {result.stdout}\n{result.stderr}"
    return result


def make_workspace(home: Path) -> Path:
    """A workspace with tiny parameters and the simulated shop fetched."""
    genrec(home.parent, "init", str(home))
    set_params(home)
    genrec(home, "data", "fetch", "simulated")
    return home


def set_params(home: Path, **sections) -> None:
    """Write the tiny parameters, with some sections replaced."""
    (home / "params.yaml").write_text(params_yaml(Params.model_validate({**TINY, **sections})))


def copied(source: Path, home: Path) -> None:
    """A workspace of its own: MLflow writes the absolute paths of artefacts into its database."""
    shutil.copytree(source, home)
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                new = f'"{column}" = replace("{column}", :old, :new)'
                database.execute(
                    f'UPDATE "{table}" SET {new} WHERE instr("{column}", :old)',
                    {"old": f"{source}/", "new": f"{home}/"},
                )


@pytest.fixture(autouse=True, scope="module")
def own_environment():
    """What commands set for a workspace in this process ends with the module."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of this session. `postgres.database(...)` makes a database and returns its URL."""
    with server() as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of this module: while it is there an event loop runs, in which Prefect waits for nothing."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Iterator[Path]:
    """A workspace with a base model as champion. Tests that change it must work on a copy (see `copied`).

    The first of pytest's processes makes it; each has a copy of it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made = shared / "made" / "shop"
    with (shared / "made.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made.parent / "done").exists():
            made.parent.mkdir()
            genrec(make_workspace(made), "train")
            (made.parent / "done").touch()
    copied(made, home := tmp_path_factory.mktemp("trained") / "shop")
    yield home
    assert (home / "data.dvc").read_bytes() == (made / "data.dvc").read_bytes(), "erased in what all share"
