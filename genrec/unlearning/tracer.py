"""TRACER (arXiv 2606.07688): forget a concept by moving its items to other SIDs and its probability to near items.

For concept item i, level l, code k a score phi (zero at start) and the soft assignment q_phi it gives (`soft_sids`):
    L = L_R + l1 L_F + l2 L_Coh + l3 L_reg
L_R: what the model does on retained histories. L_F: + mean log p(concept SID | history), under the soft target
distribution, bounded from below. L_Coh: - mean log p of a near retained item in the concept item's place. L_reg: sum
|phi| / #concept items.
Selective update of phi alone: M = 1[rho_l(k) > E_q rho_l] * 1[dL_F/dphi > 0], rho_l(k) the share of retained items with
code k at level l, the gradient of L_F in its own pass. Trainable: adapter and phi; backbone and codebooks are frozen.
Commit: s_i^l = argmax_k q_phi with new dedup digits.

Ours: tau starts as the median top-2 gap of squared distances (at the published .005 phi cannot move) and sharpens up to
the commit. The commit comes after `SETTLE` of the steps, and the rest pushes down the SIDs that will be served, dedup
digit included: what is unlikely softly need not be so in the end. Every concept item goes to a fresh leaf outside the
concept's own old branches, as near to what phi says as there is one: an item that kept, or took over, a well-learned
prefix was all that was left of some concepts. L_F stops pushing an item once it is `forget_margin` nat less likely
than a uniform guess. AdamW, with a rate that falls after the commit, stopped early on retained users' validation NLL
where `tolerance` is set. A code already reassigned by an earlier request keeps its place at phi = 0 through a fixed
offset. L_R is the divergence KL(p_start || p) instead of the labels' NLL: it has far less noise and keeps several
times more of the ranking. L_R is taken on retained histories and L_Coh on histories whose concept items are all
replaced by near ones (one pass serves every concept target of a row), so they move the adapter alone, and L_F needs no
second backward pass for phi's mask.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from genrec.data.sequences import VALID
from genrec.errors import DataError, UnlearningError
from genrec.evaluation.ranking import Cases, held_out, target_nll
from genrec.models.adapter import Adapter, adapted_model, adapter_state
from genrec.progress import tracked
from genrec.sid.table import SidTable, reassign
from genrec.training.base import nearest_items
from genrec.training.rows import Row, bucketed, collate, shifted_chunks, token_batches, token_losses, whole
from genrec.unlearning.descent import reference_model, start_adapter, staying_histories
from genrec.unlearning.graddiff import kl_from
from genrec.unlearning.problem import Method, Outcome, Problem
from genrec.unlearning.retrain import retrain_rows
from genrec.unlearning.soft_sids import SoftSids, masked_mean, one_hot, phi_gradient, soft_forward, soft_sids

SETTLE = 0.6
"""Share of the steps after which the new SIDs are committed; the rest settles the adapter on them as served."""

CHECK, VALIDATION_USERS = 8, 100
"""Steps between two looks at the validation NLL, and on how many retained users."""

FORGOTTEN = 0.98
"""Share of concept targets that must be less likely than a uniform guess before it may stop."""


@dataclass(frozen=True)
class Rows:
    """What TRACER trains on. forget: pieces of staying users' histories, each up to its last concept item; beside: the
    same pieces in full; retain: whole histories of retained users, without the concept."""

    forget: list[Row]
    beside: list[Row]
    retain: list[Row]


def tracer_rows(problem: Problem) -> Rows:
    """Training sequences of staying users, the concept's rows in their places, cut into pieces without overlap."""
    window = problem.params.architecture.window
    pieces = shifted_chunks(whole(staying_histories(problem)), window, np.random.default_rng([problem.seed, 2]))
    beside = [row for row in pieces if np.isin(row.items, problem.items).any()]
    if not beside:
        raise UnlearningError(
            "No retained user's training rows hold the concept: there is nothing for TRACER to unlearn."
        )
    forget = [
        Row(row.items[: np.flatnonzero(np.isin(row.items, problem.items))[-1] + 1], user=row.user) for row in beside
    ]
    return Rows(forget, beside, retrain_rows(problem))


def replaced(row: Row, concept: np.ndarray, near: np.ndarray, rng: np.random.Generator) -> tuple[Row, np.ndarray]:
    """`row` with each concept item replaced by one of its nearest retained items, and where: bool [items].

    concept bool [items of the catalogue]; near int64 [items, K].
    """
    where = concept[row.items]
    chosen = near[row.items, rng.integers(near.shape[1], size=len(row.items))]
    return Row(np.where(where, chosen, row.items), user=row.user), where


