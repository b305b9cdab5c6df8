"""One night, step by step: what the flow `unlearn` chains. Every step can be repeated after a crash.

State between steps is on disk: the ledger holds the batch and its stage, `var/sealed` the forget set,
`var/nights/<batch>` the attempts and candidate bundles. Nothing here knows Prefect or DVC.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from genrec.candidates import figures, providers, register_candidate
from genrec.config import Workspace
from genrec.data.erase import Erasure, erase
from genrec.data.files import finite, write_json
from genrec.data.sequences import Dataset, ForgetSet, load_dataset, read_forget_set, restore
from genrec.data.version import data_version
from genrec.errors import RequestError, UnlearningError
from genrec.evaluation import gates, rules
from genrec.evaluation.evidence import curve, neighbours
from genrec.evaluation.gates import Gate
from genrec.evaluation.judge import ATTACK, SHARED_LEVELS, Erased, Forgotten, Measured, judge, measure
from genrec.evaluation.ranking import Ranking, utility
from genrec.evaluation.statistics import Bootstrap, Measure, mean
from genrec.models.bundle import Bundle, load_bundle, read_manifest, save_bundle
from genrec.pipeline import code_version, load_embeddings
from genrec.registry import Registry, open_registry
from genrec.requests.database import scrub
from genrec.requests.ledger import Batch
from genrec.requests.router import RETRAIN
from genrec.requests.store import open_ledger
from genrec.unlearning import Problem, method
from genrec.unlearning.untouched import UNTOUCHED

ABSENT = "absent"
"""Kind of the group of those of whom the prepared tables hold nothing, whatever kind their requests are."""
SHOWN = "shown"
"""Key of an attempt's record under which `shown` is kept."""


@dataclass(frozen=True, eq=False)
class Group(Forgotten):
    """Requests of one kind that climb one ladder; `ladder` as configured, before the router."""

    name: str
    request_ids: tuple[str, ...]
    kind: str
    ladder: tuple[str, ...]


