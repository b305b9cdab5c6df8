"""U-CAN (arXiv 2602.23400): contrastive attenuation of the adapter, one shot, forward passes only.

*Reconstruction*: the paper's exact formulas are not public; these are those of methods.md. Adapter site m computes
y = x W0 + (alpha/r) x A^T B^T. Per dimension j of one axis, over the forget users D_f and a sample of retained users
D_r, with h = A x and N_r(z) = sqrt(mean z^2) over D_r:

- contrast  C_j = max(0, (a_f - a_r) / (a_r + eps)),  a = mean |activation of j|, per-user means first
- utility   U_j = magnitude of the weights of j x retain norm of what they multiply
- risk      R = lambda C^ + (1 - lambda)(1 - U^),  ^ = rank within the site, scaled to [0, 1]
- decay     s = 1 if R <= t else s_min + (1 - s_min) exp(-beta (R - t) / (1 - t)),  t = quantile of R

| axis | activation | utility | s scales |
| --- | --- | --- | --- |
| out | (alpha/r) (B h)_j | sum_k abs(B_jk) N_r(h_k) | rows of B |
| rank | h_k, A and B canonical | sum_j abs(B_jk) N_r(h_k) | canonical components (`models.adapter.canonical`) |
| in | x_i | sum_k abs(A_ki) N_r(x_i) | columns of A |

A and B stay as they are: s is an overlay, and it is computed from A and B without the overlays of other requests, so
that the order of requests matters only through the sample of retained users.

Ablations: `ucan_without_contrast` (lambda = 0), `ucan_without_utility` (lambda = 1), `hard_prune` (no soft decay). The
paper names its components C, F and H; that these are contrast, utility (fidelity) and the soft decay is our reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import nn

from genrec.data.sequences import Dataset
from genrec.errors import UnlearningError
from genrec.models.adapter import Axis, Overlay, adapted_model, canonicalise, lora_sites, weight_names
from genrec.models.bundle import Bundle
from genrec.progress import tracked
from genrec.sid.table import Vocabulary
from genrec.training.rows import bucketed, chunk_all, collate
from genrec.unlearning.problem import Method, Outcome, Problem
from genrec.unlearning_params import UcanParams

EPS = 1e-8


@dataclass(frozen=True)
class Activations:
    """Per-user means at one site over the tokens: absolute value of each dimension's activation, float64 [users, d],
    and square of what its weights multiply, float64 [users, r] (axes out, rank) or [users, d_in] (axis in).
    """

    magnitude: np.ndarray
    square: np.ndarray


@torch.inference_mode()
def stream_activations(
    bundle: Bundle, model: nn.Module, dataset: Dataset, users: Sequence[int], axis: Axis = "out"
) -> dict[str, Activations]:
    """Means over the tokens of each user's training rows, site by site, in fp32 forward passes.

    For the rank axis `model` has to carry the canonical adapter.
    """
    histories = [(int(u), dataset.training_rows(u)) for u in users]
    rows = chunk_all(histories, bundle.params.architecture.window)
    place = {user: i for i, (user, _) in enumerate(histories)}
    captured: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(site: str, scaling: float):
        def capture(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            activation = output * scaling if axis == "out" else inputs[0]
            captured[site] = (activation.abs(), inputs[0].square())

        return capture

    handles = []
    for site, layer in lora_sites(model).items():
        part = layer.lora_A if axis == "in" else layer.lora_B
        handles.append(part["default"].register_forward_hook(hook(site, layer.scaling["default"])))
    sums: dict[str, list[np.ndarray]] = {}
    tokens = np.zeros(len(histories))
    try:
        passes = bucketed(rows, bundle.table.vocabulary.levels, 25_600, np.random.default_rng(0))
        for part in tracked("activations", passes):
            batch = collate(part, bundle.table).beside(model)
            keep = batch.tokens != Vocabulary.PAD
            model(input_ids=batch.tokens, use_cache=False)
            where = [place[row.user] for row in part]
            np.add.at(tokens, where, keep.sum(1).cpu().numpy())
            for site, pair in captured.items():
                slot = sums.setdefault(site, [np.zeros((len(histories), t.shape[-1])) for t in pair])
                for total, tensor in zip(slot, pair, strict=True):
                    np.add.at(total, where, (tensor * keep[..., None]).sum(1).double().cpu().numpy())
    finally:
        for handle in handles:
            handle.remove()
    count = np.maximum(tokens, 1)[:, None]
    return {site: Activations(magnitude / count, square / count) for site, (magnitude, square) in sums.items()}


def contrast(forget: np.ndarray, retain: np.ndarray) -> np.ndarray:
    """C [d] from per-user means [users, d] of both sides."""
    a_f, a_r = forget.mean(0), retain.mean(0)
    return np.maximum(0.0, (a_f - a_r) / (a_r + EPS))


def _unit_rank(x: np.ndarray) -> np.ndarray:
    return (rankdata(x) - 1) / max(len(x) - 1, 1)


def utility(a: np.ndarray, b: np.ndarray, norm: np.ndarray, axis: Axis) -> np.ndarray:
    """U [d] from A [r, d_in], B [d_out, r] and the retain norm of what the axis' weights multiply."""
    if axis == "out":
        return np.abs(b) @ norm
    return np.abs(b if axis == "rank" else a).sum(0) * norm


