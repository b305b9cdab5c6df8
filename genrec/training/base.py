"""The two trainings of a base model: the backbone on the catalogue, the adapter on interactions."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from genrec.config import Params
from genrec.models.adapter import Adapter, adapter_state, attach
from genrec.models.backbone import Backbone, architecture, initialise, of_model
from genrec.sid.table import SidTable
from genrec.training.loop import Curve, Optimisation, train
from genrec.training.rows import Batch, Row, batch_loss, bucketed, collate, shifted_chunks

STEPS_PER_EPOCH = 50
"""Backbone training has no epochs of its own: its progress and checkpoints count in this many steps."""


def nearest_items(embeddings: np.ndarray, k: int, among: np.ndarray | None = None) -> np.ndarray:
    """Indices int64 [n, k] of the k nearest items by cosine, excluding the item itself; `among` limits the answers."""
    import faiss

    x = np.ascontiguousarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12), np.float32)
    rows = np.arange(len(x)) if among is None else np.asarray(among)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x[rows])
    k = min(k, len(rows) - 1)
    found = rows[index.search(x, k + 1)[1]]
    keep = found != np.arange(len(x))[:, None]
    keep[keep.all(1), -1] = False
    return found[keep].reshape(len(x), k)


def walks(neighbours: np.ndarray, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`count` random walks over the neighbour graph, each item visited once where possible: int64 [count, length]."""
    n, k = neighbours.shape
    path = np.empty((count, length), np.int64)
    path[:, 0] = rng.integers(n, size=count)
    for step in range(1, length):
        options = neighbours[path[:, step - 1]]
        seen = (options[:, :, None] == path[:, None, :step]).any(2)
        weight = rng.random((count, k)) - seen  # unseen options first, at random
        path[:, step] = options[np.arange(count), weight.argmax(1)]
    return path


def _identity(settings: Sequence, arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of everything that decides how a training goes, for its checkpoint."""
    digest = hashlib.sha256(repr(settings).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def train_backbone(
    table: SidTable, embeddings: np.ndarray, params: Params, *, checkpoint: Path | None = None, progress: bool = False
) -> tuple[Backbone, Curve]:
    """Train the backbone on walks over semantically neighbouring items: no user is involved."""
    section = params.backbone
    backbone = initialise(architecture(params.architecture, table.vocabulary), params.seed)
    model = backbone.model()
    neighbours = nearest_items(embeddings, section.neighbours)
    length = min(section.walk_length, params.architecture.window)
    total = -(-section.visits * len(table.item_ids) // (section.batch_size * length))
    steps = min(STEPS_PER_EPOCH, total)

    def batches(epoch: int) -> list[Batch]:
        rng = np.random.default_rng([params.seed, epoch])
        paths = walks(neighbours, steps * section.batch_size, length, rng)
        return [collate([Row(p) for p in part], table) for part in np.split(paths, steps)]

    optimisation = Optimisation(section.learning_rate, section.weight_decay, 0.05, 1.0, params.seed)
    curve = train(
        model, -(-total // steps), batches, batch_loss, optimisation,
        checkpoint=checkpoint, identity=_identity([section, params.seed, backbone.hash], [table.sids, neighbours]),
        progress="backbone" if progress else None,
    )  # fmt: skip
    return of_model(backbone.config, model), curve


def train_adapter(
    backbone: Backbone, rows: Sequence[Row], table: SidTable, params: Params, *,
    checkpoint: Path | None = None, progress: bool = False, seed: int | None = None,
) -> tuple[Adapter, Curve]:  # fmt: skip
    """Train a LoRA from scratch on `rows`, whole training histories. Also the exact answer to erasure: `retrain`."""
    section = params.train
    seed = params.seed if seed is None else seed
    model = attach(backbone, section.rank, section.alpha, section.dropout, seed)
    levels = table.vocabulary.levels

    def batches(epoch: int) -> list[list[Row]]:
        rng = np.random.default_rng([seed, epoch])
        return bucketed(shifted_chunks(rows, params.architecture.window, rng), levels, section.batch_tokens, rng)

    def loss(model: torch.nn.Module, part: list[Row]) -> torch.Tensor:
        return batch_loss(model, collate(part, table))

    optimisation = Optimisation(section.learning_rate, section.weight_decay, section.warmup, section.clip_norm, seed)
    curve = train(
        model, section.epochs, batches, loss, optimisation,
        checkpoint=checkpoint, checkpoint_epochs=section.checkpoint_epochs,
        identity=adapter_identity(backbone, rows, table, params, seed),
        progress="adapter" if progress else None,
    )  # fmt: skip
    return Adapter(section.rank, section.alpha, adapter_state(model)), curve


def adapter_identity(backbone: Backbone, rows: Sequence[Row], table: SidTable, params: Params, seed: int) -> str:
    """SHA-256 of everything that decides what `train_adapter` makes."""
    settings = [
        params.train,
        params.architecture.window,
        seed,
        backbone.hash,
        [(row.user, row.loss_from) for row in rows],
    ]
    return _identity(settings, [table.sids, *(row.items for row in rows)])
