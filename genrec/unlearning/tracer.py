"""TRACER (arXiv 2606.07688): forget a concept by moving its items to other SIDs and its probability to near items.

For concept item i, level l, code k a score phi (zero at start):
    q_phi(s_i^l = k) = softmax_k((-||r_i^l - c_k^l||^2 + phi^l_{i,k}) / tau),  soft token e~_i^l = sum_k q e_k^l
    L = L_R + l1 L_F + l2 L_Coh + l3 L_reg
L_R: NLL of retained targets. L_F: + mean log p(concept SID | history), under the soft target distribution, bounded from
below. L_Coh: - mean log p of a near retained item on the same history. L_reg: sum |phi| / #concept items.
Selective update of phi alone: M = 1[rho_l(k) > E_q rho_l] * 1[dL_F/dphi > 0], rho_l(k) the share of retained items with
code k at level l, the gradient of L_F in its own pass. Trainable: adapter and phi; backbone and codebooks are frozen.
Commit: s_i^l = argmax_k q_phi with new dedup digits.

Ours: tau starts as the median top-2 gap of squared distances (at the published .005 phi cannot move) and sharpens over
the run, so that the soft likelihood that is pushed down ends as the hard one that is served; L_F stops pushing an item
once it is `forget_margin` nat less likely than a uniform guess; AdamW; a code already reassigned by an earlier request
keeps its place at phi = 0 through a fixed offset.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from genrec.config import TracerParams
from genrec.data.sequences import TRAIN
from genrec.errors import UnlearningError
from genrec.models.adapter import Adapter, adapted_model, adapter_state, fold
from genrec.sid.quantise import Codebooks, residuals_along, squared_distances
from genrec.sid.table import SidTable, reassign
from genrec.training.base import nearest_items
from genrec.training.rows import Row, batch_loss, chunk, chunk_all, collate
from genrec.unlearning.problem import Method, Outcome, Problem

MARGIN = 1e-3
"""By how much, in units of tau, a stored code beats every other one at phi = 0."""


@dataclass(frozen=True)
class SoftSids:
    """The soft assignment of the concept items.

    logits0: how much farther each code is than the stored one, negated, so that this one is 0 and on top (squared
    distance), float32 [concept, L, K]; tau: temperature of each level
    float32 [L]; place: concept row of each item or -1, int64 [items]; rho: share of retained items per code [L, K].
    """

    logits0: torch.Tensor
    tau: torch.Tensor
    place: torch.Tensor
    rho: torch.Tensor

    def q(self, phi: torch.Tensor, sharpness: float = 1.0) -> torch.Tensor:
        """q_phi float32 [concept, L, K] at temperature tau / sharpness; `phi` is in units of tau."""
        return (sharpness * (self.logits0 / self.tau[:, None] + phi)).softmax(-1)


def soft_sids(table: SidTable, items: np.ndarray, embeddings: np.ndarray, codebooks: Codebooks) -> SoftSids:
    """Build the soft assignment along each item's stored codes, so that phi = 0 gives back every stored SID."""
    codes = table.sids[items, :-1]
    residuals = residuals_along(embeddings[items], codes, codebooks)
    logits, taus = [], []
    for level in range(codebooks.levels):
        d = squared_distances(residuals[:, level], codebooks.centroids[level])
        top2 = np.partition(d, 1, axis=1)[:, :2]
        tau = max(float(np.median(top2[:, 1] - top2[:, 0])), 1e-6)
        stored = np.arange(len(items)), codes[:, level]
        own, d[stored] = d[stored], np.inf
        rival = d.min(1)
        # An earlier reassignment stays on top, and so does a code that wins by less than float32 sees.
        d[stored] = np.where(own > rival, rival - tau, np.minimum(own, rival - MARGIN * tau))
        logits.append(d[stored][:, None] - d)
        taus.append(tau)
    retained = np.setdiff1d(np.arange(len(table.item_ids)), items)
    rho = [
        np.bincount(table.sids[retained, level], minlength=codebooks.codes) / len(retained)
        for level in range(codebooks.levels)
    ]
    place = torch.full((len(table.item_ids),), -1, dtype=torch.int64)
    place[torch.as_tensor(items)] = torch.arange(len(items))
    return SoftSids(
        torch.tensor(np.stack(logits, 1), dtype=torch.float32), torch.tensor(taus, dtype=torch.float32),
        place, torch.tensor(np.stack(rho), dtype=torch.float32),
    )  # fmt: skip


