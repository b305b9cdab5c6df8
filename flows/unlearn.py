"""The nightly (and triggered) run: claim, erase, climb the ladders, judge, promote, certify, report.

A kill at any point leaves an open batch in the ledger; the next run finds it and goes on where it stopped.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
from prefect import flow

from genrec import night as steps
from genrec import saga
from genrec.config import Settings, Workspace
from genrec.data.files import room
from genrec.data.version import data_version
from genrec.discreet import discreet, unexpected
from genrec.environment import prepare_environment
from genrec.errors import GenrecError, NightError, OutageError
from genrec.evaluation.verdicts import undecided
from genrec.progress import tracked
from genrec.registry import answering, open_registry
from genrec.report.page import write_report
from genrec.report.summary import AuditHead, Summary
from genrec.requests import audit
from genrec.requests.certificates import load_signing_key
from genrec.requests.database import reaching
from genrec.requests.lease import NIGHT, Lease
from genrec.requests.store import open_ledger
from tasks import alerts, artefacts, data, evaluation, registry, sid, unlearning


@flow(name="unlearn", log_prints=False, validate_parameters=False)
def unlearn(home: str | None = None, trigger: str = "nightly") -> dict:
    """Serve every queued request of the workspace `home` (default: GENREC_HOME). Returns the night's summary.

    Raises RequestError when another run holds the lease, NightError when the night failed (after it is closed),
    BundleError when the champion is corrupt and ConfigError when the signing key is (before anything is claimed),
    OutageError when the night broke off.
    """
    workspace = (Settings(home=home) if home else Settings()).workspace
    prepare_environment(workspace)
    failure, unsent = None, None
    try:
        with lease(workspace, trigger) as held:
            summary = _night(held)
            unsent = data.push_data(held)
            return summary
    except Exception as error:
        failure = None if isinstance(error, NightError) else type(error).__name__
        raise
    finally:
        alerts.send_alerts(workspace, failure, unsent, return_state=True)  # a night does not fail for its webhook


@contextmanager
def lease(workspace: Workspace, what: str) -> Iterator[Workspace]:
    """The lease that everything holds which needs the champion to stay as it is; `what` names the holder's run.

    Yields the workspace to work in: its ledger refuses what is written once the lease is another's. Raises OutageError
    where the database, MLflow or the disk gives out inside.
    """
    holder = f"{what} {socket.gethostname()} {os.getpid()}"
    seconds = workspace.params().requests.lease_seconds
    engine = open_ledger(workspace).engine
    with (
        reaching(engine), answering(), room(),
        Lease.acquire(engine, NIGHT, holder, lambda: datetime.now(UTC), seconds) as held,
    ):  # fmt: skip
        yield workspace.fenced(held.fence)


@discreet
def _night(workspace: Workspace) -> dict:
    started = datetime.now(UTC)
    registered = open_registry(workspace)
    champion = registered.champion().number
    registered.bundle(champion)  # whole, or nothing is claimed and erased
    if key := workspace.settings.signing_key:
        load_signing_key(key)  # so is the key
    _finish_failed(workspace)
    steps.tidy(workspace)
    batch_id, waiting = unlearning.claim_batch(workspace)
    if batch_id is None:
        return _nothing(workspace, champion, started, waiting)
    ledger = open_ledger(workspace)
    details = ledger.stage(batch_id).details
    if "started_at" not in details:
        facts = {
            "started_at": started.isoformat(), "champion_before": champion,
            "data_version_before": data_version(workspace.data_pin), "data_pin_before": workspace.data_pin.read_text(),
            "waiting": waiting,
        }  # fmt: skip
        ledger.set_stage(batch_id, "started", facts, now=started)
    if "unlearned_at" not in details:
        _decide(workspace, batch_id)
    details = ledger.stage(batch_id).details
    return (
        _promote(workspace, batch_id, details) if "unlearned_at" in details else _give_up(workspace, batch_id, details)
    )


def _decide(workspace: Workspace, batch_id: str) -> None:
    """Up to the verdict, which is recorded in the batch's stage."""
    attempts: list[dict] = []
    try:
        with reaching(open_ledger(workspace).engine), answering(), room():
            erased = data.erase_from_data(workspace, batch_id)
            open_ledger(workspace).set_stage(batch_id, "erased", erased, now=datetime.now(UTC))
            passed = _climb(workspace, batch_id, attempts)
    except (OutageError, httpx.HTTPError):
        raise  # the batch stays open: the next run goes on here
    except Exception as error:
        told = error if isinstance(error, GenrecError | TimeoutError) else unexpected(error)
        saga.fail(steps.open_night(workspace, batch_id), f"{type(told).__name__}: {told}", attempts, "failed")
        return
    night = steps.open_night(workspace, batch_id)
    if attempts[-1]["verdict"] == "PASS":
        saga.decide(night, attempts, passed)
    else:
        last = attempts[-1]
        saga.fail(
            night, f"{last['group']}: {last['method']} was {last['verdict']} and no rung is left.", attempts, "held"
        )


