"""Health probes: figures on a fixed sample of validation users, and the limits at which a training is stopped early.

- non-finite weights: weight tensors that hold NaN or infinity; with any of them nothing else is measured
- dead codes: share of a level's codes that no item has, of the worst level, dedup digits aside
- distinct items: different items in the top 10 over all users; a collapsed model has the same ten for everybody
- history effect: NLL of the targets after another user's history minus that after their own (nat/token). Stronger than
  blanking the history: a model that only notices that one is there shows no effect
- invalid SIDs: share of users whose greedy decoding without constraint is no item's SID

Nothing is drawn while a model trains, so that the weights are those of a training without probes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
from torch import nn

from genrec.config import Params, ProbeParams
from genrec.data.sequences import Dataset
from genrec.errors import TrainingError
from genrec.evaluation.ranking import TOP, Cases, target_rows, validation_cases
from genrec.models.beam import beam_search, encode_histories, greedy
from genrec.sid.index import DecodeIndex, build_index
from genrec.sid.table import SidTable
from genrec.training.rows import token_nll


@dataclass(frozen=True, eq=False)
class Probes:
    """cases: validation targets; swapped: the same targets, each after the history of another user of the sample."""

    cases: Cases
    swapped: Cases
    table: SidTable
    index: DecodeIndex
    window: int
    limits: ProbeParams

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Figures by name, of a model in eval mode."""
        broken = float(sum(not p.isfinite().all() for p in model.parameters()))
        figures = {"non-finite weights": broken, "dead codes": dead_codes(self.table)}
        if broken:
            return figures
        device = next(model.parameters()).device
        prompts = encode_histories(self.cases.histories, self.table, self.window).to(device)
        top = beam_search(model, prompts, self.index.to(device), TOP)[0]
        sids = {tuple(tokens) for tokens in self.table.tokens.tolist()}
        decoded = greedy(model, prompts, self.table.vocabulary.levels).tolist()
        return figures | {
            "distinct items": float(len(top[top >= 0].unique())),
            "history effect": self._nll(model, self.swapped) - self._nll(model, self.cases),
            "invalid SIDs": float(np.mean([tuple(tokens) not in sids for tokens in decoded])),
        }

    def _nll(self, model: nn.Module, cases: Cases) -> float:
        total, tokens = token_nll(model, target_rows(cases, self.window), self.table)
        return float(total.sum() / tokens.sum())

    def check(self, model: nn.Module) -> dict[str, float]:
        """`measure`. Raises TrainingError where a limit is passed."""
        figures = self.measure(model)
        check(figures, self.limits)
        return figures

    def watch(self) -> Callable[[nn.Module], bool]:
        """A `watch` of `genrec.training.loop.train` that checks every `probes.every` epochs and ends nothing itself."""
        epochs = count(1)

        def look(model: nn.Module) -> bool:
            if next(epochs) % self.limits.every == 0:
                self.check(model)
            return False

        return look


def prepare(dataset: Dataset, table: SidTable, params: Params) -> Probes:
    """The sample, drawn by `params.seed`. Raises DataError when fewer than two users have a validation item."""
    limits = params.probes
    cases = validation_cases(dataset, limits.users, params.seed)
    order = np.random.default_rng(params.seed).permutation(len(cases.users))
    other = np.empty(len(order), np.int64)
    other[order] = np.roll(order, 1)
    swapped = replace(cases, histories=tuple(cases.histories[i] for i in other))
    return Probes(cases, swapped, table, build_index(table), params.architecture.window, limits)


def dead_codes(table: SidTable) -> float:
    """Share of codes that no item has, in the level with most of them, dedup digits aside; in [0, 1]."""
    return max(
        1 - len(np.unique(codes)) / size
        for codes, size in zip(table.sids.T[:-1], table.vocabulary.sizes[:-1], strict=True)
    )


def check(figures: Mapping[str, float], limits: ProbeParams) -> None:
    """Raises TrainingError naming each probe that failed, its figure, its limit and a remedy; NaN fails."""
    most = {
        "non-finite weights": (0, "Lower train.learning_rate or train.clip_norm."),
        "dead codes": (limits.dead_codes, "Lower sid.codes, or set sid.quantiser to rq_kmeans."),
        "invalid SIDs": (limits.invalid_sids, "Raise backbone.visits or train.epochs."),
    }
    least = {
        "distinct items": (limits.distinct_items, "Everybody gets the same: lower train.learning_rate."),
        "history effect": (limits.history_effect, "The model ignores histories: lower train.learning_rate."),
    }
    failed = [
        f"{name} {figures[name]:.4g}, at most {limit:g}. {remedy}"
        for name, (limit, remedy) in most.items() if name in figures and not figures[name] <= limit
    ] + [
        f"{name} {figures[name]:.4g}, at least {limit:g}. {remedy}"
        for name, (limit, remedy) in least.items() if name in figures and not figures[name] >= limit
    ]  # fmt: skip
    if failed:
        raise TrainingError(f"Health probe failed: {' And: '.join(failed)} Limits: probes in params.yaml.")
