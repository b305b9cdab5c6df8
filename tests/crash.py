"""The crash matrix: kill a night at every step boundary and at random moments, start it again, compare the end.

    python -m tests.crash                         the whole matrix, which writes docs/crash-matrix.md
    python -m tests.crash --only "task fulfil"    the cases with this in their name

Each case has a copy of one small workspace in which a person and a concept wait to be forgotten, and kills with
SIGKILL: at a boundary the night alone, so that a DVC command goes on without it; at a random moment, by a coin, the
commands it started too. After that no rule of `tests.night_end` may be broken, and the state must be that of the night
that nobody killed. Nights are forked from a process that has imported everything, and share one Prefect server.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import pandas as pd
import psutil

from genrec.pipeline import code_version
from tests.boundaries import watch
from tests.conftest import TINY, copied, genrec, make_workspace, set_params
from tests.night_end import broken_rules, end_state, stands
from tests.servers import prefect_server

CONCEPT = "Gambling"
SEEDS = 50
JOBS = 2
LIMIT_S = 600
TABLE = Path(__file__).parents[1] / "docs" / "crash-matrix.md"
UNLEARNING = {"tracer": {**TINY["unlearning"]["tracer"], "steps": 4}, "concept_ladder": ["tracer", "retrain"]}
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["tests.boundaries", "tests.night_end", "peft", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "ibis"]
)

Boundary = tuple[str, int]
"""A boundary's name and which of its occurrences in one run of the night."""


@dataclass(frozen=True)
class Case:
    """Where a night is killed: at a boundary, or so many seconds after its start."""

    name: str
    boundary: Boundary | None = None
    after_s: float | None = None
    children_too: bool = False


@dataclass(frozen=True)
class Shop:
    """A workspace whose requests wait for a night, and the raw id of the person among them."""

    home: Path
    person: str


def shop(trained: Path, home: Path, *concepts: str) -> Shop:
    """A copy of a trained workspace in which a person and `concepts` are to be forgotten."""
    copied(trained, home)
    set_params(home, unlearning=UNLEARNING)
    rows = pd.read_parquet(home / "prepared" / "interactions.parquet")
    person = sorted(rows[rows.split == "train"].user_id.unique())[7]
    genrec(home, "forget", "user", person)
    for concept in concepts:
        genrec(home, "forget", "concept", concept)
    return Shop(home, person)


def night(shop: Shop, boundary: Boundary | None, answer: Path) -> None:
    """In a process of its own: a night that dies at `boundary`; one that ends says how in `answer`."""
    from flows.unlearn import unlearn
    from genrec.terminal import run_flow

    with shop.home.with_suffix(".log").open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    stands(shop.home)
    reached: list[str] = []

    def at(name: str) -> None:
        reached.append(name)
        if (name, reached.count(name)) == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(shop.home, at)
    started = time.monotonic()
    run_flow(unlearn, home=str(shop.home))
    told = {"seconds": time.monotonic() - started, "boundaries": list(reached)}
    told |= {"broken": broken_rules(shop.home, shop.person), "state": end_state(shop.home)}
    answer.write_text(json.dumps(told))


def run(shop: Shop, answer: Path, case: Case) -> bool:
    """One run of the night; whether it was killed. Raises AssertionError with its last words when it failed."""
    process = PROCESSES.Process(target=night, args=(shop, case.boundary, answer))
    process.start()
    process.join(LIMIT_S if case.after_s is None else case.after_s)
    if process.is_alive():
        children = psutil.Process(process.pid).children(recursive=True) if case.children_too else []
        process.kill()
        for child in children:
            child.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL), shop.home.with_suffix(".log").read_text().splitlines()[-1]
    _expire_lease(shop.home)
    return process.exitcode != 0


def _expire_lease(home: Path) -> None:
    """The dead holder's lease would run out by itself after requests.lease_seconds."""
    with sqlite3.connect(home / "var" / "ledger.db") as database:
        database.execute("UPDATE leases SET expires_at = '2000-01-01 00:00:00.000000'")


def uninterrupted(shop: Shop, home: Path) -> dict:
    """What a night that nobody kills tells: its seconds, its boundaries in order and its end."""
    copied(shop.home, home)
    answer = home.with_suffix(".json")
    assert not run(Shop(home, shop.person), answer, Case("uninterrupted"))
    told = json.loads(answer.read_text())
    assert told["broken"] == [], told["broken"]
    return told


def boundaries(reached: list[str]) -> Iterator[Case]:
    for number, name in enumerate(reached, 1):
        which = reached[:number].count(name)
        yield Case(f"boundary {number} {name}{f' ({which})' if which > 1 else ''}", boundary=(name, which))


