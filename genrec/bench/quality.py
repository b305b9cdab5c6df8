"""`genrec bench quality`: the served model, the same architecture trained whole, and rivals, in one evaluator.

Leave-one-out, full ranking, item level: each test item is ranked among the whole catalogue after all that came before
it, items already seen included. A seed changes the weights of the adapter, of the whole model and of SASRec; backbone
and SIDs, ItemKNN and popularity are one each. Figures are means over users of the mean over seeds, with bootstrap
intervals over users; ratios are paired by user.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from genrec.bench.candidates import Bench
from genrec.bench.cells import code_hash, content_key, kept
from genrec.evaluation.ranking import TOP, Cases, Ranking, held_out, rank, rank_scores, validation_cases
from genrec.evaluation.statistics import Bootstrap, Measure
from genrec.models.adapter import adapted_model
from genrec.progress import tracked
from genrec.rivals import RIVALS, SEEDED, check_rivals
from genrec.training.base import train_adapter, train_whole
from genrec.training.rows import trained_rows

SERVED, WHOLE, REFERENCE = "backbone + LoRA", "trained whole", "sasrec"
COMPARED = ("recall@10", "ndcg@10")
SINCE = " since it was resumed"


@dataclass(frozen=True)
class Order:
    """What is asked of the bench. whole: whether the architecture is trained whole as well."""

    seeds: int
    rivals: tuple[str, ...]
    whole: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """Raises ConfigError on an unknown rival."""
        return (SERVED, *((WHOLE,) if self.whole else ()), *check_rivals(self.rivals))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model on the test cases. seconds: of training and choosing the epoch; of SERVED of the adapter alone."""

    ranking: Ranking
    parameters: int
    seconds: float


def run(bench: Bench, order: Order, say: Callable[[str], None]) -> dict:
    """All models on all seeds, JSON-ready. Cells lie in the bench's folder, and those that are there are read."""
    cases, code, records = held_out(bench.dataset), code_hash(), []
    for name in tracked("models", order.models):
        seeds = order.seeds if name in (SERVED, WHOLE, *SEEDED) else 1
        for seed in range(bench.params.seed, bench.params.seed + seeds):
            key = cell_key(bench, name, seed, code)
            checkpoint = bench.folder / "checkpoints" / f"{key}.safetensors"
            measure = partial(cell, bench, cases, name, seed, checkpoint)
            record, reused = kept(bench.folder / "quality" / f"{key}.json", measure)
            figures = {key: values.mean() for key, values in _ranking(record).figures().items()}
            said = ", ".join(f"{key} {figures[key]:.4f}" for key in COMPARED)
            took = f"{record['seconds']:.1f} s{SINCE * record['resumed']}{' (reused)' * reused}"
            say(f"{name}, seed {seed}: {said}, {took}")
            records.append(record)
    rows = table(records, Bootstrap.of(bench.params))
    return {
        "ratio": round(rows[0]["ratio"]["ndcg@10"]["value"], 4),
        "compares": f"NDCG@10 of {rows[0]['compares']}",
        "users": len(bench.dataset.user_ids), "items": len(bench.dataset.item_ids), "rows": len(bench.dataset.items),
        "cases": len(cases.targets), "models": rows,
    }  # fmt: skip


def cell_key(bench: Bench, name: str, seed: int, code: str) -> str:
    """What a model's figures depend on, as one hash; those of a rival not on the bundle."""
    dataset, params = bench.dataset, bench.params
    facts = [code, name, seed, params.seed, repr(params.rivals), len(dataset.item_ids)]
    facts += [bench.identity] if name in (SERVED, WHOLE) else []
    return content_key(facts, [dataset.offsets, dataset.items, dataset.split])


def cell(bench: Bench, cases: Cases, name: str, seed: int, checkpoint: Path) -> dict:
    """Train and rank one model. rank: 0-based, -1 beyond the top 10, one per test case.

    A training that was interrupted goes on from `checkpoint`; then its seconds are those since then (`resumed`).
    """
    resumed = checkpoint.exists()
    if name == SERVED:
        fitted = served(bench, cases, seed, checkpoint)
    elif name == WHOLE:
        fitted = trained_whole(bench, cases, seed, checkpoint)
    else:
        started = time.perf_counter()
        rival = RIVALS[name](bench.dataset, bench.params.rivals, seed, checkpoint)
        seconds = time.perf_counter() - started
        fitted = Fitted(rank_scores(rival.scores, cases), rival.parameters, seconds)
    place = fitted.ranking.rank
    return {
        "model": name, "seed": seed, "parameters": fitted.parameters, "seconds": round(fitted.seconds, 1),
        "resumed": resumed,
        "coverage@10": fitted.ranking.coverage(len(bench.dataset.item_ids)),
        "rank": np.where(place < TOP, place, -1).tolist(),
    }  # fmt: skip


