"""U-CAN+ in its first form, an ablation of `ucan_plus`: scale the weights of largest contrast, then repair briefly.

With C = (-g_f w) - (-g_r w), the attribution contrast of `ucan_plus`, and c in (0, 1] the rank of a weight by it among
all of the adapter's, t = 1 - share:

    s = 1 if c <= t else s_min + (1 - s_min) exp(-beta (c - t) / (1 - t)),    w <- s w

U-CAN's soft decay, on single weights. Then a few steps of AdamW on the labels of retained rows mend all weights:
L = NLL_r. Nothing bounds how far a forgotten row moves. With `floor` 0 and a large `decay` the top share is cut out.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from genrec.errors import UnlearningError
from genrec.models.adapter import Adapter, adapted_model, adapter_state
from genrec.progress import tracked
from genrec.training.loop import warmup_cosine
from genrec.training.rows import batch_loss, collate, token_batches
from genrec.unlearning.descent import forget_rows, retain_rows, start_adapter
from genrec.unlearning.problem import Method, Outcome, Problem
from genrec.unlearning.ucan_plus import contrast
from genrec.unlearning_params import UcanPlusAttenuateParams


def attenuation(contrast: dict[str, torch.Tensor], params: UcanPlusAttenuateParams) -> dict[str, torch.Tensor]:
    """Scale s in [s_min, 1] of every weight from its contrast, by parameter name; ties by place."""
    everything = torch.cat([c.flatten() for c in contrast.values()])
    rank = torch.empty_like(everything, dtype=torch.float64)
    places = torch.arange(1, len(everything) + 1, dtype=torch.float64, device=rank.device)
    rank[everything.argsort(stable=True)] = places / len(everything)
    over = (rank - (1 - params.share)) / params.share  # above 0 for the top share, 1 for the largest
    decayed = params.floor + (1 - params.floor) * (-params.decay * over).exp()
    parts = torch.where(over > 0, decayed, 1.0).to(everything).split([c.numel() for c in contrast.values()])
    return {name: part.view_as(c) for (name, c), part in zip(contrast.items(), parts, strict=True)}


def ucan_plus_attenuate(problem: Problem) -> Outcome:
    """Scale, then repair. Raises UnlearningError with nothing to forget or a gradient not finite."""
    params, bundle = problem.params.unlearning.ucan_plus_attenuate, problem.bundle
    table, levels = bundle.table, bundle.table.vocabulary.levels
    rng = np.random.default_rng(problem.seed)
    forget, retain = forget_rows(problem), retain_rows(problem)
    start = start_adapter(problem)
    model = adapted_model(bundle.backbone, start)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    scales = attenuation(contrast(model, forget, retain, table, params.contrast_rows, rng), params)
    with torch.no_grad():
        for name, p in weights.items():
            p *= scales[name]
    optimiser = torch.optim.AdamW(weights.values(), lr=params.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    loss, warmup = torch.zeros(()), max(1, params.steps // 10)
    drawn = token_batches(retain, levels, params.batch_tokens, rng)
    for step, kept in zip(tracked("ucan_plus_attenuate", range(params.steps)), drawn, strict=False):
        loss = batch_loss(model, collate(kept, table))
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights.values(), problem.params.train.clip_norm)
        if not norm.isfinite():
            raise UnlearningError(
                "The repair's gradient is not finite. Lower unlearning.ucan_plus_attenuate.learning_rate."
            )
        optimiser.param_groups[0]["lr"] = params.learning_rate * warmup_cosine(step, params.steps, warmup)
        optimiser.step()
    adapter = Adapter(start.rank, start.alpha, adapter_state(model))
    everything = torch.cat([scale.flatten() for scale in scales.values()])
    figures = {
        "attenuated_share": float((everything < 1).float().mean()), "mean_scale": float(everything.mean()),
        "repair_loss": loss.item(),
    }  # fmt: skip
    return Outcome(replace(bundle, adapter=adapter, overlays=()), figures)


METHOD = Method("ucan_plus_attenuate", ucan_plus_attenuate)