def moments(seeds: range, seconds: float) -> Iterator[Case]:
    for seed in seeds:
        draw = random.Random(seed)
        after, children = draw.uniform(0, seconds), draw.random() < 0.5
        name = f"seed {seed} at {after:.1f} s, {'with its commands' if children else 'alone'}"
        yield Case(name, after_s=after, children_too=children)


def outcome(shop: Shop, whole: dict, folder: Path, case: Case) -> str:
    """Kill, start again, compare: `ok`, or what is wrong; the workspace of a case that failed is kept."""
    home = folder / "-".join(case.name.split()[:2])
    copied(shop.home, home)
    own, answer = Shop(home, shop.person), home.with_suffix(".json")
    try:
        if not run(own, answer, case) and case.boundary:
            return "the night did not come to this boundary"
        if run(own, answer, Case("again", after_s=LIMIT_S)):
            return f"the night after it did not end within {LIMIT_S} s"
    except AssertionError as error:
        return str(error)
    told = json.loads(answer.read_text())
    differs = [name for name, value in whole["state"].items() if told["state"][name] != value]
    wrong = told["broken"] + [f"another end: {name}" for name in differs]
    if not wrong:
        shutil.rmtree(home)
    return "; ".join(wrong) or "ok"


def matrix(shop: Shop, folder: Path, only: str, say: Callable[[str], None]) -> dict[str, str]:
    """The outcome of each case by its name."""
    whole = uninterrupted(shop, folder / "uninterrupted")
    cases = [*boundaries(whole["boundaries"]), *moments(range(SEEDS), whole["seconds"])]
    chosen = [case for case in cases if only in case.name]
    outcomes = {}
    with ThreadPoolExecutor(JOBS) as threads:
        ended = threads.map(lambda case: outcome(shop, whole, folder, case), chosen)
        for case, said in zip(chosen, ended, strict=True):
            outcomes[case.name] = said
            say(f"{case.name}: {said}")
    return outcomes


def table(outcomes: dict[str, str], seconds: float) -> str:
    """The page of docs/."""
    failed = sum(said != "ok" for said in outcomes.values())
    lines = [
        "# The crash matrix\n",
        "A night was killed with SIGKILL at the moment a line names, and started again. `ok`: every request was",
        "fulfilled once, with one valid certificate; the audit chain was whole; the one champion was the batch's and",
        "loaded; nothing half-done was left; requests, chain, data, versions, weights, certificates and reports were",
        "those of the night that nobody killed. `tests/crash.py` says how, `tests/boundaries.py` what a boundary is,",
        "`tests/night_end.py` what is compared.\n",
        f"`make crash`, {datetime.now(UTC):%Y-%m-%d}, commit {code_version()}, seeds 0 to {SEEDS - 1}, "
        f"{seconds / 60:.0f} minutes: {len(outcomes) - failed} passed, {failed} failed.\n",
    ]
    for title, start in (("Step boundaries, in the order of the night", "boundary"), ("Random moments", "seed")):
        lines += [f"## {title}\n", "| killed | end |", "| --- | --- |"]
        lines += [f"| {name.replace('|', '/')} | {said} |" for name, said in outcomes.items() if name.startswith(start)]
        lines.append("")
    return "\n".join(lines)


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """One Prefect server for all nights, and the environment they are forked with; must precede the first night."""
    (folder / "prefect").mkdir()
    own = {"DVC_SITE_CACHE_DIR": str(folder / "dvc"), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    own["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"  # a killed process leaks its semaphores
    with prefect_server(folder / "prefect") as (_, environment), patch.dict(os.environ, environment | own):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the cases with this in their name, and write no table")
    parser.add_argument(
        "--trained", type=Path, help="a workspace of tests.conftest with a champion; default: a new one"
    )
    options = parser.parse_args()
    folder, started = Path(mkdtemp(prefix="genrec-crash-")), time.monotonic()
    with serving(folder):
        trained = options.trained or make_workspace(folder / "trained")
        if options.trained is None:
            genrec(trained, "train")
        asked = shop(trained, folder / "shop", CONCEPT)
        outcomes = matrix(asked, folder, options.only, lambda line: print(line, flush=True))
    if not options.only:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table(outcomes, time.monotonic() - started))
    failed = sum(said != "ok" for said in outcomes.values())
    if failed:
        print(f"The workspaces of the cases that failed are in {folder}")
    else:
        shutil.rmtree(folder)
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
