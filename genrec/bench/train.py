"""Training against a straightforward Hugging Face Trainer loop: the same backbone, LoRA, data and learning rate.

Ours makes one pass over a user's sequence and has a target at every item. The loop makes one sample per target, the
window of items before it and the target's SID, with the loss on the SID alone. Both are stopped now and then for the
validation NDCG@10; seconds are of training, without these pauses.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from torch import nn

from genrec.data.sequences import VALID, Dataset
from genrec.errors import ConfigError
from genrec.evaluation.ranking import held_out, rank
from genrec.models.adapter import attach
from genrec.models.bundle import Bundle
from genrec.sid.table import SidTable
from genrec.training.base import train_adapter
from genrec.training.rows import Row, batch_loss, collate, trained_rows

COMPARES = "seconds of the Trainer loop over ours until the lower of their two best validation NDCG@10"
TOKENS_COMPARE = "target tokens per second of ours over those of the Trainer loop"
LOOKS = 4
"""Times per epoch that the Trainer loop is looked at: its epochs are long, and its time shall not be rounded up."""


@dataclass(frozen=True)
class Setting:
    """Epochs of ours and of the loop (their schedules end there), minutes either may take, samples per step of the
    loop, and users that are ranked at each look.
    """

    epochs: int
    loop_epochs: int
    minutes: float
    batch_size: int
    users: int


@dataclass(frozen=True)
class Point:
    """A look at one training: seconds and epochs so far, and the validation NDCG@10."""

    seconds: float
    epochs: float
    ndcg: float


@dataclass(frozen=True)
class Trained:
    """One training: its looks in order, the target tokens of an epoch, and how many of them it trained per second."""

    points: tuple[Point, ...]
    epoch_tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.epoch_tokens * self.points[-1].epochs / self.points[-1].seconds

    @property
    def best(self) -> float:
        return max(point.ndcg for point in self.points)

    def seconds_to(self, ndcg: float) -> float:
        """Seconds until the first look at which `ndcg` is reached."""
        return next(point.seconds for point in self.points if point.ndcg >= ndcg)

    def as_dict(self, level: float) -> dict:
        return {
            "seconds_to_quality": round(self.seconds_to(level), 2),
            "target_tokens_per_s": round(self.tokens_per_s, 1),
            "best_ndcg@10": self.best,
            "epoch_target_tokens": self.epoch_tokens,
            "points": [asdict(point) for point in self.points],
        }


class Looks:
    """Looks at a model in training, with the clock stopped."""

    def __init__(self, ndcg: Callable[[nn.Module], float], seconds: float, say: Callable[[str], None]):
        self.ndcg, self.limit, self.say = ndcg, seconds, say
        self.points: list[Point] = []
        self.began = time.perf_counter()

    def look(self, model: nn.Module, epochs: float) -> bool:
        """Add a point; whether the time is up."""
        seconds = time.perf_counter() - self.began
        self.points.append(Point(round(seconds, 3), round(epochs, 4), self.ndcg(model)))
        self.say(f"{seconds:8.1f} s, epoch {epochs:5.2f}: NDCG@10 {self.points[-1].ndcg:.4f}")
        self.began = time.perf_counter() - seconds
        return seconds >= self.limit


def sliding_windows(rows: Sequence[Row], window: int) -> list[Row]:
    """One row per item that has a history: at most `window` items before it, and the item as the only target."""
    return [
        Row(row.items[max(0, at - window) : at + 1], min(at, window), row.user)
        for row in rows
        for at in range(1, len(row.items))
    ]


def train_ours(bundle: Bundle, rows: Sequence[Row], setting: Setting, looks: Looks) -> Trained:
    """`train_adapter`, looked at after every epoch."""
    params = bundle.params.model_copy(
        update={"train": bundle.params.train.model_copy(update={"epochs": setting.epochs})}
    )
    train_adapter(
        bundle.backbone, rows, bundle.table, params,
        watch=lambda model: looks.look(model, len(looks.points) + 1.0),
    )  # fmt: skip
    return Trained(tuple(looks.points), sum(len(row.items) for row in rows) * bundle.table.vocabulary.levels)


def train_loop(bundle: Bundle, rows: Sequence[Row], setting: Setting, looks: Looks) -> Trained:
    """transformers.Trainer as it is used: shuffled samples, padded batches, cosine schedule."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    section, samples = bundle.params.train, sliding_windows(rows, bundle.params.architecture.window)
    model = attach(bundle.backbone, section.rank, section.alpha, section.dropout, bundle.params.seed)
    steps = -(-len(samples) // setting.batch_size)
    every = max(1, steps // LOOKS)

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % every == 0 or state.global_step == steps * setting.loop_epochs:
                control.should_training_stop = looks.look(model.eval(), state.global_step / steps)
                model.train()
            return control

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=setting.loop_epochs, per_device_train_batch_size=setting.batch_size,
            learning_rate=section.learning_rate, weight_decay=section.weight_decay, adam_beta2=0.98,
            lr_scheduler_type="cosine", warmup_steps=section.warmup, max_grad_norm=section.clip_norm,
            seed=bundle.params.seed, use_cpu=not torch.cuda.is_available(), bf16=torch.cuda.is_available(),
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            remove_unused_columns=False,
        )  # fmt: skip
        Trainer(
            model, arguments, train_dataset=samples, data_collator=partial(trainer_batch, table=bundle.table),
            callbacks=[Watch()],
        ).train()  # fmt: skip
    return Trained(tuple(looks.points), len(samples) * bundle.table.vocabulary.levels)


def trainer_batch(rows: Sequence[Row], table: SidTable) -> dict:
    """What a causal LM of transformers takes: ids, mask, and labels in the places of their tokens."""
    import torch

    batch = collate(rows, table)
    return {
        "input_ids": batch.tokens,
        "attention_mask": (batch.tokens != table.vocabulary.PAD).long(),
        "labels": torch.nn.functional.pad(batch.labels, (1, 0), value=-100),
    }


def run(bundle: Bundle, dataset: Dataset, setting: Setting, say: Callable[[str], None]) -> dict:
    """Both trainings, one after the other: JSON-ready, with the ratios and what they compare.

    bundle: the backbone, SIDs and parameters to train with; its adapter is not used. Raises ConfigError for T5, whose
    targets a causal loop cannot train.
    """
    if bundle.backbone.config["model_type"] == "t5":
        raise ConfigError("bench train compares causal models. Set architecture.name to llama or pretrained, not t5.")
    cases, rows = held_out(dataset, VALID).sample(setting.users, bundle.params.seed), trained_rows(dataset)

    def ndcg(model: nn.Module) -> float:
        return float(rank(bundle, model, cases).ndcg(10).mean())

    _warm_up(bundle, rows[:2])
    found = {}
    for name, training in (("ours", train_ours), ("trainer", train_loop)):
        say(f"{name}:")
        found[name] = training(bundle, rows, setting, Looks(ndcg, 60 * setting.minutes, say))
    ours, loop = found["ours"], found["trainer"]
    level = min(ours.best, loop.best)
    return {
        "ratio": round(loop.seconds_to(level) / ours.seconds_to(level), 2),
        "compares": COMPARES,
        "tokens_ratio": round(ours.tokens_per_s / loop.tokens_per_s, 2),
        "tokens_compare": TOKENS_COMPARE,
        "ndcg@10": level,
        "cases": len(cases.users),
        "cpus": os.cpu_count() or 1,
        **asdict(setting),
        "ours": ours.as_dict(level),
        "trainer": loop.as_dict(level),
    }


def _warm_up(bundle: Bundle, rows: Sequence[Row]) -> None:
    """Imports and first allocations, which neither training shall pay for."""
    import accelerate  # noqa: F401
    from transformers import Trainer  # noqa: F401

    batch_loss(attach(bundle.backbone, 1, 1.0, 0.0, seed=0), collate(rows, bundle.table)).backward()