def validation_cases(problem: Problem) -> Cases:
    """Validation targets of a seeded sample of retained users."""
    cases = held_out(problem.retained, VALID)
    drawn = np.random.default_rng([problem.seed, 3]).permutation(len(cases.targets))[:VALIDATION_USERS]
    return cases.select(np.isin(np.arange(len(cases.targets)), drawn))


def validation_nll(problem: Problem, model: nn.Module, cases: Cases) -> float:
    """Mean NLL of the validation targets, nat per token; the retained targets' SIDs are the same before and after."""
    if len(cases.targets) == 0:
        return float("inf")  # without anybody to ask the run never stops early
    model.eval()
    value = float(target_nll(problem.bundle, model, cases).mean())
    model.train()
    return value


def commit(table: SidTable, items: np.ndarray, scores: torch.Tensor) -> tuple[SidTable, float]:
    """Every concept item on a fresh leaf, and the share of them that phi moved by itself.

    scores float32 [concept, L, K] as in `SoftSids.scores`. Level by level an item takes its best code that leads
    neither to codes some item has, nor into a branch that was the concept's alone: the model was trained to say those,
    and whatever lies there is said. Raises UnlearningError when a prefix has no dedup digit left.
    """
    stored, retained = table.sids[items, :-1], np.delete(table.sids[:, :-1], items, axis=0)
    levels = stored.shape[1]
    taken = [_prefixes(stored, n) - _prefixes(retained, n) for n in range(1, levels)]
    taken.append(_prefixes(stored, levels) | _prefixes(retained, levels))
    order = scores.argsort(-1, descending=True).tolist()
    codes, settled = np.empty_like(stored), Counter()
    for i, by_level in enumerate(order):
        new: tuple[int, ...] = ()
        for level, best in enumerate(by_level):
            new += (next((code for code in best if (*new, code) not in taken[level]), best[0]),)
        codes[i] = new
        settled[new] += 1
        if settled[new] == table.vocabulary.sizes[-1]:  # the last dedup digit of a fresh leaf; a repaired one has one
            taken[-1].add(new)
    moved = (scores.argmax(-1).cpu().numpy() != stored).any(1)
    try:
        return reassign(table, items, codes), float(moved.mean())
    except DataError as error:
        raise UnlearningError(f"TRACER's new SIDs do not fit: {error}") from error


def _prefixes(codes: np.ndarray, length: int) -> set[tuple[int, ...]]:
    return set(map(tuple, codes[:, :length].tolist()))


def coherence(model: nn.Module, rows: Sequence[tuple[Row, np.ndarray]], table: SidTable) -> torch.Tensor:
    """L_Coh: mean NLL (nat) of the near items that stand in the concept items' places. rows: from `replaced`."""
    batch = collate([row for row, _ in rows], table)
    nll = token_losses(model, batch).view(len(batch.tokens), -1, table.vocabulary.levels).sum(-1)
    is_near = torch.zeros(nll.shape, dtype=torch.bool)
    for i, (_, where) in enumerate(rows):
        is_near[i, : len(where)] = torch.from_numpy(where)
    return masked_mean(nll, is_near.to(nll.device))


