"""The step boundaries of a night that runs in this process, named as they are reached.

A boundary is the moment before and after each Prefect task and the scrubbing of the ledger's file, and the moment
before each commit to the ledger and to MLflow, each rename or removal in the workspace and each DVC command. Nothing in
the code is changed for it: SQLAlchemy and Python tell of the last three themselves. The heartbeat of the lease, which
beats by the clock, is left out.
"""

import json
import re
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from prefect import Task
from sqlalchemy import Engine, event

import tasks.alerts
import tasks.artefacts
import tasks.data
import tasks.evaluation
import tasks.registry
import tasks.sid
import tasks.unlearning
from genrec.registry import CHALLENGER, CHAMPION, PREVIOUS
from genrec.requests import ledger

Reached = Callable[[str], None]
TASKS = (tasks.alerts, tasks.artefacts, tasks.data, tasks.evaluation, tasks.registry, tasks.sid, tasks.unlearning)
VERSION_TABLES = ("model_versions", "registered_model_aliases")  # where MLflow says what a version is and who is served
IDS = re.compile(r"\b([rb]-[0-9a-f]{12,16}|[0-9a-f]{32})\b")  # of requests, batches and MLflow's runs


def watch(home: Path, reached: Reached) -> None:
    """From now on call `reached` with the name of every boundary, in the thread that is at it."""

    def at(name: str) -> None:
        if not threading.current_thread().name.startswith("lease-"):
            reached(name)

    _watch_tasks(at)
    _watch_commits(at)
    _watch_files(home, at)


def _watch_tasks(at: Reached) -> None:
    for task in {value for module in TASKS for value in vars(module).values() if isinstance(value, Task)}:
        task.fn = _between("task", task.fn, at)
    ledger.scrub = _between("ledger", ledger.scrub, at)


def _between(kind: str, function: Callable, at: Reached) -> Callable:
    @wraps(function)
    def watched(*arguments, **named):
        at(f"before {kind} {function.__name__}")
        result = function(*arguments, **named)
        at(f"after {kind} {function.__name__}")
        return result

    return watched


def _watch_commits(at: Reached) -> None:
    """A commit is named by what its transaction wrote; one that wrote nothing is none."""

    @event.listens_for(Engine, "before_execute")
    def wrote(connection, clause, many, one, _options):
        if clause.is_dml:
            written = connection.info.setdefault("written", [])
            written += [_what(clause.table.name, values) for values in (many or [one])]

    @event.listens_for(Engine, "commit")
    def commit(connection):
        written = dict.fromkeys(connection.info.pop("written", ()))
        if connection.engine.url.database.endswith("ledger.db"):
            if written:
                at(f"before ledger commit: {', '.join(name for name in written if name) or 'requests'}")
        else:
            for name in written:
                if name:
                    at(f"before MLflow commit: {name}")

    @event.listens_for(Engine, "rollback")
    def rollback(connection):
        connection.info.pop("written", None)


def _what(table: str, values: dict) -> str | None:
    if table == "audit":
        return " ".join(filter(None, (values["event"], json.loads(values["payload"]).get("stage"))))
    if table == "leases":
        return "lease"
    alias = next((value for value in values.values() if value in (CHAMPION, CHALLENGER, PREVIOUS)), None)
    return " ".join(filter(None, (table, alias))) if table in VERSION_TABLES else None


def _watch_files(home: Path, at: Reached) -> None:
    def hook(name: str, arguments: tuple) -> None:
        if name in ("os.rename", "os.remove", "shutil.rmtree"):
            path = str(arguments[name == "os.rename"])
            if path.startswith(f"{home}/") and not path.endswith(".tmp"):
                at(f"before {name.split('.')[1]} of {IDS.sub('*', path.removeprefix(f'{home}/'))}")
        elif name == "subprocess.Popen" and "dvc" in arguments[1]:
            at(f"before {' '.join(arguments[1][arguments[1].index('dvc') :]).removesuffix(' --quiet')}")

    sys.addaudithook(hook)
