"""The end of a night: from a verdict to aliases, certificates, report and closed requests.

One saga: each step is idempotent and reads what it needs from the batch's stage in the ledger, so that a crash between
any two steps is finished by the next run, not repeated and not lost. The order: aliases, certificates, report, sealed
rows destroyed, requests fulfilled.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from genrec import night_report, promotion
from genrec.candidates import figures
from genrec.evaluation.gates import CARRIED, IN_WORDS
from genrec.evaluation.ranking import utility
from genrec.night import Night, bundle_hash, destroy_sealed, discard_candidates
from genrec.pipeline import code_version
from genrec.registry import open_registry
from genrec.report.page import write_report
from genrec.report.summary import Comparison, Lineage, Request, Summary
from genrec.requests import audit, certificates, certified
from genrec.requests.ledger import Request as LedgerRequest
from genrec.requests.store import open_ledger

PROMOTING, FAILING = "promoting", "failing"


def decide(night: Night, attempts: list[dict], passed: dict[str, str]) -> None:
    """Record the promotion to come: version, method per request and the time that will be on the certificates.

    passed: group name -> method that passed.
    """
    now = _now(night)
    groups = {r: group.name for group in night.groups for r in group.request_ids}
    details = {
        "version": attempts[-1]["version"], "groups": groups, "methods": {r: passed[g] for r, g in groups.items()},
        "unlearned_at": now.isoformat(), "attempts": attempts,
    }  # fmt: skip
    open_ledger(night.workspace).set_stage(night.batch.id, PROMOTING, details, now=now)


def fail(night: Night, reason: str, attempts: list[dict], outcome: str) -> None:
    """Record the failure to come. outcome: `held` (gates did not pass) or `failed` (a step could not be done)."""
    now = _now(night)
    details = {"reason": reason, "outcome": outcome, "attempts": attempts, "finished_at": now.isoformat()}
    open_ledger(night.workspace).set_stage(night.batch.id, FAILING, details, now=now)


def _now(night: Night) -> datetime:
    """The present; where the clock was put back, the newest time on record, so that nothing ends before it began."""
    ledger = open_ledger(night.workspace)
    verified = [ledger.get(request).verified_at for request in night.batch.request_ids]
    return max(datetime.now(UTC), datetime.fromisoformat(_details(night)["started_at"]), *verified)


def _details(night: Night) -> dict:
    return open_ledger(night.workspace).stage(night.batch.id).details


def promote(night: Night) -> None:
    """Move the champion from the one the night began with. Raises RegistryError when another has come in between."""
    version = _details(night)["version"]
    promotion.promote(night.workspace, version, night.champion_number, now=datetime.now(UTC), batch_id=night.batch.id)


def _fulfilled(night: Night) -> list[LedgerRequest]:
    """The batch's requests as they will be once the saga is through."""
    details, ledger = _details(night), open_ledger(night.workspace)
    unlearned = datetime.fromisoformat(details["unlearned_at"])
    return [
        replace(ledger.get(r), state="fulfilled", method=details["methods"][r], unlearned_at=unlearned)
        for r in night.batch.request_ids
    ]


def certify(night: Night) -> list[str]:
    """Write a certificate per request with the figures of the gates that decided about it; its hash goes into the audit
    chain."""
    details, workspace = _details(night), night.workspace
    registry, signing_key, issued = open_registry(workspace), workspace.settings.signing_key, {}
    hashes = [bundle_hash(registry, number) for number in (night.champion_number, details["version"])]
    for request in _fulfilled(night):
        about = (details["groups"][request.id], "final")
        decisive = [a for a in details["attempts"] if a["verdict"] == "PASS" and a["group"] in about]
        facts = certificates.CertificateFacts(
            data_version_before=details["data_version_before"],
            data_version_after=details["data_version"],
            bundle_hash_before=hashes[0],
            bundle_hash_after=hashes[1],
            model_version_before=night.champion_number,
            model_version_after=details["version"],
            gates=tuple(_gate_figure(gate) for gate in decisive[-1]["gates"]),
            third_party=third_party(decisive, request.method),
            exact=decisive[-1]["exact"],
        )
        path = certificates.issue(request, facts, workspace.certificates, signing_key)
        issued[request.id] = certificates.recomputed_hash(path)
    certified.record(open_ledger(workspace).engine, issued, now=datetime.now(UTC))
    return [f"{request}.json" for request in issued]


def third_party(decisive: list[dict], method: str) -> dict[str, str]:
    """Providers by `method` or `gate <name>`: of the attempts that decided about a request which `method` served.

    The judgement of the whole batch names the method of its last rung; an attempt of an older version names nobody.
    """
    return {
        tag.removeprefix("provider.").replace(".", " ", 1): provider
        for attempt in decisive
        for tag, provider in attempt.get("providers", {}).items()
        if tag != "provider.method" or attempt["method"] == method
    }


