"""TRACER's soft assignment of concept items to codes: q_phi, the forward pass under it, and how phi is updated.

For concept item i, level l, code k a score phi (zero at start; see `genrec.unlearning.tracer` for the whole loss):
    q_phi(s_i^l = k) = softmax_k((-||r_i^l - c_k^l||^2 + phi^l_{i,k}) / tau),  soft token e~_i^l = sum_k q e_k^l
    L_reg = sum |phi| / #concept items
    M = 1[rho_l(k) > E_q rho_l] * 1[dL_F/dphi > 0]
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from genrec.sid.quantise import Codebooks, residuals_along, squared_distances
from genrec.sid.table import SidTable
from genrec.training.rows import Row, collate
from genrec.unlearning_params import TracerParams

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

    def to(self, device: torch.device) -> "SoftSids":
        """The same assignment on `device`."""
        return SoftSids(*(getattr(self, field.name).to(device) for field in fields(self)))

    def q(self, phi: torch.Tensor, sharpness: float = 1.0) -> torch.Tensor:
        """q_phi float32 [concept, L, K] at temperature tau / sharpness; `phi` is in units of tau."""
        return (sharpness * self.scores(phi)).softmax(-1)

    def scores(self, phi: torch.Tensor) -> torch.Tensor:
        """log q_phi up to a constant for each item and level, at temperature tau: float32 [concept, L, K]."""
        return self.logits0 / self.tau[:, None] + phi


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
    levels, batch = table.vocabulary.levels, collate(rows, table).beside(model)
    offsets = [int(o) for o in table.vocabulary.offsets]
    embed = model.get_input_embeddings().weight
    length = batch.labels.shape[1] // levels
    items = np.full((len(rows), length), -1, np.int64)
    for i, row in enumerate(rows):
        items[i, : len(row.items)] = row.items
    items = torch.from_numpy(items).to(embed.device)
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


def one_hot(table: SidTable, items: np.ndarray, codes: int) -> torch.Tensor:
    """q of the SIDs as they are, float32 [concept, L, K]: with it the soft forward is the model that is served."""
    return F.one_hot(torch.from_numpy(table.sids[items, :-1]).long(), codes).float()


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values[mask].mean() if mask.any() else values.sum() * 0


def regulariser(phi: torch.Tensor) -> torch.Tensor:
    """L_reg = sum |phi| / #concept items: a score costs a large concept no more in all than a small one."""
    return phi.abs().sum() / len(phi)


def phi_gradient(
    phi: torch.Tensor, of_forgetting: torch.Tensor, q: torch.Tensor, rho: torch.Tensor, params: TracerParams
) -> torch.Tensor:
    """Gradient of l1 L_F + l3 L_reg that phi is stepped by, float32 [concept, L, K], zero outside the mask M.

    of_forgetting: dL_F/dphi. Whether a code is open depends on L_F alone, so that L_reg never opens one.
    """
    open_ = (rho > (q * rho).sum(-1, keepdim=True)) & (of_forgetting > 0)
    (of_score,) = torch.autograd.grad(params.score_weight * regulariser(phi), phi)
    return ((params.forget_weight * of_forgetting + of_score) * open_).detach()