class Night:
    """One batch seen from any step: its data, its champion, its groups. Built anew in every task."""

    def __init__(self, workspace: Workspace, batch: Batch, champion: str):
        self.workspace, self.batch, self.champion_number = workspace, batch, champion
        self.params = workspace.params()
        self.folder = workspace.var / "nights" / batch.id
        self.plan = Bootstrap.of(self.params)

    def record(self, number: int) -> Path:
        """Where attempt `number` is kept."""
        return self.folder / f"attempt-{number}.json"

    @property
    def champion_curve(self) -> Path:
        """The attack's curve on the champion; no file where nobody is to be forgotten."""
        return self.folder / "champion-curve.json"

    @property
    def sealed_file(self) -> Path:
        return self.workspace.sealed / f"{self.batch.id}.parquet"

    @cached_property
    def champion(self) -> Bundle:
        return open_registry(self.workspace).bundle(self.champion_number)

    @cached_property
    def retained(self) -> Dataset:
        return load_dataset(self.workspace.prepared)

    @cached_property
    def _sealed(self) -> ForgetSet:
        return read_forget_set(self.sealed_file, self.retained)

    @property
    def forget(self) -> ForgetSet | None:
        """The forgotten rows; None where the prepared tables held none."""
        return self._sealed if len(self._sealed.items) else None

    @cached_property
    def restored(self) -> Dataset:
        return restore(self.retained, self._sealed)

    @cached_property
    def erased(self) -> Erased:
        return Erased(self.retained, self.restored, self.params.gates, self.plan, rules=rules.rules(self.params))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Those of whom nothing is left first: a copy of the champion serves them, and others may start from it.

        Then concepts, then people: what changes SIDs comes before what only edits the adapter.
        """
        params, data = self.params.unlearning, self.restored
        none = np.empty(0, np.int64)
        by_kind: dict[str, list] = {"concept": [], "item": [], "user": [], "interaction": [], ABSENT: []}
        for request_id, subject in self.batch.subjects:
            by_kind[subject.kind if data.holds(subject) else ABSENT].append((request_id, subject))
        found = []
        if by_kind[ABSENT]:
            ids = tuple(r for r, _ in by_kind[ABSENT])
            found.append(Group("the absent", none, none, ABSENT, ids, ABSENT, (UNTOUCHED, RETRAIN)))
        found += [
            Group(
                s.concept,
                none,
                data.concepts[s.concept],
                f"concept: {s.concept}",
                (r,),
                "concept",
                params.concept_ladder,
            )
            for r, s in by_kind["concept"]
        ]
        if by_kind["item"]:
            ids, subjects = zip(*by_kind["item"], strict=True)
            items = np.unique([data.item_index[s.item_id] for s in subjects])
            found.append(Group("the items", none, items, "items", tuple(ids), "item", params.concept_ladder))
        if by_kind["user"]:
            ids, subjects = zip(*by_kind["user"], strict=True)
            users = np.array([data.user_index[s.user_id] for s in subjects], np.int64)
            found.append(Group("the users", users, none, "users", tuple(ids), "user", params.user_ladder))
        if by_kind["interaction"]:
            ids = tuple(r for r, _ in by_kind["interaction"])
            found.append(Group("the interactions", none, none, "interactions", ids, "interaction", (RETRAIN,)))
        return tuple(found)

    @property
    def measured(self) -> bool:
        """Whether the champion has been measured on this night's data."""
        return (self.folder / "champion.npz").exists()

    @cached_property
    def before(self) -> Measured:
        """The champion on this night's data; measured once and kept."""
        path = self.folder / "champion.npz"
        if not self.measured:
            self.folder.mkdir(parents=True, exist_ok=True)
            measured = measure(self.erased, self.champion, self.groups)
            temporary = path.with_suffix(".tmp.npz")
            np.savez(temporary, top=measured.ranking.top, rank=measured.ranking.rank, nll=measured.ranking.nll)
            (self.folder / "champion.json").write_text(json.dumps(figures(measured.forgetting)))
            for people in measured.users.values():
                found = curve(people, measured.forgetting[ATTACK], self.plan.confidence)
                self.champion_curve.write_text(json.dumps(finite(found.as_dict())))
            os.replace(temporary, path)
        with np.load(path) as arrays:
            ranking = Ranking(arrays["top"], arrays["rank"], arrays["nll"])
        forgetting = json.loads((self.folder / "champion.json").read_text())
        return Measured(ranking, {name: Measure(**m) for name, m in forgetting.items()})


def erase_batch(night: Night) -> Erasure:
    """Seal the forget rows and remove them from the raw tables (safe to repeat)."""
    open_ledger(night.workspace).confirm()
    subjects = [subject for _, subject in night.batch.subjects]
    workspace = night.workspace
    return erase(workspace.data, workspace.prepared, subjects, night.sealed_file, workspace.pseudonym_key())


def attempt(night: Night, group_name: str, method_name: str, number: int, start: str | None, reason: str) -> dict:
    """Climb one rung: run the method on a copy of `start` (a candidate folder; None is the champion), judge, register.

    Returns the attempt as JSON: group, method, verdict, wall_s, reason, gates, diagnostics, figures, folder, version,
    start, and the calibration that carries its inconclusive forgetting gates. A repeat reads what the first run left:
    it was recorded before it was registered, and a bundle with another wall time would be another version.
    """
    record = night.record(number)
    if record.exists():
        result = json.loads(record.read_text())
    else:
        result = write_json(record, _climb(night, group_name, method_name, number, start, reason))
    if "version" in result:
        return _told(result)
    metrics = {name: m["value"] for name, m in {**result["utility"], **result["forgetting"]}.items()}
    metrics |= {f"gate.{gate['name']}": gate["value"] for gate in result["gates"]} | {"wall_s": result["wall_s"]}
    metrics = {name: value for name, value in metrics.items() if value is not None}
    folder = night.folder / result["folder"]
    version = register_candidate(
        open_registry(night.workspace), folder, load_bundle(folder).lineage, result, metrics, night.params.seed,
        group=group_name, **result.get("providers", {}),  # none in a record of an older version
    )  # fmt: skip
    return _told(write_json(record, result | {"version": version}))


