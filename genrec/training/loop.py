"""One training loop for the backbone, the adapter and every method that trains: accelerate around AdamW.

Data and dropout are drawn from (seed, epoch), so a run resumed from a checkpoint repeats the interrupted one bit for
bit. A checkpoint is one safetensors file (weights, optimiser moments) and is written by rename.

A step is the same whatever computes it: its batch is split over accumulated passes and over the processes of
`torch.distributed.run`, each part weighted by its share of the batch. On a GPU that has it, passes are in bfloat16 and
AdamW is fused.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genrec.errors import UnlearningError
from genrec.progress import progress
from genrec.training.best import BestEpoch


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay to zero; accumulate: passes that one step is split into."""

    learning_rate: float
    weight_decay: float
    warmup: float
    clip_norm: float
    seed: int
    accumulate: int = 1


@dataclass(frozen=True)
class Curve:
    """Mean loss of each epoch (nat per token)."""

    losses: tuple[float, ...]


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate: a linear rise over `warmup` steps, then a cosine to zero at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))


def run_identity(settings: Sequence, arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of everything that decides how a training goes, for its checkpoint."""
    digest = hashlib.sha256(repr(settings).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def is_main_process() -> bool:
    """Whether this process writes results: the first of those that `torch.distributed.run` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def train(
    model: nn.Module,
    epochs: int,
    batches: Callable[[int], Sequence[Any]],
    loss: Callable[[nn.Module, Any], torch.Tensor],
    optimisation: Optimisation,
    *,
    split: Callable[[Any, int], Sequence[tuple[Any, float]]] | None = None,
    checkpoint: Path | None = None,
    checkpoint_epochs: int = 1,
    identity: str = "",
    label: str = "training",
    watch: Callable[[nn.Module], bool] | None = None,
    best: BestEpoch | None = None,
) -> Curve:
    """Train the parameters of `model` that require gradients, in place.

    batches: epoch -> the batches of that epoch, the same number each epoch up to a few (the schedule uses epoch 0).
    split: (batch, n) -> n parts and each one's share of the batch's loss; None where a batch is never split.
    checkpoint: file to resume from when it exists and to write every `checkpoint_epochs`; removed at the end.
    identity: of the run (data, parameters, first weights); a checkpoint of any other run is not resumed from, so that
    an interrupted training on rows that were erased since leaves nothing behind.
    label: what is trained, for the progress bar.
    watch: called after each epoch with the model in eval mode; the training ends where it answers True.
    best: scores each epoch as `watch` sees it, is part of the checkpoint, and its weights are what the model ends with.
    Raises UnlearningError when the loss is not finite.
    """
    from accelerate import Accelerator

    cuda = torch.cuda.is_available()
    mixed = "bf16" if cuda and torch.cuda.is_bf16_supported() else "no"
    accelerator = Accelerator(cpu=not cuda, mixed_precision=mixed)
    main, parts = accelerator.is_main_process, accelerator.num_processes * optimisation.accumulate
    model.to(accelerator.device)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        trainable.values(), lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay, betas=(0.9, 0.98),
        fused=cuda or None,
    )  # fmt: skip
    total = max(1, epochs * len(batches(0)))
    warmup = max(1, int(optimisation.warmup * total))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_cosine(step, total, warmup))
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = _load(checkpoint, trainable, optimiser, schedule, identity, best)
    wrapped.train()
    with progress(label, total if main else 0, schedule.last_epoch) as bar:
        for epoch in range(len(losses), epochs):
            torch.manual_seed(optimisation.seed * 1_000_003 + epoch)
            running, steps = torch.zeros((), dtype=torch.float64, device=accelerator.device), 0
            for batch in batches(epoch):
                optimiser.zero_grad()
                pieces = split(batch, parts) if split and parts > 1 else [(batch, 1.0)]
                running += _backward(accelerator, wrapped, loss, pieces)
                accelerator.clip_grad_norm_(list(trainable.values()), optimisation.clip_norm)
                optimiser.step()
                schedule.step()
                steps += 1
                bar.advance(said=f"loss {losses[-1]:.3f}" if losses else "")
            mean = accelerator.reduce(running, "sum").item() / max(1, steps)  # the one wait for the device per epoch
            if not torch.isfinite(torch.tensor(mean)):
                raise UnlearningError(
                    f"The loss became {mean} in epoch {epoch + 1}. "
                    f"Lower the learning rate ({optimisation.learning_rate})."
                )
            losses.append(mean)
            if best is not None:
                best.look(model.eval())
                wrapped.train()
            if main and checkpoint is not None and len(losses) < epochs and len(losses) % checkpoint_epochs == 0:
                _save(checkpoint, trainable, optimiser, schedule, losses, identity, best)
            if watch is not None:
                if watch(model.eval()):
                    break
                wrapped.train()
    model.eval()
    if best is not None:
        model.load_state_dict(best.state)
    if main and checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Curve(tuple(losses))


def _backward(accelerator, model: nn.Module, loss: Callable, pieces: Sequence[tuple[Any, float]]) -> torch.Tensor:
    """Gradients of a step from the pieces that are this process's; these pieces' share of the step's loss, float64 [],
    on the device: reading it there would hold up the next step."""
    total, world = torch.zeros((), dtype=torch.float64, device=accelerator.device), accelerator.num_processes
    mine = pieces[accelerator.process_index :: world]
    for number, (part, share) in enumerate(mine, 1):
        with nullcontext() if number == len(mine) else accelerator.no_sync(model):
            value = loss(model, part) * share
            accelerator.backward(value * world)  # processes average their gradients
        total += value.detach()
    return total


def _save(
    path: Path, trainable: dict[str, nn.Parameter], optimiser, schedule, losses: Iterable[float], identity: str,
    best: BestEpoch | None,
) -> None:  # fmt: skip
    import json

    from safetensors.torch import save_file

    tensors = {f"weight.{name}": p.detach().cpu() for name, p in trainable.items()}
    for name, p in trainable.items():
        state = optimiser.state[p]
        tensors |= {f"{key}.{name}": state[key].cpu().contiguous() for key in ("exp_avg", "exp_avg_sq", "step")}
    meta = {"losses": json.dumps(list(losses)), "steps": str(schedule.last_epoch), "identity": identity}
    if best is not None:
        tensors |= {f"best.{name}": tensor for name, tensor in best.state.items()}
        meta["best"] = repr(best.score)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=meta)
    os.replace(temporary, path)


def _load(
    path: Path, trainable: dict[str, nn.Parameter], optimiser, schedule, identity: str, best: BestEpoch | None
) -> list[float]:
    import json

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        if meta.get("identity") != identity:
            return []
        with torch.no_grad():
            for name, p in trainable.items():
                p.copy_(file.get_tensor(f"weight.{name}"))
                optimiser.state[p].update(
                    {key: file.get_tensor(f"{key}.{name}").to(p.device) for key in ("exp_avg", "exp_avg_sq", "step")}
                )
        if best is not None:
            kept = [name for name in file.keys() if name.startswith("best.")]  # noqa: SIM118
            best.state = {name.removeprefix("best."): file.get_tensor(name) for name in kept}
            best.score = float(meta["best"])
    for _ in range(int(meta["steps"])):
        schedule.step()
    return json.loads(meta["losses"])