def attenuation(c: np.ndarray, u: np.ndarray, params: UcanParams) -> np.ndarray:
    """Scale s in [s_min, 1] of each dimension from contrast and utility, both [d]."""
    risk = params.risk_weight * _unit_rank(c) + (1 - params.risk_weight) * (1 - _unit_rank(u))
    t = np.quantile(risk, params.quantile)
    scale, risky = np.ones(len(risk)), risk > t
    decay = np.exp(-params.decay * (risk[risky] - t) / max(1 - t, EPS))
    scale[risky] = params.floor + (1 - params.floor) * decay
    return scale


def split_half_reliability(activations: dict[str, Activations], retain: dict[str, Activations], seed: int) -> float:
    """Mean Spearman correlation over sites of C computed on two random halves of the forget users.

    About 0 says that the contrast carries no information on these users; nan when there are fewer than 4.
    """
    users = len(next(iter(activations.values())).magnitude)
    if users < 4:
        return float("nan")
    order = np.random.default_rng(seed).permutation(users)
    first, second = order[: users // 2], order[users // 2 :]
    found = []
    for site, a in activations.items():
        halves = [contrast(a.magnitude[half], retain[site].magnitude) for half in (first, second)]
        found.append(spearmanr(*halves)[0])
    return float(np.nanmean(found))


def attenuate(problem: Problem, params: UcanParams) -> Outcome:
    """Attenuate the adapter for the forgotten users.

    Raises UnlearningError when none of them was trained on, and for T5, which has no one activation per token.
    """
    bundle, axis = problem.bundle, params.axis
    if bundle.backbone.config["model_type"] == "t5":
        raise UnlearningError(
            "U-CAN reads one activation per token, and T5 encodes a history anew for every target. "
            "Take ucan and hard_prune out of unlearning.user_ladder; ucan_plus and retrain work on T5."
        )
    forgotten = [u for u in problem.users if len(problem.restored.training_rows(u))]
    if not forgotten:
        raise UnlearningError("None of the users to forget has training rows: there is nothing to attenuate.")
    rng = np.random.default_rng(problem.seed)
    sample = rng.choice(problem.retained_users, min(params.retain_users, len(problem.retained_users)), replace=False)
    adapter = canonicalise(bundle.adapter, bundle.adapter.sites) if axis == "rank" else bundle.adapter
    model = adapted_model(bundle.backbone, adapter)
    forget = stream_activations(bundle, model, problem.restored, forgotten, axis)
    retain = stream_activations(bundle, model, problem.retained, sample, axis)
    scales = {}
    for site in adapter.sites:
        a, b = (adapter.state[name].double().numpy() for name in weight_names(site))
        u = utility(a, b, np.sqrt(retain[site].square.mean(0)), axis)
        s = attenuation(contrast(forget[site].magnitude, retain[site].magnitude), u, params)
        scales[site] = torch.tensor(s, dtype=torch.float32)
    others = tuple(o for o in bundle.overlays if o.batch_id != problem.batch_id)
    everything = torch.cat(list(scales.values()))
    return Outcome(
        replace(bundle, overlays=(*others, Overlay(problem.batch_id, scales, axis))),
        {
            "split_half_correlation": split_half_reliability(forget, retain, problem.seed),
            "attenuated_share": float((everything < 1).float().mean()),
            "mean_scale": float(everything.mean()),
        },
    )


def ucan(problem: Problem) -> Outcome:
    """`attenuate` with the section unlearning.ucan of the problem's parameters."""
    return attenuate(problem, problem.params.unlearning.ucan)


def _ablation(name: str, risk_weight: float) -> Method:
    def run(problem: Problem) -> Outcome:
        params = problem.params.unlearning.ucan.model_copy(update={"risk_weight": risk_weight})
        return attenuate(problem, params)

    return Method(name, run)


METHOD = Method("ucan", ucan)
WITHOUT_CONTRAST = _ablation("ucan_without_contrast", risk_weight=0.0)
WITHOUT_UTILITY = _ablation("ucan_without_utility", risk_weight=1.0)
