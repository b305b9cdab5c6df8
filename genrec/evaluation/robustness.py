"""Does forgetting last? Other serving forms of the same weights, an attacker who trains, an attacker who prompts."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import nn

from genrec.audit_params import RelearnParams
from genrec.data.sequences import Dataset
from genrec.errors import UnlearningError
from genrec.evaluation.ranking import Cases
from genrec.evaluation.shift import last_training_cases
from genrec.evaluation.statistics import Bootstrap, Measure, difference, wilson
from genrec.models.adapter import Adapter, adapted_model, adapter_state, fold
from genrec.models.beam import beam_search, by_length, encode_histories
from genrec.models.bundle import Bundle
from genrec.training.loop import Optimisation, train
from genrec.training.rows import Row, batch_loss, collate, cycle, shifted_chunks

INT8 = 127
"""Largest magnitude of symmetric int8; -128 is not used."""


@dataclass(frozen=True)
class Extraction:
    """Share of users whose last training item the model names when prompted with the rest of their history.

    forgotten, unseen: that share of either group (Wilson); difference: forgotten - unseen, resampling both groups.
    """

    forgotten: Measure
    unseen: Measure
    difference: Measure


def quantised(weight: torch.Tensor) -> torch.Tensor:
    """`weight` [out, in] rounded to int8 with one scale max|w| / 127 per row and back, in its own type.

    Each element moves by at most half its row's scale, and a second time moves nothing.
    """
    exact = weight.double()  # in float32 the scale of the result may differ by a bit, and so would a second rounding
    scale = exact.abs().amax(1, keepdim=True) / INT8
    scale = torch.where(scale > 0, scale, 1.0)
    return ((exact / scale).round() * scale).to(weight)


@torch.no_grad()
def int8(model: nn.Module) -> nn.Module:
    """A copy of a merged model (`Bundle.model()`) whose linear and embedding weights went through int8 and back.

    Symmetric, one scale per output channel of a linear layer and per token of an embedding. Simulated: weights hold
    the values int8 would give, activations and arithmetic stay float32; norms and biases are left as they are.
    """
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.copy_(quantised(module.weight))
    return rounded


def unmerged(bundle: Bundle) -> nn.Module:
    """The other serving form: LoRA layers and overlays kept apart from the backbone's weights."""
    return bundle.adapted()


def relearn_sample(rows: Sequence[Row], share: float, seed: int) -> np.ndarray:
    """Which of `rows` the relearning attacker holds: sorted indices int64, a share of them and at least one."""
    count = max(1, round(share * len(rows)))
    return np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])


def relearn(bundle: Bundle, rows: Sequence[Row], params: RelearnParams, seed: int = 0) -> Bundle:
    """What an attacker makes of `bundle` with a few steps on a share of the forget rows (`relearn_sample`).

    The adapter with its overlays folded in is trained further without dropout or weight decay, each row once before
    any again, the learning rate falling by a cosine. The result is for measuring and holds forgotten data: it must not
    be saved. Raises UnlearningError when there are no rows.
    """
    if len(rows) == 0:
        raise UnlearningError("There are no forget rows to relearn from. Give the training rows of forgotten users.")
    rng = np.random.default_rng([seed, 1])
    held = [rows[i] for i in relearn_sample(rows, params.share, seed)]
    held = shifted_chunks(held, bundle.params.architecture.window, rng)
    drawn = islice(cycle(len(held), params.batch_size, rng), params.steps)
    batches = [collate([held[i] for i in batch], bundle.table) for batch in drawn]
    start = fold(bundle.adapter, bundle.overlays)
    model = adapted_model(bundle.backbone, start)
    optimisation = Optimisation(params.learning_rate, 0.0, 0.0, bundle.params.train.clip_norm, seed)
    train(model, 1, lambda _: batches, batch_loss, optimisation)
    return replace(bundle, adapter=Adapter(start.rank, start.alpha, adapter_state(model)), overlays=())


def named(bundle: Bundle, model: nn.Module, cases: Cases, beam: int) -> np.ndarray:
    """Whether each case's target is among the `beam` items the beam search keeps, on the bare model: bool [n]."""
    found = np.zeros(len(cases.targets), bool)
    size, window = bundle.params.decoding.batch_size, bundle.params.architecture.window
    for part in by_length(cases.histories, window, size):
        prompts = encode_histories([cases.histories[i] for i in part], bundle.table, window).to(model.device)
        items = beam_search(model, prompts, bundle.index_on(model.device), beam)[0].cpu().numpy()
        found[part] = (items == cases.targets[part][:, None]).any(1)
    return found


def extraction(
    bundle: Bundle,
    model: nn.Module,
    restored: Dataset,
    forgotten: Sequence[int],
    unseen: Sequence[int],
    plan: Bootstrap,
    beam: int = 50,
) -> Extraction:
    """Prompt with each user's training history but its last item and look for this one among the top `beam`.

    forgotten, unseen: users of `restored`, the dataset that still holds the forgotten rows; a never-seen user's
    history is what training would have seen of it (`training_histories`). What the model says right of people it never
    saw is taste, not memory: only the difference speaks of memory. Extraction by prompting follows Carlini et al.
    (arXiv 2012.07805).
    """
    hits = [named(bundle, model, last_training_cases(restored, users), beam) for users in (forgotten, unseen)]
    rates = [wilson(int(h.sum()), len(h), plan.confidence) for h in hits]
    return Extraction(*rates, difference(*(h.astype(np.float64) for h in hits), plan))