def _climb(workspace: Workspace, batch_id: str, attempts: list[dict]) -> dict[str, str]:
    """Climb each group's ladder until a rung passes; fills `attempts`, returns the method that passed by group."""
    passed: dict[str, str] = {}
    start, last = None, None
    plan = unlearning.plan_ladders(workspace, batch_id)
    for group in tracked("groups of requests", plan):
        reason = f"{group['reason']} This is the first rung."
        for method in group["ladder"]:
            number = len(attempts) + 1
            tried = unlearning.climb_rung(workspace, batch_id, group["group"], method, number, start, reason)
            attempts.append(tried)
            if tried["verdict"] == "PASS":
                passed[group["group"]], start, last = method, tried["folder"], tried
                break
            failed = [gate["name"] for gate in undecided(tried["gates"])]
            reason = f"{method} was {tried['verdict']}{': ' + ', '.join(failed) if failed else ''}."
        else:
            return passed
    if len(plan) == 1:
        return passed
    attempts.append(evaluation.judge_final(workspace, batch_id, last, len(attempts) + 1))
    if attempts[-1]["verdict"] != "PASS" and not last["exact"]:
        reason = "The groups passed one by one and not together: retrain for the whole batch."
        group, number = plan[-1]["group"], len(attempts) + 1
        last = unlearning.climb_rung(workspace, batch_id, group, "retrain", number, start, reason)
        attempts += [last, evaluation.judge_final(workspace, batch_id, last, number + 1)]
        passed = dict.fromkeys(passed, "retrain")
    return passed


def _promote(workspace: Workspace, batch_id: str, details: dict) -> dict:
    registry.promote_candidate(workspace, batch_id)
    registry.issue_certificates(workspace, batch_id)
    moved = sid.sid_changes(workspace, details["champion_before"], details["version"])
    summary = registry.write_report(workspace, batch_id, moved)
    artefacts.publish(summary)
    registry.fulfil(workspace, batch_id)
    return summary


def _finish_failed(workspace: Workspace) -> None:
    """A run that broke off after it gave up its batch: do what it left, so that this one serves the requests."""
    ledger = open_ledger(workspace)
    batch = ledger.open_batch()
    if batch and "outcome" in (details := ledger.stage(batch.id).details):
        _put_back(workspace, batch.id, details)


def _put_back(workspace: Workspace, batch_id: str, details: dict) -> None:
    data.restore_data(workspace, details["data_pin_before"])
    artefacts.publish(registry.close_failed(workspace, batch_id))


def _give_up(workspace: Workspace, batch_id: str, details: dict) -> dict:
    """Put the data back, close the batch, and let the run fail loudly."""
    _put_back(workspace, batch_id, details)
    raise NightError(
        f"Night {batch_id} {details['outcome']}: {details['reason']} The champion stays. See reports/latest."
    )


def _nothing(workspace: Workspace, champion: str, started: datetime, waiting: str) -> dict:
    version = data_version(workspace.data_pin) if workspace.data_pin.exists() else None
    seq, newest = audit.newest(open_ledger(workspace).engine)
    summary = Summary(
        outcome="nothing to do", reason=waiting, started_at=started, finished_at=datetime.now(UTC),
        champion_before=champion, champion_after=champion, data_version_before=version, data_version=version,
        audit_head=AuditHead(seq=seq, hash=newest),
    )  # fmt: skip
    write_report(summary, workspace.reports / "latest")
    return summary.model_dump(mode="json", by_alias=True)