def soft_forward(
    model: nn.Module, rows: Sequence[Row], table: SidTable, soft: SoftSids, q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-likelihood of every item of `rows` with soft tokens for concept items, in histories and as targets.

    Returns log p per item float32 [batch, items], the mask of concept targets and of retained targets, bool.
    """
    levels, batch = table.vocabulary.levels, collate(rows, table)
    offsets = [int(o) for o in table.vocabulary.offsets]
    embed = model.get_input_embeddings().weight
    length = batch.labels.shape[1] // levels
    items = np.full((len(rows), length), -1, np.int64)
    for i, row in enumerate(rows):
        items[i, : len(row.items)] = row.items
    items = torch.from_numpy(items)
    where = torch.where(items >= 0, soft.place[items.clamp(min=0)], -1)  # concept row of each item, -1 for others
    concept = where >= 0
    inputs = F.embedding(batch.tokens, embed)
    sid_part = inputs[:, 1:].view(len(rows), length, levels, -1)
    tokens = torch.stack(
        [q[:, k] @ embed[o : o + q.shape[-1]] for k, o in zip(range(levels - 1), offsets, strict=False)], 1
    )
    soft_part = torch.cat([tokens[where.clamp(min=0)], sid_part[:, :, -1:]], 2)
    sid_part = torch.where(concept[..., None, None], soft_part, sid_part)
    inputs = torch.cat([inputs[:, :1], sid_part.flatten(1, 2)], 1)
    logits = model(inputs_embeds=inputs[:, :-1], use_cache=False).logits.float().log_softmax(-1)
    hard = logits.gather(-1, batch.tokens[:, 1:, None])[..., 0].view(len(rows), length, levels)
    by_level = logits.view(len(rows), length, levels, -1)
    soft_ll = [
        (q[where.clamp(min=0), k] * by_level[:, :, k, o : o + q.shape[-1]]).sum(-1)
        for k, o in zip(range(levels - 1), offsets, strict=False)
    ]
    soft_ll = torch.stack([*soft_ll, hard[..., -1]], -1)
    log_p = torch.where(concept[..., None], soft_ll, hard).sum(-1)
    target = (batch.labels.view(len(rows), length, levels)[..., 0] >= 0) & (items >= 0)
    return log_p, target & concept, target & ~concept


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values[mask].mean() if mask.any() else values.sum() * 0


@dataclass(frozen=True)
class Rows:
    """What TRACER trains on. forget: chunks that hold a concept target; retain: all chunks of retained users;
    coherence: (history, concept item) of every forgotten training row."""

    forget: list[Row]
    retain: list[Row]
    coherence: list[tuple[np.ndarray, int]]


def tracer_rows(problem: Problem) -> Rows:
    """Training sequences of retained users with the concept's rows in their places."""
    data, window = problem.restored, problem.params.architecture.window
    keep = {problem.retained.user_ids[u] for u in problem.retained_users}
    histories = [
        (u, data.training_rows(u)) for u, name in enumerate(data.user_ids)
        if name in keep and data.split[data.offsets[u]] == TRAIN
    ]  # fmt: skip
    rows = [row for user, items in histories for row in chunk(items, window, user)]
    forget = [row for row in rows if np.isin(row.items[row.loss_from :], problem.items).any()]
    coherence = [
        (items[max(0, at - window + 1) : at], int(items[at]))
        for _, items in histories for at in np.flatnonzero(np.isin(items, problem.items)) if at > 0
    ]  # fmt: skip
    if not forget:
        raise UnlearningError(
            "No retained user's training rows hold the concept: there is nothing for TRACER to unlearn."
        )
    return Rows(forget, rows, coherence)


def _cycle(count: int, size: int, rng: np.random.Generator):
    """Index batches that use every one of `count` before any again."""
    pool = np.empty(0, np.int64)
    while True:
        while len(pool) < size:
            pool = np.append(pool, rng.permutation(count))
        yield pool[:size]
        pool = pool[size:]


def _steps(params: TracerParams, rows: Rows, share: int) -> int:
    """At least `params.steps`, and enough that every forget row is used once."""
    return max(params.steps, -(-len(rows.forget) // share))


def optimise(
    problem: Problem, model: nn.Module, soft: SoftSids, rows: Rows
) -> tuple[torch.Tensor, dict[str, float | str]]:
    """Train the adapter inside `model` and phi; returns phi [concept, L, K] in units of tau."""
    params, table, window = problem.params.unlearning.tracer, problem.bundle.table, problem.params.architecture.window
    rng = np.random.default_rng(problem.seed)
    torch.manual_seed(problem.seed)
    phi = torch.zeros_like(soft.logits0, requires_grad=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": weights, "lr": params.learning_rate}, {"params": [phi], "lr": params.phi_learning_rate}],
        weight_decay=0.0,
    )
    others = np.setdiff1d(np.arange(len(table.item_ids)), problem.items)
    near = nearest_items(problem.embeddings, params.coherence_items, among=others)
    half = max(1, params.batch_size // 3)
    steps = _steps(params, rows, half)
    forget_batches, retain_batches = _cycle(len(rows.forget), half, rng), _cycle(len(rows.retain), half, rng)
    coherence_batches = _cycle(len(rows.coherence), half, rng) if rows.coherence else None
    last = {}
    floor = -(np.log(len(table.item_ids)) + params.forget_margin)
    for step in range(steps):
        sharpness = params.sharpen ** (step / max(1, steps - 1))
        batch = [rows.forget[i] for i in next(forget_batches)] + [rows.retain[i] for i in next(retain_batches)]
        q = soft.q(phi, sharpness)
        log_p, is_forget, is_retain = soft_forward(model, batch, table, soft, q)
        loss_f = _mean(log_p.clamp(min=floor), is_forget)
        loss_r = -_mean(log_p, is_retain) / table.vocabulary.levels
        loss_c = torch.zeros(())
        if coherence_batches is not None and params.coherence_weight > 0:
            drawn = [rows.coherence[i] for i in next(coherence_batches)]
            beside = [
                Row(np.append(history, rng.choice(near[item]))[-window:], min(len(history), window - 1))
                for history, item in drawn
            ]
            near_p, _, is_near = soft_forward(model, beside, table, soft, q)
            loss_c = -_mean(near_p, is_near)
        score = phi.abs().sum() / len(problem.items)
        (gradient_f,) = torch.autograd.grad(loss_f, phi, retain_graph=True)
        total = loss_r + params.forget_weight * loss_f + params.coherence_weight * loss_c + params.score_weight * score
        optimiser.zero_grad()
        total.backward()
        with torch.no_grad():
            expected = (q * soft.rho).sum(-1, keepdim=True)
            phi.grad *= (soft.rho > expected) & (gradient_f > 0)
        nn.utils.clip_grad_norm_(weights, problem.params.train.clip_norm)
        optimiser.step()
        last = {"retain_nll_per_token": loss_r.item(), "forget_log_p_per_item": loss_f.item()}
        if not np.isfinite(total.item()):
            raise UnlearningError("TRACER's loss is not finite. Lower unlearning.tracer.learning_rate.")
    return phi.detach(), {"steps": steps, **last}


def repair(problem: Problem, model: nn.Module, table: SidTable) -> None:
    """A few retain-only steps on the committed SIDs, on the retained data version."""
    params = problem.params.unlearning.tracer
    data = problem.retained
    histories = [(int(u), data.training_rows(u)) for u in problem.retained_users]
    rows = chunk_all(histories, problem.params.architecture.window)
    batches = _cycle(len(rows), params.batch_size, np.random.default_rng(problem.seed))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=params.learning_rate, weight_decay=0.0)
    model.train()
    for _ in range(params.repair_steps):
        loss = batch_loss(model, collate([rows[i] for i in next(batches)], table))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, problem.params.train.clip_norm)
        optimiser.step()
    model.eval()


def tracer(problem: Problem, with_repair: bool = False) -> Outcome:
    """Run and commit the new SIDs in the returned bundle. Raises UnlearningError when no item moved."""
    bundle = problem.bundle
    start = fold(bundle.adapter, bundle.overlays)  # a method that trains has to start from the effective weights
    model = adapted_model(bundle.backbone, start, dropout=problem.params.train.dropout).train()
    soft = soft_sids(bundle.table, problem.items, problem.embeddings, bundle.codebooks)
    rows = tracer_rows(problem)
    phi, diagnostics = optimise(problem, model, soft, rows)
    model.eval()
    q = soft.q(phi, problem.params.unlearning.tracer.sharpen)
    codes = q.argmax(-1).numpy().astype(np.int32)
    table = reassign(bundle.table, problem.items, codes)
    moved = (table.sids[problem.items] != bundle.table.sids[problem.items]).any(1)
    if not moved.any():
        raise UnlearningError(
            "TRACER moved none of the concept's SIDs. Raise unlearning.tracer.phi_learning_rate or steps."
        )
    with torch.inference_mode():
        log_p, is_forget, _ = soft_forward(model, rows.forget[:64], bundle.table, soft, q)
        soft_ll = float(_mean(log_p, is_forget))
    if with_repair:
        repair(problem, model, table)
    with torch.inference_mode():
        one_hot = F.one_hot(torch.from_numpy(table.sids[problem.items, :-1]).long(), bundle.codebooks.codes).float()
        log_p, is_forget, _ = soft_forward(model, rows.forget[:64], table, soft, one_hot)
        gap = float(_mean(log_p, is_forget)) - soft_ll
    diagnostics |= {"reassigned_share": float(moved.mean()), "hard_minus_soft_log_p": gap}
    return Outcome(
        replace(bundle, adapter=Adapter(start.rank, start.alpha, adapter_state(model)), overlays=(), table=table),
        diagnostics,
    )


METHOD = Method("tracer", tracer)
REPAIRED = Method("tracer_repair", lambda problem: tracer(problem, with_repair=True))