def _told(result: dict) -> dict:
    """What the flow and the ledger hear of an attempt: what only the report shows stays in its record."""
    return {name: value for name, value in result.items() if name != SHOWN}


def shown(night: Night, groups: Sequence[Group], after: Measured) -> dict:
    """What the report shows of a judged candidate beside its gates (`genrec.evaluation.evidence`), ready for JSON."""
    people = [curve(u, after.forgetting[ATTACK], night.plan.confidence).as_dict() for u in after.users.values()]
    items = np.concatenate([group.items for group in groups])
    gone = night.champion.deny_mask().numpy()
    gone[np.concatenate([group.items for group in night.groups])] = True
    near = (
        neighbours(
            night.champion.table, night.champion.titles, items, gone, SHARED_LEVELS, night.before.ranking, after.ranking
        ).as_dict()
        if len(items)
        else None
    )
    return {"curve": people[0] if people else None, "neighbours": near}


def _climb(night: Night, group_name: str, method_name: str, number: int, start: str | None, reason: str) -> dict:
    """The attempt, judged; its bundle saved, and without `version` where there is one to register."""
    group = next(g for g in night.groups if g.name == group_name)
    chosen = method(method_name)
    bundle = load_bundle(night.folder / start) if start else night.champion
    _ = night.before  # measured before the clock starts
    problem = Problem(
        bundle, night.params, night.retained, night.restored, group.users, group.items,
        load_embeddings(night.workspace), night.batch.id, night.params.seed,
    )  # fmt: skip
    started = time.perf_counter()
    result = {"group": group.name, "label": group.label, "method": method_name, "reason": reason, "number": number}
    result["start"] = start
    result["carried"] = _plans(night)[group.name]["carried"].get(method_name)
    try:
        outcome = chosen.run(problem)
    except UnlearningError as error:
        result |= {"verdict": "FAIL", "reason": f"{reason} {error}".strip(), "gates": [], "diagnostics": {}}
        result |= {"wall_s": round(time.perf_counter() - started, 2), "folder": None, "version": None}
        return result
    wall = round(time.perf_counter() - started, 2)
    denied = {night.retained.item_ids[i] for i in group.items}
    candidate = replace(outcome.bundle, deny=tuple(sorted({*outcome.bundle.deny, *denied})), params=night.params)
    found, after = judge(
        night.erased, [group], bundle, night.champion, night.before, candidate,
        exact=chosen.exact, wall_s=wall, forget=night.forget,
    )  # fmt: skip
    found = carry(found, result["carried"])
    candidate = candidate.with_lineage(
        data_version=data_version(night.workspace.data_pin), code_version=code_version(), parent=night.champion_number,
        batch_id=night.batch.id, method=method_name, requests=night.batch.request_ids,
        utility_ratio=_utility_ratio(night, found, chosen.exact),
        retrain_s=wall if chosen.exact else bundle.lineage.retrain_s,
    )  # fmt: skip
    folder = f"{number}-{method_name}"
    save_bundle(candidate, night.folder / folder)
    result |= {
        "verdict": gates.decide(found, chosen.exact), "wall_s": wall, "exact": chosen.exact, "folder": folder,
        "gates": [gate.as_dict() for gate in found], "diagnostics": outcome.diagnostics,
        "utility": figures(utility(after.ranking, len(night.retained.item_ids), night.plan)),
        "forgetting": figures(after.forgetting), "providers": providers(method_name, found),
        "nll_increase": mean(after.ranking.nll - night.before.ranking.nll, night.plan).as_dict(),
        SHOWN: shown(night, [group], after),
    }  # fmt: skip
    return result