def served(bench: Bench, cases: Cases, seed: int, checkpoint: Path) -> Fitted:
    """The workspace's own bundle for its seed; for another, its backbone with an adapter trained from that seed."""
    bundle, params = bench.bundle, bench.params
    adapter, seconds = bundle.adapter, bundle.lineage.retrain_s
    if seed != params.seed:
        started = time.perf_counter()
        adapter = train_adapter(
            bundle.backbone, trained_rows(bench.dataset), bundle.table, params, seed=seed, checkpoint=checkpoint
        )[0]
        seconds = time.perf_counter() - started
    model = adapted_model(bundle.backbone, adapter).merge_and_unload()
    parameters = _parameters(model) + sum(tensor.numel() for tensor in adapter.state.values())
    return Fitted(rank(bundle, model, cases), parameters, seconds)


def trained_whole(bench: Bench, cases: Cases, seed: int, checkpoint: Path) -> Fitted:
    """All weights of the architecture on interactions; the epoch is chosen by validation NDCG@10."""
    bundle, params = bench.bundle, bench.params
    chosen_by = validation_cases(bench.dataset, params.rivals.validation_users, params.seed)

    def ndcg(model: nn.Module) -> float:
        return float(rank(bundle, model, chosen_by).ndcg(10).mean())

    started = time.perf_counter()
    model = train_whole(trained_rows(bench.dataset), bundle.table, params, seed, ndcg, checkpoint)
    seconds = time.perf_counter() - started
    return Fitted(rank(bundle, model, cases), _parameters(model), seconds)


def table(records: Sequence[dict], plan: Bootstrap) -> list[dict]:
    """One row per model, in order: figures with intervals, seeds apart, and ratios to SASRec and to the whole model."""
    names = list(dict.fromkeys(record["model"] for record in records))
    found = {name: [record for record in records if record["model"] == name] for name in names}
    by_seed = {name: [_ranking(record).figures() for record in found[name]] for name in names}
    keys = list(by_seed[names[0]][0])
    users = {
        name: np.stack([np.mean([figures[key] for figures in by_seed[name]], 0) for key in keys], 1) for name in names
    }  # per-user values [n, figures]
    measures, ratios = _pooled(users, plan)
    rows = []
    for name in names:
        row = {
            "model": name, "seeds": len(found[name]), "parameters": found[name][0]["parameters"],
            "seconds": float(np.mean([record["seconds"] for record in found[name]])),
            "resumed": sum(record["resumed"] for record in found[name]),
            "coverage@10": float(np.mean([record["coverage@10"] for record in found[name]])),
            "figures": {key: m.as_dict() for key, m in zip(keys, measures[name], strict=True)},
            "by_seed": {key: [float(figures[key].mean()) for figures in by_seed[name]] for key in COMPARED},
        }  # fmt: skip
        row |= _against(REFERENCE, name, keys, ratios, "")
        if name == SERVED and WHOLE in names:
            row |= _against(WHOLE, name, keys, ratios, "whole_")
        rows.append(row)
    return rows


def _against(other: str, name: str, keys: Sequence[str], ratios: Mapping, prefix: str) -> dict:
    pair = dict(zip(keys, ratios[name, other], strict=True))
    return {
        f"{prefix}ratio": {key: pair[key].as_dict() for key in COMPARED},
        f"{prefix}compares": f"{name} over {other}, paired by user",
    }


def _pooled(
    users: Mapping[str, np.ndarray], plan: Bootstrap
) -> tuple[dict[str, list[Measure]], dict[tuple[str, str], list[Measure]]]:
    """`statistics.mean` of every column and `statistics.ratio` of every two models, all on one set of resamples."""
    n, columns = next(iter(users.values())).shape
    weights = plan.weights(n)
    draws = {name: weights @ values / n for name, values in users.items()}
    means = {name: values.mean(0) for name, values in users.items()}

    def measured(value: np.ndarray, drawn: np.ndarray) -> list[Measure]:
        return [plan.interval(value[column], drawn[:, column], n) for column in range(columns)]

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {
            (a, b): measured(means[a] / means[b], draws[a] / draws[b])
            for a in users for b in (REFERENCE, WHOLE) if b in users
        }  # fmt: skip
    return {name: measured(means[name], draws[name]) for name in users}, ratios


def _ranking(record: dict) -> Ranking:
    return Ranking(np.empty((0, TOP), np.int64), np.array(record["rank"]), np.empty(0))


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def summary_rows(result: dict) -> list[dict]:
    """What the terminal shows."""
    return [
        {"model": row["model"], **{key: _shown(row["figures"][key]) for key in COMPARED},
         "ratio": _shown(row["ratio"]["ndcg@10"]), "seconds": round(row["seconds"], 1), "parameters": row["parameters"]}
        for row in result["models"]
    ]  # fmt: skip


def _shown(figure: dict) -> str:
    return f"{figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"
