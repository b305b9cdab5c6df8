"""What a night leaves, however often it was killed: the rules it must keep, and its state to compare with another's."""

import json
from pathlib import Path

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from genrec.config import Settings
from genrec.data.version import data_version
from genrec.models.bundle import read_manifest
from genrec.registry import PREVIOUS, open_registry
from genrec.requests.audit import verify_chain
from genrec.requests.certificates import verify
from genrec.requests.certified import CERTIFIED, Agreement, compare
from genrec.requests.ledger import Ledger
from genrec.requests.schema import AuditRow, BatchRow
from genrec.requests.store import open_ledger


def stands(home: Path) -> None:
    """At any moment: the audit chain is whole and the one champion loads, every hash checked. Raises what is not so."""
    workspace = Settings(home=home).workspace
    verify_chain(open_ledger(workspace).engine)
    registry = open_registry(workspace)
    registry.bundle(registry.champion().number)


def broken_rules(home: Path, person: str) -> list[str]:
    """The rules that do not hold after the last night; `person` is the raw id of somebody it forgot."""
    stands(home)
    workspace = Settings(home=home).workspace
    ledger, registry = open_ledger(workspace), open_registry(workspace)
    requests = [request for request in ledger.requests() if request.state != "cancelled"]
    events = [(event, subject) for event, subject, _ in _chain(ledger)]
    versions, champion = registry.versions(), registry.champion().number
    for version in versions:
        registry.bundle(version.number)
    attempts = [(version.tags["batch_id"], version.tags["attempt"]) for version in versions]
    certified = {path.name: verify(path).ok for path in workspace.certificates.iterdir()}
    with Session(ledger.engine) as session:
        batch = session.scalars(select(BatchRow).order_by(BatchRow.claimed_at.desc())).first()
    rules = {
        "every request is fulfilled": {request.state for request in requests} == {"fulfilled"},
        "none is fulfilled twice": all(events.count(("fulfilled", request.id)) == 1 for request in requests),
        "one valid certificate each": certified == {f"{request.id}.json": True for request in requests},
        "the chain names each certificate once": all(events.count((CERTIFIED, r.id)) == 1 for r in requests)
        and compare(ledger.engine, workspace.certificates) == Agreement(len(requests), ()),
        "the champion is the batch's version": champion == batch.model_version == batch.details["version"],
        "it was promoted once": events.count(("promoted", f"version {champion}")) == 1,
        "the champion before is `previous`": registry.version(PREVIOUS).number == batch.details["champion_before"],
        "no attempt is registered twice": len(attempts) == len(set(attempts)),
        "nothing is left behind": _left(home) == [],
        "the person's id is gone from the ledger": not any(
            person.encode() in path.read_bytes() for path in workspace.var.glob("ledger.db*")
        ),
    }
    return [rule for rule, holds in rules.items() if not holds]


def _chain(ledger: Ledger) -> list[tuple[str, str, str | None]]:
    with Session(ledger.engine) as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq))
        return [(row.event, row.subject, json.loads(row.payload).get("stage")) for row in rows]


def _left(home: Path) -> list[str]:
    """Sealed rows, working folders and temporary siblings of what is replaced by rename."""
    found = [*home.glob("var/sealed/*"), *home.glob("var/nights/*"), *home.glob(".*.new"), *home.glob(".*.old")]
    found += [path for folder in ("var", "reports", "data") for path in (home / folder).rglob("*.tmp")]
    return [str(path.relative_to(home)) for path in found]


def end_state(home: Path) -> dict:
    """All that is the same however the night came about, as JSON: times, and what is measured in seconds, are not."""
    workspace = Settings(home=home).workspace
    ledger, registry = open_ledger(workspace), open_registry(workspace)
    manifest = read_manifest(registry.bundle_path(registry.champion().number))
    lock = yaml.safe_load((home / "dvc.lock").read_text())["stages"]
    nights = [json.loads(path.read_text()) for path in sorted(home.glob("reports/nights/*/summary.json"))]
    return {
        "requests": [[r.id, r.state, r.method, r.plan] for r in ledger.requests()],
        "audit chain": [list(link) for link in _chain(ledger)],
        "data": [data_version(workspace.data_pin), lock["prepare"]["outs"]],
        "versions": [
            [v.number, sorted(v.aliases), {name: v.tags[name] for name in ("batch_id", "attempt", "method", "verdict")}]
            for v in registry.versions()
        ],
        "champion's files": {name: sha for name, sha in manifest["files"].items() if name != "lineage.json"},
        "certificates": [_figures(path) for path in sorted(workspace.certificates.iterdir())],
        "reports": [[n["outcome"], [[a["group"], a["method"], a["verdict"]] for a in n["attempts"]]] for n in nights],
    }


def _figures(path: Path) -> list:
    told = json.loads(path.read_text())
    gates = [gate for gate in told["gates"] if gate["name"] != "cost"]  # the one that measures seconds
    return [told["request"], told["method"], told["data_version_before"], told["data_version_after"], gates]
