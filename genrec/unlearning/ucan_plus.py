"""U-CAN+ (ours): U-CAN's three ideas - contrast, utility, softness - with a contrast that sees memorisation.

- Contrast. To first order, removing an adapter weight w changes a loss by -g w (g its gradient). From one backward pass
  over forgotten rows and one over as many retained rows,

      C = (-g_f w) - (-g_r w)

  says how much more the removal costs the forgotten than the retained. Only the `share` of the weights with the largest
  C may change.
- Softness. Those weights are not scaled down by a rule but moved by a few steps of AdamW on

      L = KL(p_start || p) on retained rows + lambda mean_i |NLL_i - NLL_i(start) - rise|

  over forgotten rows i: each is brought to where it is `rise` nat per token less likely than it was, about what a model
  that never saw it would say. The bound has two sides: without the way back a few people's rows overshoot it four
  times over, which over-forgets them and costs everybody else.
- Utility. The KL term holds the model where it was for those who stay, and has far less noise than their labels.

Its first form (scale the top share of C down, then repair on labels) is `ucan_plus_attenuate`, measured in
benchmarks/RESULTS.md: the same forgetting cost several times the likelihood. Like every method that trains it returns
a new adapter, the overlays folded in; its relative without contrast and bound is `graddiff` with the KL retain term.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from genrec.errors import UnlearningError
from genrec.models.adapter import Adapter, adapted_model, adapter_state
from genrec.progress import tracked
from genrec.sid.table import SidTable
from genrec.training.loop import warmup_cosine
from genrec.training.rows import Row, batch_loss, bucketed, collate, token_batches
from genrec.unlearning.descent import forget_rows, reference_model, retain_rows, sequence_log_p, start_adapter
from genrec.unlearning.graddiff import kl_from
from genrec.unlearning.problem import Method, Outcome, Problem

BATCH_TOKENS = 6400
"""Tokens per pass of the contrast, padding counted."""


def attribution(model: nn.Module, rows: Sequence[Row], table: SidTable) -> dict[str, torch.Tensor]:
    """-g w of every trainable weight, g the gradient of the mean NLL per token over `rows`: by parameter name."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    tokens = 0
    for part in bucketed(rows, table.vocabulary.levels, BATCH_TOKENS, np.random.default_rng(0)):
        batch = collate(part, table)
        count = int((batch.labels >= 0).sum())
        gradients = torch.autograd.grad(batch_loss(model, batch) * count, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            total[name] += gradient
        tokens += count
    return {name: -(total[name] / max(tokens, 1)) * weights[name].detach() for name in weights}


def contrast(
    model: nn.Module, forget: Sequence[Row], retain: Sequence[Row], table: SidTable, rows: int, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """C of every trainable weight, by parameter name, on `rows` rows of either side, fewer where there are fewer."""
    samples = [
        [side[i] for i in rng.choice(len(side), min(rows, len(forget), len(side)), replace=False)]
        for side in (forget, retain)
    ]
    f, r = (attribution(model, sample, table) for sample in samples)
    return {name: f[name] - r[name] for name in f}


def chosen_weights(contrast: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The `share` of all weights with the largest contrast: a mask of 0 and 1 per parameter name."""
    everything = torch.cat([c.flatten() for c in contrast.values()])
    count = max(1, round(share * len(everything)))
    mask = torch.zeros_like(everything)
    mask[everything.topk(count).indices] = 1.0
    parts = mask.split([c.numel() for c in contrast.values()])
    return {name: part.view_as(c) for (name, c), part in zip(contrast.items(), parts, strict=True)}


def row_nll(model: nn.Module, rows: Sequence[Row], table: SidTable) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean NLL per token of each row (nat) and its number of tokens: float32 and int64 [rows]."""
    log_p, count = sequence_log_p(model, collate(rows, table))
    return -log_p / count, count


def ucan_plus(problem: Problem) -> Outcome:
    """Choose the weights, then move them. Raises UnlearningError with nothing to forget or a gradient not finite."""
    params, bundle = problem.params.unlearning.ucan_plus, problem.bundle
    table, levels = bundle.table, bundle.table.vocabulary.levels
    rng = np.random.default_rng(problem.seed)
    forget, retain = forget_rows(problem), retain_rows(problem)
    start = start_adapter(problem)
    model, reference = adapted_model(bundle.backbone, start), reference_model(problem)
    mask = chosen_weights(contrast(model, forget, retain, table, params.contrast_rows, rng), params.share)
    with torch.no_grad():
        began = {}
        for part in bucketed(forget, levels, BATCH_TOKENS, np.random.default_rng(0)):
            began |= dict(zip(map(id, part), row_nll(reference, part, table)[0], strict=True))

    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(weights.values(), lr=params.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    drawn = (token_batches(rows, levels, params.batch_tokens, rng) for rows in (forget, retain))
    warmup = max(1, params.steps // 10)
    risen = held = torch.zeros(())
    for step, (forgotten, kept) in zip(
        tracked("ucan_plus", range(params.steps)), zip(*drawn, strict=False), strict=False
    ):
        nll, count = row_nll(model, forgotten, table)
        risen = nll - torch.stack([began[id(row)] for row in forgotten])
        away = ((risen - params.forget_rise).abs() * count).sum() / count.sum()
        held = kl_from(reference, model, collate(kept, table))
        optimiser.zero_grad()
        (held + params.forget_weight * away).backward()
        for name, p in weights.items():
            p.grad *= mask[name]
        norm = nn.utils.clip_grad_norm_(weights.values(), problem.params.train.clip_norm)
        if not norm.isfinite():
            raise UnlearningError("U-CAN+'s gradient is not finite. Lower unlearning.ucan_plus.learning_rate.")
        optimiser.param_groups[0]["lr"] = params.learning_rate * warmup_cosine(step, params.steps, warmup)
        optimiser.step()
    adapter = Adapter(start.rank, start.alpha, adapter_state(model))
    figures = {"rise_nat_per_token": risen.mean().item(), "retained_kl": held.item()}
    return Outcome(replace(bundle, adapter=adapter, overlays=()), figures)


METHOD = Method("ucan_plus", ucan_plus)
