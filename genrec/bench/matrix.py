"""The bench's matrix: every method on every erasure, each cell written once, so that an interrupted bench resumes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.bench.candidates import ORIGINAL, RETRAINED, Bench, Case, run
from genrec.bench.cells import code_hash, content_key, kept
from genrec.bench.erasures import Erasure
from genrec.config import Params
from genrec.errors import ConfigError, unknown
from genrec.evaluation.rules import rules
from genrec.plugins import Plugin
from genrec.progress import tracked
from genrec.unlearning import METHODS, plugins


def check_methods(names: Sequence[str]) -> tuple[str, ...]:
    """`original` and `retrain` first, then `names` in order. Raises ConfigError listing the known methods."""
    known = METHODS.keys() | plugins().keys()
    for name in names:
        if name not in known and name != ORIGINAL:
            raise ConfigError(unknown("method", name, known, "Give them as --methods a,b,c."))
    return tuple(dict.fromkeys((ORIGINAL, RETRAINED, *names)))


def cell_key(bench: Bench, erasure: Erasure, name: str, code: str) -> str:
    """What a cell depends on, as one hash: what all of them do, and the erasure."""
    return content_key([*shared_facts(bench, code, name), erasure.label, erasure.seed], [erasure.users, erasure.items])


def shared_facts(bench: Bench, code: str, *names: str) -> list:
    """What figures of the methods `names` depend on whatever is erased: base model, code, parameters, limits, cases."""
    params = bench.params
    settings = [params.gates, params.relearn, params.unlearning.model_dump(exclude={"user_ladder", "concept_ladder"})]
    facts = [bench.identity, code, *names, params.seed, repr(settings), params.bench.max_cases, bench.split]
    others = [plugin.code_hash() for plugin in _others(params, names)]
    return [*facts, params.plugins.model_dump(mode="json"), *others]


def _others(params: Params, names: Sequence[str]) -> list[Plugin]:
    """The plugins that have a part in it: each method that is one, and every gate."""
    methods = plugins()
    return [*(methods[name] for name in names if name in methods), *(rule.plugin for rule in rules(params))]


def fill(
    bench: Bench, erasures: Sequence[Erasure], methods: Sequence[str], say: Callable[[str], None] = print
) -> list[dict]:
    """The record of every method on every erasure; those on disk are read, the others measured and written."""
    records, code, everything = [], code_hash(), check_methods(methods)
    done: set[tuple[bytes, bytes]] = set()
    for erasure in tracked("erasures", erasures):
        case, what = Case(bench, erasure), (erasure.users.tobytes(), erasure.items.tobytes())
        again = what in done  # the original and the retrained model do not depend on a method's seed
        done.add(what)
        for name in (n for n in everything if not (again and n in (ORIGINAL, RETRAINED))):
            path = bench.folder / "cells" / f"{cell_key(bench, erasure, name, code)}.json"
            record, reused = kept(path, lambda case=case, name=name: run(case, name))
            took = f"{record['seconds']:.1f} s" if "seconds" in record else record["reason"]
            say(f"{erasure.label}, seed {erasure.seed}, {name}: {record['verdict']}, {took}{' (reused)' * reused}")
            records.append(record)
    return records


@dataclass(frozen=True)
class Pooled:
    """One figure over seeds: the mean of the values, and of both ends of the intervals (so it never looks narrower than
    one seed's interval); n of the first."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    seeds: int


def pool(figures: Sequence[dict]) -> Pooled:
    def average(key: str) -> float | None:
        found = [figure[key] for figure in figures if figure[key] is not None]
        return float(np.mean(found)) if found else None

    return Pooled(average("value"), average("low"), average("high"), figures[0]["n"], len(figures))


COSTS = ("seconds", "share_of_retraining", "peak_mib", "peak_above_start_mib", "peak_gpu_mib")


def spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, min and max of what was measured; None where nothing was."""
    found = [value for value in values if value is not None]
    return {"mean": float(np.mean(found)), "min": min(found), "max": max(found)} if found else None


def table(records: Sequence[dict]) -> list[dict]:
    """One row per label and method: pooled figures, gate verdicts counted over seeds, the spread of cost over seeds."""
    rows = []
    for label, name in dict.fromkeys((r["label"], r["method"]) for r in records):
        cells = [r for r in records if (r["label"], r["method"]) == (label, name)]
        done = [r for r in cells if r["figures"]]
        row: dict = {
            "label": label,
            "method": name,
            "seeds": len(cells),
            "verdicts": _count(r["verdict"] for r in cells),
        }
        if done:
            row["gates"] = {
                gate: _count(g["verdict"] for r in done for g in r["gates"] if g["name"] == gate)
                for gate in dict.fromkeys(g["name"] for r in done for g in r["gates"])
            }
            row["figures"] = {key: vars(pool([r["figures"][key] for r in done])) for key in done[0]["figures"]}
            row |= {key: spread(r[key] for r in done) for key in COSTS}
        else:
            row["reason"] = cells[0]["reason"]
        rows.append(row)
    return rows


def _count(verdicts) -> dict[str, int]:
    found = list(verdicts)
    return {verdict: found.count(verdict) for verdict in dict.fromkeys(found)}
