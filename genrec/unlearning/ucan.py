"""U-CAN (arXiv 2602.23400): contrastive attenuation of the adapter, one shot, forward passes only.

*Reconstruction*: the paper's exact formulas are not public; these are those of methods.md. Adapter site m computes
y = x W0 + (alpha/r) x A^T B^T. Per output dimension j over the forget users D_f and a sample of retained users D_r:

- contrast  C_j = max(0, (a_f - a_r) / (a_r + eps)),  a = mean |adapter output|, per-user means first
- utility   U_j = sum_k |B_jk| N_r(h_k),  N_r = sqrt(mean h^2) over D_r, h = A x
- risk      R = lambda C^ + (1 - lambda)(1 - U^),  ^ = rank within the site, scaled to [0, 1]
- decay     s = 1 if R <= t else s_min + (1 - s_min) exp(-beta (R - t) / (1 - t)),  t = quantile of R

A and B stay as they are: s is an overlay on the rows of B.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import nn

from genrec.config import UcanParams
from genrec.data.sequences import Dataset
from genrec.errors import UnlearningError
from genrec.models.adapter import Overlay, lora_sites
from genrec.models.bundle import Bundle
from genrec.sid.table import Vocabulary
from genrec.training.rows import bucketed, chunk_all, collate
from genrec.unlearning.problem import Method, Outcome, Problem

EPS = 1e-8


@dataclass(frozen=True)
class Activations:
    """Per-user means at one site: output |alpha/r B h| float64 [users, d_out], square of h float64 [users, r]."""

    output: np.ndarray
    hidden_square: np.ndarray


@torch.inference_mode()
def stream_activations(
    bundle: Bundle, model: nn.Module, dataset: Dataset, users: Sequence[int]
) -> dict[str, Activations]:
    """Means over the tokens of each user's training rows, site by site, in fp32 forward passes."""
    histories = [(int(u), dataset.training_rows(u)) for u in users]
    rows = chunk_all(histories, bundle.params.architecture.window)
    place = {user: i for i, (user, _) in enumerate(histories)}
    sites = lora_sites(model)
    captured: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(site: str):
        def capture(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            captured[site] = (output.abs() * sites[site].scaling["default"], inputs[0].square())

        return capture

    handles = [layer.lora_B["default"].register_forward_hook(hook(site)) for site, layer in sites.items()]
    sums: dict[str, list[np.ndarray]] = {}
    tokens = np.zeros(len(histories))
    try:
        for part in bucketed(rows, bundle.table.vocabulary.levels, 25_600, np.random.default_rng(0)):
            batch = collate(part, bundle.table)
            keep = batch.tokens != Vocabulary.PAD
            model(input_ids=batch.tokens, use_cache=False)
            where = [place[row.user] for row in part]
            np.add.at(tokens, where, keep.sum(1).numpy())
            for site, pair in captured.items():
                slot = sums.setdefault(site, [np.zeros((len(histories), t.shape[-1])) for t in pair])
                for total, tensor in zip(slot, pair, strict=True):
                    np.add.at(total, where, (tensor * keep[..., None]).sum(1).double().numpy())
    finally:
        for handle in handles:
            handle.remove()
    count = np.maximum(tokens, 1)[:, None]
    return {site: Activations(output / count, square / count) for site, (output, square) in sums.items()}


def contrast(forget: np.ndarray, retain: np.ndarray) -> np.ndarray:
    """C [d] from per-user means [users, d] of both sides."""
    a_f, a_r = forget.mean(0), retain.mean(0)
    return np.maximum(0.0, (a_f - a_r) / (a_r + EPS))


def _unit_rank(x: np.ndarray) -> np.ndarray:
    return (rankdata(x) - 1) / max(len(x) - 1, 1)


def attenuation(c: np.ndarray, utility: np.ndarray, params: UcanParams) -> np.ndarray:
    """Scale s in (0, 1] of each dimension from contrast and utility, both [d]."""
    risk = params.risk_weight * _unit_rank(c) + (1 - params.risk_weight) * (1 - _unit_rank(utility))
    t = np.quantile(risk, params.quantile)
    decayed = params.floor + (1 - params.floor) * np.exp(-params.decay * (risk - t) / max(1 - t, EPS))
    return np.where(risk <= t, 1.0, decayed)


def split_half_reliability(activations: dict[str, Activations], retain: dict[str, Activations], seed: int) -> float:
    """Mean Spearman correlation over sites of C computed on two random halves of the forget users.

    About 0 says that the contrast carries no information on these users; nan when there are fewer than 4.
    """
    users = len(next(iter(activations.values())).output)
    if users < 4:
        return float("nan")
    order = np.random.default_rng(seed).permutation(users)
    first, second = order[: users // 2], order[users // 2 :]
    halves = [
        spearmanr(contrast(a.output[first], retain[s].output), contrast(a.output[second], retain[s].output))[0]
        for s, a in activations.items()
    ]
    return float(np.nanmean(halves))


def ucan(problem: Problem) -> Outcome:
    """Attenuate the adapter for the forgotten users. Raises UnlearningError when none of them was trained on."""
    params = problem.params.unlearning.ucan
    others = tuple(o for o in problem.bundle.overlays if o.batch_id != problem.batch_id)
    bundle = replace(problem.bundle, overlays=others)  # a repeat measures what the first run measured
    forgotten = [u for u in problem.users if len(problem.restored.training_rows(u))]
    if not forgotten:
        raise UnlearningError("None of the users to forget has training rows: there is nothing to attenuate.")
    rng = np.random.default_rng(problem.seed)
    sample = rng.choice(problem.retained_users, min(params.retain_users, len(problem.retained_users)), replace=False)
    model = bundle.adapted()
    forget = stream_activations(bundle, model, problem.restored, forgotten)
    retain = stream_activations(bundle, model, problem.retained, sample)
    scales = {}
    for site, layer in lora_sites(model).items():
        b = layer.lora_B["default"].weight.detach().abs().double().numpy()
        utility = b @ np.sqrt(retain[site].hidden_square.mean(0))
        s = attenuation(contrast(forget[site].output, retain[site].output), utility, params)
        scales[site] = torch.tensor(s, dtype=torch.float32)
    overlay = Overlay(problem.batch_id, scales)
    everything = torch.cat(list(scales.values()))
    return Outcome(
        replace(bundle, overlays=(*others, overlay)),
        {
            "split_half_correlation": split_half_reliability(forget, retain, problem.seed),
            "attenuated_share": float((everything < 1).float().mean()),
            "mean_scale": float(everything.mean()),
        },
    )


METHOD = Method("ucan", ucan)