def judge_final(night: Night, last: dict, number: int) -> dict:
    """The whole batch's gates on the last candidate: a later group's edit must not undo an earlier one's."""
    record = night.record(number)
    if record.exists():
        return _told(json.loads(record.read_text()))
    candidate = load_bundle(night.folder / last["folder"])
    started = time.perf_counter()
    found, after = judge(
        night.erased, night.groups, night.champion, night.champion, night.before, candidate,
        exact=last["exact"], wall_s=last["wall_s"], forget=night.forget,
    )  # fmt: skip
    found = carry(found, last["carried"])  # people come after concepts: the last attempt's method served them
    result = {
        **last, "group": "final", "label": "the whole batch", "number": number,
        "reason": "Every gate again, for all requests of the night at once, on the last candidate.",
        "verdict": gates.decide(found, last["exact"]), "gates": [gate.as_dict() for gate in found], "diagnostics": {},
        "wall_s": round(time.perf_counter() - started, 2), "forgetting": figures(after.forgetting),
        SHOWN: shown(night, night.groups, after),
    }  # fmt: skip
    registry = open_registry(night.workspace)
    for gate in found:
        registry.tag(last["version"], f"final.{gate.name}", gate.verdict)
    return _told(write_json(record, result))


def _plans(night: Night) -> dict[str, dict]:
    return open_ledger(night.workspace).stage(night.batch.id).details["plans"]


def carry(found: Sequence[Gate], calibration: dict | None) -> list[Gate]:
    """The gates with those carried that the plan's `calibration` ({id, at, n}; None: nothing does) speaks for."""
    if calibration is None:
        return list(found)
    at = datetime.fromisoformat(calibration["at"])
    return [gates.by_calibration(gate, at, calibration["n"]) for gate in found]


def _utility_ratio(night: Night, found: Sequence[Gate], exact: bool) -> float:
    return 1.0 if exact else next(1 - gate.value for gate in found if gate.name == "drift")


def destroy_sealed(night: Night) -> None:
    """Remove the batch's forgotten rows for good."""
    open_ledger(night.workspace).confirm()
    night.sealed_file.unlink(missing_ok=True)


def discard_candidates(night: Night) -> None:
    """Remove the night's working folder; registered versions live in MLflow."""
    shutil.rmtree(night.folder, ignore_errors=True)


def tidy(workspace: Workspace) -> None:
    """What a run that was killed between closing its batch and its last line left to do: its folder is still there."""
    ledger = open_ledger(workspace)
    batch = ledger.open_batch()
    left = [f for f in (workspace.var / "nights").glob("*") if batch is None or f.name != batch.id]
    if left:
        scrub(ledger.engine)
    for folder in left:
        shutil.rmtree(folder)


def open_night(workspace: Workspace, batch_id: str) -> Night:
    """The open batch with this id. Raises RequestError when it is not open any more."""
    ledger = open_ledger(workspace)
    batch = ledger.open_batch()
    if batch is None or batch.id != batch_id:
        raise RequestError(f"Batch {batch_id} is not open. Start a new night: genrec night.")
    champion = ledger.stage(batch_id).details.get("champion_before") or open_registry(workspace).champion().number
    return Night(workspace, batch, champion)


def sid_changes(before: Bundle, after: Bundle) -> list[dict]:
    """Items whose SID moved, with titles."""
    from genrec.sid.table import sid_diff

    titles = dict(zip(before.table.item_ids, before.titles, strict=True))
    return [
        {"item_id": d["item_id"], "title": titles[d["item_id"]], "before": d["before"], "after": d["after"]}
        for d in sid_diff(before.table, after.table)
    ]


def bundle_hash(registry: Registry, number: str) -> str:
    return read_manifest(registry.bundle_path(number))["bundle_hash"]


def erasure_facts(erasure: Erasure) -> dict:
    """Counts for the ledger and the report; the digests stay out."""
    return {"rows": erasure.total, "users": erasure.users, "items": erasure.items}
