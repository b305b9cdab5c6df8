"""The two trainings of a base model: the backbone on the catalogue, the adapter on interactions."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn import functional as F

from genrec.config import Params
from genrec.errors import ConfigError
from genrec.models.adapter import Adapter, adapter_state, attach
from genrec.models.backbone import Backbone, architecture, initialise, of_model
from genrec.models.pretrained import load_pretrained, load_tokenizer, with_trainable_rows
from genrec.sid.table import SidTable
from genrec.training.best import BestEpoch
from genrec.training.loop import Curve, Optimisation, run_identity, train
from genrec.training.rows import Batch, Collated, Row, batch_loss, bucketed, collate, shifted_chunks, split_batch
from genrec.training.titles import title_batch

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


def train_backbone(
    table: SidTable, embeddings: np.ndarray, params: Params, titles: Sequence[str] = (), *,
    checkpoint: Path | None = None,
) -> tuple[Backbone, Curve]:  # fmt: skip
    """Train the backbone on walks over semantically neighbouring items: no user is involved.

    Of a pretrained checkpoint only the SID tokens' rows are trained; where it has a tokenizer, as many batches again
    pair SIDs with `titles` (of every item). Raises ConfigError when the checkpoint cannot be loaded.
    """
    section, shape = params.backbone, params.architecture
    if pretrained := shape.name == "pretrained":
        backbone = load_pretrained(shape.checkpoint, table.vocabulary, params.seed, shape.window)
        model, tokenizer = with_trainable_rows(backbone, table.vocabulary.size), load_tokenizer(shape.checkpoint)
    else:
        backbone = initialise(architecture(shape, table.vocabulary), params.seed)
        model, tokenizer = backbone.model(), None
    neighbours = nearest_items(embeddings, section.neighbours)
    length = min(section.walk_length, shape.window)
    total = -(-section.visits * len(table.item_ids) // (section.batch_size * length))
    steps = min(STEPS_PER_EPOCH, total)

    def batches(epoch: int) -> list[Batch]:
        rng = np.random.default_rng([params.seed, epoch])
        paths = walks(neighbours, steps * section.batch_size, length, rng)
        found = [collate([Row(p) for p in part], table) for part in np.split(paths, steps)]
        if tokenizer is None:
            return found
        drawn = rng.integers(len(titles), size=(steps, section.batch_size))
        pairs = [title_batch(items, [titles[i] for i in items], tokenizer, table) for items in drawn]
        return [batch for both in zip(found, pairs, strict=True) for batch in both]

    optimisation = Optimisation(section.learning_rate, section.weight_decay, 0.05, 1.0, params.seed)
    curve = train(
        model, -(-total // steps), batches, batch_loss, optimisation, split=split_batch,
        checkpoint=checkpoint, identity=run_identity([section, params.seed, backbone.hash], [table.sids, neighbours]),
        label="backbone",
    )  # fmt: skip
    model = model.merge_and_unload() if pretrained else model
    return of_model(backbone.config, model).to(shape.dtype), curve


def train_adapter(
    backbone: Backbone, rows: Sequence[Row], table: SidTable, params: Params, *,
    checkpoint: Path | None = None, seed: int | None = None,
    watch: Callable[[nn.Module], bool] | None = None,
) -> tuple[Adapter, Curve]:  # fmt: skip
    """Train a LoRA from scratch on `rows`, whole training histories. Also the exact answer to erasure: `retrain`.

    watch: called after each epoch with the model in eval mode; the training ends where it answers True.
    """
    section = params.train
    seed = params.seed if seed is None else seed
    model = attach(backbone, section.rank, section.alpha, section.dropout, seed)
    optimisation = Optimisation(
        section.learning_rate, section.weight_decay, section.warmup, section.clip_norm, seed, section.accumulate
    )
    curve = train(
        model, section.epochs, _batches(rows, table, params, seed), batch_loss, optimisation, split=split_batch,
        checkpoint=checkpoint, checkpoint_epochs=section.checkpoint_epochs,
        identity=adapter_identity(backbone, rows, table, params, seed),
        label="adapter", watch=watch,
    )  # fmt: skip
    return Adapter(section.rank, section.alpha, adapter_state(model)), curve


def _batches(rows: Sequence[Row], table: SidTable, params: Params, seed: int) -> Callable[[int], Collated]:
    """epoch -> all rows, cut and ordered anew."""

    def batches(epoch: int) -> Collated:
        rng = np.random.default_rng([seed, epoch])
        pieces = shifted_chunks(rows, params.architecture.window, rng)
        return Collated(bucketed(pieces, table.vocabulary.levels, params.train.batch_tokens, rng), table)

    return batches


def train_whole(
    rows: Sequence[Row], table: SidTable, params: Params, seed: int, score: Callable[[nn.Module], float],
    checkpoint: Path | None = None,
) -> nn.Module:  # fmt: skip
    """All weights of the architecture on `rows`, from random ones: what a backbone without users costs, never served.

    Returns the model of the epoch with the highest `score`. Raises ConfigError for a pretrained architecture.
    """
    section, schedule = params.rivals.whole, params.train
    if params.architecture.name == "pretrained":
        raise ConfigError("A pretrained model is not trained whole. Set architecture.name to llama or t5.")
    model = initialise(architecture(params.architecture, table.vocabulary), seed).model()
    model.get_input_embeddings().register_forward_hook(
        lambda embedding, _, rows: F.dropout(rows, section.dropout, embedding.training)
    )
    optimisation = Optimisation(
        section.learning_rate, section.weight_decay, schedule.warmup, schedule.clip_norm, seed, schedule.accumulate
    )
    settings = [section, schedule, params.architecture, seed, [row.user for row in rows]]
    train(
        model, section.epochs, _batches(rows, table, params, seed), batch_loss, optimisation, split=split_batch,
        checkpoint=checkpoint, identity=run_identity(settings, [table.sids, *(row.items for row in rows)]),
        label="trained whole", best=BestEpoch(score),
    )  # fmt: skip
    return model


def adapter_identity(backbone: Backbone, rows: Sequence[Row], table: SidTable, params: Params, seed: int) -> str:
    """SHA-256 of everything that decides what `train_adapter` makes."""
    settings = [
        params.train,
        params.architecture.window,
        seed,
        backbone.hash,
        [(row.user, row.loss_from) for row in rows],
    ]
    return run_identity(settings, [table.sids, *(row.items for row in rows)])
