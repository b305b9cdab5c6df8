"""RQ-VAE (TIGER, arXiv 2305.05065, section 3.1): the residual quantiser's latent is learnt with its codebooks.

    z = E(x), r^1 = z;  s^l = argmin_k ||r^l - c_k^l||^2, r^(l+1) = r^l - c^l_{s^l};  z^ = sum_l c^l_{s^l}
    L = ||x - D(z^)||^2 + sum_l ||sg[r^l] - c^l_{s^l}||^2 + beta ||r^l - sg[c^l_{s^l}]||^2

Gradients pass the quantiser straight through. Against collapse: codebooks start as k-means of the latents' residuals,
and a code that no vector took during `PATIENCE` steps, or one pass where that is longer, is moved to the residual of a
vector drawn at random; only the last steps are without. The decoder is not kept: `genrec.sid.quantise` assigns codes
with the encoder and the codebooks alone.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from genrec.config import RqVaeParams
from genrec.errors import DataError
from genrec.progress import tracked
from genrec.sid.quantise import Codebooks, check, cluster, norm

PATIENCE = 50
"""Steps after which a code nobody took is dead; at least one pass over the data."""


class RqVae(nn.Module):
    """Encoder, decoder and codebooks [levels, codes, latent], for unit vectors of `width` dimensions."""

    def __init__(self, width: int, levels: int, codes: int, params: RqVaeParams):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(width, params.hidden), nn.ReLU(), nn.Linear(params.hidden, params.latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(params.latent, params.hidden), nn.ReLU(), nn.Linear(params.hidden, width)
        )
        self.codebooks = nn.Parameter(torch.zeros(levels, codes, params.latent))

    def quantise(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of latents [n, d]: codes int64 [n, L], residuals r^l [n, L, d] and chosen centroids [n, L, d]."""
        residual, codes, residuals, chosen = latent, [], [], []
        for book in self.codebooks:
            codes.append(torch.cdist(residual.detach(), book.detach()).argmin(1))
            residuals.append(residual)
            chosen.append(book[codes[-1]])
            residual = residual - chosen[-1].detach()
        return torch.stack(codes, 1), torch.stack(residuals, 1), torch.stack(chosen, 1)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """D(z^) of x [n, width]."""
        return self.decoder(self.quantise(self.encoder(x))[2].sum(1))


@torch.no_grad()
def start_codebooks(model: RqVae, x: torch.Tensor, iterations: int, seed: int) -> None:
    """Set `model.codebooks` to k-means of each level's residuals of x [n, width]."""
    residual = model.encoder(x)
    for level, book in enumerate(model.codebooks):
        book.copy_(torch.from_numpy(cluster(residual.numpy(), len(book), iterations, seed + level).centroids))
        residual = residual - book[torch.cdist(residual, book).argmin(1)]


def train(model: RqVae, x: torch.Tensor, params: RqVaeParams, seed: int) -> None:
    """Train `model` in place on x float32 [n, width] with Adam."""
    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=params.learning_rate)
    levels, codes, _ = model.codebooks.shape
    used = torch.zeros(levels, codes, dtype=torch.bool)
    batches: list[torch.Tensor] = []
    patience = max(PATIENCE, len(x) // params.batch_size)
    for step in tracked("rq-vae", range(params.steps)):
        batches = batches or list(torch.randperm(len(x), generator=rng).split(params.batch_size))
        batch = x[batches.pop()]
        latent = model.encoder(batch)
        taken, residuals, chosen = model.quantise(latent)
        quantised = latent + (chosen.sum(1) - latent).detach()
        loss = F.mse_loss(model.decoder(quantised), batch, reduction="sum")
        loss = loss + F.mse_loss(chosen, residuals.detach(), reduction="sum")
        loss = loss + params.commitment * F.mse_loss(residuals, chosen.detach(), reduction="sum")
        optimiser.zero_grad()
        (loss / len(batch)).backward()
        optimiser.step()
        for level in range(levels):
            used[level, taken[:, level]] = True
        if (step + 1) % patience == 0 and step + patience < params.steps:
            reset_dead(model, residuals.detach(), used, rng)
            used.zero_()


@torch.no_grad()
def reset_dead(model: RqVae, residuals: torch.Tensor, used: torch.Tensor, rng: torch.Generator) -> None:
    """Move every code not `used` bool [L, K] to the residual [n, L, d] of a vector drawn at random."""
    for level, book in enumerate(model.codebooks):
        dead = (~used[level]).nonzero()[:, 0]
        book[dead] = residuals[torch.randint(len(residuals), (len(dead),), generator=rng), level]


def fit(embeddings: np.ndarray, levels: int, codes: int, iterations: int, params: RqVaeParams, seed: int) -> Codebooks:
    """Codebooks with their encoder, for `embeddings` [n, width]; `iterations` are those of the k-means at the start.

    Raises DataError when an embedding is not finite, for fewer embeddings than codes, and when the training diverged.
    """
    check(embeddings, codes)
    x = torch.from_numpy(norm(embeddings.astype(np.float64)).astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RqVae(x.shape[1], levels, codes, params)
    start_codebooks(model, x, iterations, seed)
    train(model, x, params, seed)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise DataError(
            f"RQ-VAE diverged: its weights are not finite. Lower sid.rq_vae.learning_rate ({params.learning_rate})."
        )
    encoder = tuple(
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in model.encoder
        if isinstance(layer, nn.Linear)
    )
    return Codebooks(model.codebooks.detach().numpy(), seed, encoder)
