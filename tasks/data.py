"""Data tasks: DVC commands in the workspace, erasure, validation."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from prefect import get_run_logger, task
from prefect.runtime import flow_run

from genrec import night as steps
from genrec import pipeline
from genrec.bars import QUIET
from genrec.config import Workspace
from genrec.data.sources import FetchReport, fetch
from genrec.data.version import data_version
from genrec.discreet import discreet
from genrec.errors import DataError
from genrec.requests.store import open_ledger
from genrec.terminal import note
from tasks.gpu import on_gpu
from tasks.options import LONG, SAFE

STAGE_ERROR = re.compile(r"[A-Z]\w+(Error|Failed): ")
"""The one line that a stage of genrec ends with when it fails."""
DVC_TRIES = 20  # seven minutes in all: the DVC command of a night that was killed goes on without it
DVC_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
"""What DVC says while another command holds the repository, or a path it reads or writes."""
PINNED = ("data.dvc", "prepare")
"""What a data version is made of: the raw tables' pin and the stage that prepares them."""


def dvc(workspace: Workspace, *arguments: str, quiet: bool = True) -> None:
    """Run DVC in the workspace, in its own process group that dies with us; a busy lock is tried again.

    quiet: what it prints, and the bars of its stages, are not shown; as with --quiet. Raises DataError with the error
    of the stage that failed, or the last line DVC printed.
    """
    quiet = quiet or bool(os.environ.get(QUIET))
    command = [sys.executable, "-m", "dvc", *arguments]  # its --quiet would hide errors too
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "GENREC_HOME": str(workspace.root)} | ({QUIET: "1"} if quiet else {})
    for attempt in range(DVC_TRIES):
        process = subprocess.Popen(
            command, cwd=workspace.root, env=environment, start_new_session=True,
            stdout=subprocess.PIPE if quiet else sys.stderr, stderr=subprocess.PIPE if quiet else None, text=True,
        )  # fmt: skip
        try:
            out, err = process.communicate()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == 0:
            return
        said = f"{out or ''}{err or ''}".strip()
        if not any(busy in said for busy in DVC_BUSY):
            break
        time.sleep(2.0 * (attempt + 1))
    lines = said.splitlines()
    told = (line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))
    own = [line for line in lines if STAGE_ERROR.match(line)] or list(told) or lines[-1:]
    raise DataError(
        f"`dvc {' '.join(arguments)}` failed ({process.returncode}): {own[-1] if own else 'see its output above'}"
    )


def fetch_and_pin(workspace: Workspace, source: str, source_dir: Path | None) -> FetchReport:
    """Bring a source into data/ as canonical tables and pin it with DVC (data.dvc)."""
    params = workspace.params()
    report = fetch(source, workspace.data, source_dir=source_dir, params=params.data, seed=params.seed)
    dvc(workspace, "add", "data")
    return report


@task(**LONG)
@discreet
def reproduce_base(workspace: Workspace, force: bool = False) -> str:
    """`dvc repro`: rebuild what is out of date up to the evaluated base model. Returns the data version."""
    if not on_gpu(workspace, "reproduce_base", str(flow_run.id), force=force):
        dvc(workspace, "repro", *(["--force"] if force else []), quiet=False)
    return data_version(workspace.data_pin)


@task(**LONG)
@discreet
def erase_from_data(workspace: Workspace, batch_id: str) -> dict:
    """Seal and erase the batch's rows, pin the new data version, prepare and validate it through DVC.

    Bad data raises ValidationFailed or DataError here, before any model is touched.
    """
    night = steps.open_night(workspace, batch_id)
    facts = steps.erasure_facts(steps.erase_batch(night))
    dvc(workspace, "add", "data")
    began, outcome = time.time(), workspace.artefacts / "validation.json"
    try:
        dvc(workspace, "repro", "prepare", "validate")
    except DataError:
        if outcome.exists() and outcome.stat().st_mtime >= began:  # else it is an earlier night's
            told = {"validation": _validation(outcome)}
            open_ledger(workspace).set_stage(batch_id, "data refused", told, now=datetime.now(UTC))
        raise
    return {**facts, "data_version": data_version(workspace.data_pin), "validation": _validation(outcome)}


def _validation(path: Path) -> dict:
    """What the report tells of a validation: without the rows that broke an expectation."""
    results = json.loads(path.read_text())["results"]
    told = [{name: value for name, value in check.items() if name != "examples"} for check in results]
    failed = sum(not check["success"] for check in told)
    return {"success": failed == 0, "checks": len(told), "failed": failed, "results": told}


def push(workspace: Workspace) -> None:
    """Send the current data version to DVC's default remote; nothing where there is none. Raises DataError."""
    from dvc.config import Config

    if not workspace.data_pin.exists() or not Config(str(workspace.root / ".dvc"))["core"].get("remote"):
        return
    try:
        dvc(workspace, "push", *PINNED)
    except DataError as error:
        cause = re.sub(r"//[^/@\s]+@", "//", str(error)).rstrip(".")  # the remote's URL may hold a password
        raise DataError(
            f"The DVC remote did not take data version {data_version(workspace.data_pin)}: {cause}. See dvc remote "
            "list, then dvc push; the next night and the next purge try again."
        ) from error


@task(**SAFE)
@discreet
def push_data(workspace: Workspace) -> str | None:
    """`push`, whose failure is a warning: the data version that is not in the remote, or None.

    A night's requests are fulfilled by then. What an outage or a kill left out, the next run sends.
    """
    try:
        push(workspace)
    except DataError as error:
        get_run_logger().warning(str(error))
        note(str(error))  # on the command line Prefect's log is not shown
        return data_version(workspace.data_pin)
    return None


@task(**SAFE)
@discreet
def restore_data(workspace: Workspace, pin: str) -> None:
    """Put back the data version whose `data.dvc` text is `pin`: a failed night leaves everything as it was."""
    open_ledger(workspace).confirm()
    workspace.data_pin.write_text(pin)
    dvc(workspace, "checkout", "--force", "data.dvc")
    pipeline.prepare(workspace)
    dvc(workspace, "commit", "--force", "prepare")