def _gate_figure(gate: dict) -> certificates.GateFigure:
    limit = gate["limit"]
    return certificates.GateFigure(
        gate["name"], gate["verdict"], gate["value"], gate["low"], gate["high"],
        tuple(limit) if isinstance(limit, list) else limit, gate["n"], _certified_rule(gate), gate["rule"],
        gate["blocking"],
    )  # fmt: skip


def _certified_rule(gate: dict) -> str:
    """The checkable rule where the verdict follows from the figure alone, else the words.

    Of two rules that are each enough (utility, collateral) a gate has the figure, limit and check of the one that
    passed; where neither did, INCONCLUSIVE follows from any figure, and of two FAILs each.
    """
    return gate["rule"] if gate["check"] == IN_WORDS or CARRIED in gate["rule"] else gate["check"]


def report(night: Night, sid_diff: list[dict]) -> dict:
    """Write the summary and the page of a promoted night to reports/<batch> and reports/latest, and to MLflow."""
    details, workspace = _details(night), night.workspace
    registry = open_registry(workspace)
    last = details["attempts"][-1]
    before = utility(night.before.ranking, len(night.retained.item_ids), night.plan)
    version = registry.version(details["version"])
    summary = _summary(
        night, details, _fulfilled(night), outcome="promoted", reason=details.get("waiting", ""),
        finished_at=details["unlearned_at"], champion_after=details["version"], sid_diff=sid_diff,
        utility=Comparison.model_validate({"before": figures(before), "after": last["utility"]}),
        forgetting=Comparison.model_validate({"before": figures(night.before.forgetting), "after": last["forgetting"]}),
        lineage=Lineage(
            parent=night.champion_number, version=details["version"], code_version=code_version(),
            backbone_hash=night.champion.backbone.hash, bundle_before=bundle_hash(registry, night.champion_number),
            bundle_after=bundle_hash(registry, details["version"]),
        ),
    )  # fmt: skip
    page = _write(night, summary)
    for path in (page, page.with_name("summary.json")):
        registry.log_file(version.run_id, path)
    return summary.model_dump(mode="json", by_alias=True)


def _write(night: Night, summary: Summary) -> Path:
    reports = night.workspace.reports
    return write_report(summary, reports / "nights" / night.batch.id, reports / "latest")


def _summary(night: Night, details: dict, requests: list[LedgerRequest], *, finished_at: str, **values) -> Summary:
    fields = set(Request.model_fields)
    attempts = details["attempts"]
    started, finished = (datetime.fromisoformat(t) for t in (details["started_at"], finished_at))
    retrain_s = night.champion.lineage.retrain_s
    seq, newest = audit.newest(open_ledger(night.workspace).engine)
    return Summary.model_validate(
        {
            "batch_id": night.batch.id, "started_at": started, "finished_at": finished,
            "wall_s": (finished - started).total_seconds(),
            "data_version_before": details["data_version_before"], "data_version": details.get("data_version"),
            "champion_before": night.champion_number,
            "requests": [{k: v for k, v in r.as_dict().items() if k in fields} for r in requests],
            "audit_head": {"seq": seq, "hash": newest},
            "attempts": night_report.told(night, attempts), "validation": details.get("validation"),
            "cost": {"retrain_s": retrain_s, "methods_s": sum(a["wall_s"] for a in attempts)},
            **night_report.evidence(night, attempts), **values,
        }
    )  # fmt: skip


def fulfil(night: Night) -> None:
    """Destroy the forgotten rows, close the requests, discard the candidates."""
    details, ledger = _details(night), open_ledger(night.workspace)
    destroy_sealed(night)
    now = datetime.fromisoformat(details["unlearned_at"])
    ledger.set_stage(night.batch.id, "sealed rows destroyed", {}, now=datetime.now(UTC))
    versions = {"data_version": details["data_version"], "model_version": details["version"]}
    ledger.fulfil(night.batch.id, details["methods"], now=now, **versions)
    discard_candidates(night)


def close_failed(night: Night) -> dict:
    """Report a failed or held night and give its requests back; its summary. The flow restores the data."""
    details, ledger = _details(night), open_ledger(night.workspace)
    destroy_sealed(night)
    requests = [replace(ledger.get(r), state="failed") for r in night.batch.request_ids]
    summary = _summary(
        night, details, requests, outcome=details["outcome"], reason=details["reason"],
        finished_at=details["finished_at"], champion_after=night.champion_number,
        forgetting=night_report.before(night),
    )  # fmt: skip
    _write(night, summary)
    ledger.fail(night.batch.id, details["reason"], now=datetime.now(UTC))
    discard_candidates(night)
    return summary.model_dump(mode="json", by_alias=True)
