"""The router's facts, read from the workspace, and its plans, kept in the ledger: a resumed night keeps its plan."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from genrec import unlearning as methods
from genrec.calibration import approximate, params_hash
from genrec.config import Params, Workspace
from genrec.data import sources
from genrec.evaluation import rules as gates
from genrec.models.bundle import TRAINED, read_manifest
from genrec.night import ABSENT, Group, Night
from genrec.plugins import Plugin
from genrec.registry import open_registry
from genrec.requests import attempts
from genrec.requests.attempts import Tried
from genrec.requests.calibrations import Calibration, latest
from genrec.requests.ledger import Batch, Request
from genrec.requests.router import Plan, absent, route, waiting
from genrec.requests.store import open_ledger
from genrec.unlearning.untouched import UNTOUCHED


def check_plugins(params: Params) -> None:
    """Everything of other packages that the next night may use. Raises ConfigError or PluginError in one line."""
    for name in {*params.unlearning.user_ladder, *params.unlearning.concept_ladder, *params.plugins.methods}:
        methods.method(name).parameters(params)
    installed_plugins()
    gates.rules(params)


def installed_plugins() -> list[Plugin]:
    """Methods, sources and gates of other packages, none of them imported. Raises PluginError for a name it refuses."""
    return [*methods.plugins().values(), *sources.plugins().values(), *gates.plugins().values()]


WAITING = "Requests about people left in the queue, too few for any method that has a valid calibration: {}."


def family(workspace: Workspace, backbone_hash: str) -> dict[str, Calibration]:
    """The newest calibration of each approximate method of the user ladder on this model family."""
    params = workspace.params()
    hashes = {name: params_hash(params, name) for name in approximate(params)}
    return latest(open_ledger(workspace).engine, backbone_hash, hashes)


def families(params: Params, backbone_hash: str) -> dict[str, str]:
    """The model family of each approximate rung for concepts, as one name: the backbone and the method's parameters."""
    names = (name for name in params.unlearning.concept_ladder if not methods.method(name).exact)
    return {name: f"{backbone_hash}.{params_hash(params, name)}" for name in names}


def record(workspace: Workspace, backbone_hash: str, now: datetime) -> dict[str, list[Tried]]:
    """What each rung for concepts did on this model family, as long as it counts."""
    params = workspace.params()
    since = now - timedelta(days=params.calibration.max_age_days)
    return attempts.tried(open_ledger(workspace).engine, families(params, backbone_hash), since)


def plan(night: Night, now: datetime) -> dict[str, dict]:
    """The plan of each group of the night as JSON (`router.Plan.as_dict`); made once and kept with the batch."""
    ledger = open_ledger(night.workspace)
    details = ledger.stage(night.batch.id).details
    if "plans" in details:
        return details["plans"]
    backbone, retrain_s = night.champion.backbone.hash, night.champion.lineage.retrain_s
    known, tried = family(night.workspace, backbone), record(night.workspace, backbone, now)

    def planned(group: Group) -> Plan:
        if group.kind == ABSENT:
            unseen = trained_without(night.workspace, night.champion_number, details["data_version_before"])
            return absent(night.champion_number, unseen=unseen, ladder=group.ladder)
        return route(
            group.kind, len(group.users), group.ladder, known, now=now,
            calibration=night.params.calibration, router=night.params.router, tried=tried, retrain_s=retrain_s,
        )  # fmt: skip

    plans = {group.name: planned(group).as_dict() for group in night.groups}
    why = {request: plans[group.name]["reason"] for group in night.groups for request in group.request_ids}
    made = {"plans": plans, "families": families(night.params, backbone)}
    ledger.set_plans(night.batch.id, made, why, now=now)
    return plans


def trained_without(workspace: Workspace, champion: str, data_version: str) -> bool:
    """Whether the champion's weights were computed from nobody of whom this data version's prepared tables hold no row.

    True where it was trained from scratch on this data, or edited since by nights that left everybody else's prepared
    rows as they were: those that erased people alone, or nothing. What cannot be followed counts as False.
    """
    registry, ledger, number = open_registry(workspace), open_ledger(workspace), champion
    fulfilled = ledger.requests("fulfilled")
    while version := registry.version(number) if number else None:
        tags = version.tags
        if tags.get("data_version") != data_version:
            return False
        if tags["method"] in TRAINED:  # until an erasure pins them the prepared tables hang on data.k_core as well
            return registry.bundle(number).params.data.k_core == workspace.params().data.k_core
        served = [request for request in fulfilled if request.batch_id == tags["batch_id"]]
        if not served or (tags["method"] != UNTOUCHED and any(request.kind != "user" for request in served)):
            return False
        data_version, number = ledger.stage(tags["batch_id"]).details["data_version_before"], tags["parent"]
    return False


def claim(workspace: Workspace, now: datetime) -> tuple[Batch | None, str]:
    """Claim the night's batch; with it, a sentence about the people who wait for more of their kind, or ""."""
    params, ledger = workspace.params(), open_ledger(workspace)
    check_plugins(params)  # before anything is claimed
    days = params.requests.defer_days
    known = _champions_family(workspace) if days else {}  # before the claim, which holds the ledger's write lock
    left: frozenset[str] = frozenset()

    def later(requests: Sequence[Request]) -> frozenset[str]:
        nonlocal left
        people = route(
            "user", sum(request.kind == "user" for request in requests), params.unlearning.user_ladder, known, now=now,
            calibration=params.calibration, router=params.router,
        )  # fmt: skip
        left = waiting(requests, people, now=now, defer_days=days, router=params.router)
        return left

    batch = ledger.claim(now=now, waiting=later)
    return batch, WAITING.format(len(left)) if left else ""


def _champions_family(workspace: Workspace) -> dict[str, Calibration]:
    registry = open_registry(workspace)
    return family(workspace, read_manifest(registry.bundle_path(registry.champion().number))["backbone_hash"])