def optimise(
    problem: Problem, model: nn.Module, soft: SoftSids, rows: Rows, phi: torch.Tensor, repair_steps: int = 0
) -> tuple[SidTable, dict[str, float | str]]:
    """Train the adapter inside `model` and phi (zeros [concept, L, K], in units of tau); returns the committed SIDs.

    Each step has two passes: the soft one (L_F: gradients of phi and the adapter) and the hard one (L_R and L_Coh).
    From `SETTLE` on, the concept's SIDs are the committed ones and phi is done; `repair_steps` come on top, when the
    concept is at its floor already and what is left to mend is the retained side. With a `tolerance`, once every forget
    row is used and the concept is unlikely, it stops as soon as retained users' validation NLL is near where it began.
    """
    params, table, window = problem.params.unlearning.tracer, problem.bundle.table, problem.params.architecture.window
    levels, codes = table.vocabulary.levels, problem.bundle.codebooks.codes
    rng = np.random.default_rng(problem.seed)
    torch.manual_seed(problem.seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": weights, "lr": params.learning_rate}, {"params": [phi], "lr": params.phi_learning_rate}],
        weight_decay=0.0,
    )
    concept = np.zeros(len(table.item_ids), bool)
    concept[problem.items] = True
    near = nearest_items(problem.embeddings, params.coherence_items, among=np.flatnonzero(~concept))
    forget_tokens = sum(len(row.items) for row in rows.forget) * levels
    most = max(2 * params.batch_tokens // 3, forget_tokens // params.steps)
    epoch = len(bucketed(rows.forget, levels, most, np.random.default_rng(0)))
    steps = max(params.steps, epoch)  # every forget row is used
    forget_batches = token_batches(rows.forget, levels, most, rng)
    beside_batches = token_batches(rows.beside, levels, params.batch_tokens // 6, rng)
    retain_batches = token_batches(shifted_chunks(rows.retain, window, rng), levels, params.batch_tokens // 4, rng)
    guess = -np.log(len(table.item_ids))
    floor = guess - params.forget_margin
    reference = reference_model(problem)
    settle, may_stop = int(SETTLE * steps), params.tolerance is not None
    steps += repair_steps
    if may_stop:
        validation = validation_cases(problem)
        began = validation_nll(problem, model, validation)
    figures: dict[str, float | str] = {}
    unlikely: list[float] = []
    for step in tracked("tracer", range(steps)):
        if may_stop and step >= max(epoch, settle + CHECK) and (step - settle) % CHECK == 0:
            figures["validation_nll_increase"] = validation_nll(problem, model, validation) - began
            if np.mean(unlikely[-CHECK:]) >= FORGOTTEN and figures["validation_nll_increase"] <= params.tolerance:
                steps = step
                break
        optimiser.param_groups[0]["lr"] = params.learning_rate * min(1.0, (steps - step) / (steps - settle))
        if step < settle:
            q = soft.q(phi, params.sharpen ** (step / settle))
        elif step == settle:
            before = concept_log_p(model, rows, table, soft, soft.q(phi.detach(), params.sharpen))
            table, figures["moved_by_phi_share"] = commit(table, problem.items, soft.scores(phi.detach()))
            q = one_hot(table, problem.items, codes).to(phi.device)
            figures["hard_minus_soft_log_p"] = concept_log_p(model, rows, table, soft, q) - before
        log_p, is_forget, _ = soft_forward(model, next(forget_batches), table, soft, q)
        loss_f = masked_mean(log_p.clamp(min=floor), is_forget)
        unlikely.append((log_p[is_forget] <= guess).float().mean().item())
        gradients = torch.autograd.grad(loss_f, [*weights, phi] if step < settle else weights)
        loss_c = coherence(model, [replaced(row, concept, near, rng) for row in next(beside_batches)], table)
        loss_r = kl_from(reference, model, collate(next(retain_batches), table))
        optimiser.zero_grad()
        (params.retain_weight * loss_r + params.coherence_weight * loss_c).backward()
        for weight, gradient in zip(weights, gradients, strict=False):
            weight.grad += params.forget_weight * gradient
        if step < settle:
            phi.grad = phi_gradient(phi, gradients[-1], q, soft.rho, params)
        nn.utils.clip_grad_norm_(weights, problem.params.train.clip_norm)
        optimiser.step()
        figures |= {"retained_kl": loss_r.item(), "forget_log_p_per_item": loss_f.item()}
        if not np.isfinite(loss_r.item() + loss_f.item()):
            raise UnlearningError("TRACER's loss is not finite. Lower unlearning.tracer.learning_rate.")
    return table, {"steps": steps, "unlikely_share": unlikely[-1], **figures}


@torch.no_grad()
def concept_log_p(model: nn.Module, rows: Rows, table: SidTable, soft: SoftSids, q: torch.Tensor) -> float:
    """Mean log p (nat per item) of the concept's items in a sample of the forget rows."""
    model.eval()
    log_p, is_forget, _ = soft_forward(model, rows.forget[:64], table, soft, q)
    model.train()
    return float(masked_mean(log_p, is_forget))


def tracer(problem: Problem, repair_steps: int = 0) -> Outcome:
    """Run and commit the new SIDs in the returned bundle. Raises UnlearningError when no item moved."""
    bundle = problem.bundle
    start = start_adapter(problem)
    model = adapted_model(bundle.backbone, start, dropout=problem.params.train.dropout).train()
    soft = soft_sids(bundle.table, problem.items, problem.embeddings, bundle.codebooks).to(model.device)
    rows = tracer_rows(problem)
    phi = torch.zeros_like(soft.logits0, requires_grad=True)
    table, diagnostics = optimise(problem, model, soft, rows, phi, repair_steps)
    model.eval()
    if not diagnostics["moved_by_phi_share"]:
        raise UnlearningError(
            "TRACER moved none of the concept's SIDs. Raise unlearning.tracer.phi_learning_rate or steps."
        )
    moved = (table.sids[problem.items] != bundle.table.sids[problem.items]).any(1)
    diagnostics |= {"reassigned_share": float(moved.mean())}
    return Outcome(
        replace(bundle, adapter=Adapter(start.rank, start.alpha, adapter_state(model)), overlays=(), table=table),
        diagnostics,
    )


METHOD = Method("tracer", tracer)
REPAIRED = Method("tracer_repair", lambda problem: tracer(problem, problem.params.unlearning.tracer.repair_steps))
