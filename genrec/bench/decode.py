"""Decoding: the constrained beam search against `generate`, the bare prompt forward, no mask, and exact scores.

All in one run and in turns, so that what else the machine does falls on every side alike: a ratio is the median over
the turns of one side's seconds over the other's.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from genrec.config import ArchitectureParams, Params
from genrec.evaluation.ranking import TOP
from genrec.models.adapter import Adapter, adapter_state, attach
from genrec.models.backbone import architecture, initialise
from genrec.models.beam import Prompts, beam_search, by_length, encode_histories, exact_scores, prefill
from genrec.models.bundle import Bundle, Lineage
from genrec.models.device import best_device
from genrec.sid.index import build_index
from genrec.sid.quantise import Codebooks
from genrec.sid.table import SidTable, build_table

LEVELS, CODES = 3, 256
EXACT_BEAM, EXACT_CHUNK = 50, 64
MASK_TURNS = 8
"""Turns with and without masks, per turn of the rest: the difference is small."""
SLIM = ArchitectureParams(hidden=8, layers=1, heads=1, feed_forward=8)
"""Masks cost the same under every model; under this one they stand out from the noise."""
TIE = 1e-4
"""Two items whose scores differ by less (nat) may swap places."""


@dataclass(frozen=True)
class Setting:
    """batch: users searched at once; history: items per user; turns: how often everything is timed."""

    batch: int = 64
    beam: int = 20
    history: int = 20
    turns: int = 5


@dataclass(frozen=True)
class Claim:
    """One ratio: what it compares, the bar of the project, and the figures it is made of (seconds in `_s`)."""

    name: str
    ratio: float
    compares: str
    bar: str
    figures: Mapping[str, float]

    @property
    def holds(self) -> bool:
        sign, limit = self.bar.split()
        return self.ratio >= float(limit) if sign == ">=" else self.ratio <= float(limit)

    def as_dict(self) -> dict:
        figures = {name: float(f"{value:.4g}") for name, value in self.figures.items()}
        return asdict(self) | {"ratio": float(f"{self.ratio:.4g}"), "holds": self.holds, "figures": figures}


def run(bundle: Bundle, setting: Setting, histories: Sequence[np.ndarray], large: int, seed: int) -> dict:
    """All claims of one run, JSON-ready. histories: what exact scoring is compared on, none for an untrained model;
    large: items of the simulated catalogue.
    """
    claims = [*speed(bundle, setting, seed), *index_size(bundle.table), large_index(large, seed)]
    if len(histories):
        claims.append(exactness(bundle, histories))
    return {
        "device": str(best_device()), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "transformers": version("transformers"), **asdict(setting), "claims": [claim.as_dict() for claim in claims],
    }  # fmt: skip


def random_table(items: int, seed: int) -> SidTable:
    """Items with SIDs of 3 x 256 codes drawn at random, and the dedup digit."""
    codes = np.random.default_rng(seed).integers(CODES, size=(items, LEVELS)).astype(np.int32)
    return build_table([f"i{item:07d}" for item in range(items)], codes, CODES)


def random_bundle(items: int, seed: int) -> Bundle:
    """An untrained model of the default architecture over `random_table`: good for seconds, not for what it says."""
    params, table = Params(), random_table(items, seed)
    backbone = initialise(architecture(params.architecture, table.vocabulary), seed)
    rank, alpha = params.train.rank, params.train.alpha
    adapter = Adapter(rank, alpha, adapter_state(attach(backbone, rank, alpha, 0.0, seed)))
    codebooks = Codebooks(np.zeros((LEVELS, CODES, 1), np.float32), seed)
    return Bundle(backbone, adapter, table, codebooks, params, Lineage("none", "none"), titles=table.item_ids)


def speed(bundle: Bundle, setting: Setting, seed: int) -> list[Claim]:
    """Users per second against `generate`, equality with it, time over the prompt's, and what masks cost."""
    rng, table = np.random.default_rng(seed), bundle.table
    histories = rng.integers(len(table.item_ids), size=(setting.batch, setting.history))
    model = bundle.model()
    device, index = model.device, bundle.index_on(model.device)
    prompts = encode_histories(histories, table, setting.history).to(device)
    deny, seen = torch.from_numpy(rng.random(index.items) < 0.01), torch.from_numpy(histories)
    masks = {"deny": deny.to(device), "seen": seen.to(device)}
    slim = initialise(architecture(SLIM, table.vocabulary), seed).model().to(device)
    generate = generate_by(model, table, setting.beam)

    def search(model=model, **masks) -> torch.Tensor:
        return beam_search(model, prompts, index, setting.beam, **masks)[0].cpu()

    sides = {
        "ours": search,
        "generate": lambda: generate(prompts).cpu(),
        "prompt": lambda: prompt_forward(model, prompts).cpu(),
    }
    seconds = in_turns(sides, setting.turns)
    sides = {
        "none": lambda: search(slim),
        "masks": lambda: search(slim, **masks),
        "search": search,
        "prefill": lambda: prompt_cached(model, prompts).cpu(),
    }
    masked = in_turns(sides, MASK_TURNS * setting.turns)
    same = (torch.from_numpy(table.tokens)[search()] == generate(prompts).cpu()).all(-1).all(-1)
    found = search(**masks)
    valid = (found >= 0) & ~deny[found] & ~(found[..., None] == seen[:, None]).any(-1)
    distinct = found.sort(1).values.diff(dim=1).ne(0).all(1)
    where = f"beam {setting.beam}, batch {setting.batch}, {index.items} items, histories of {setting.history}"
    per_s = {name: setting.batch / float(np.median(took)) for name, took in seconds.items()}
    return [
        Claim(
            "users per second", _median_ratio(seconds["generate"], seconds["ours"]),
            f"our users per second over those of generate with prefix_allowed_tokens_fn; {where}", ">= 20", per_s,
        ),
        Claim(
            "same lists", float(same.double().mean()),
            f"users whose list is that of generate, place by place, over all users; {where}", ">= 1",
            {"users": setting.batch},
        ),
        Claim(
            "over the prompt", _median_ratio(seconds["ours"], seconds["prompt"]),
            f"seconds of a search over those of the forward pass of its prompts alone; {where}", "<= 2.5",
            {f"{name}_s": float(np.median(took)) for name, took in seconds.items()},
        ),
        Claim(
            "masks", _median_ratio(masked["masks"] - masked["none"], masked["search"]),
            "seconds that a deny list of 1 % and every user's own history add to a search, taken on a slim model, over "
            f"those of the search with its prompts; {where}", "<= 0.02",
            {f"{name}_s": float(np.median(took)) for name, took in masked.items()},
        ),
        Claim(
            "masks of the steps",
            _median_ratio(masked["masks"] - masked["none"], masked["search"] - masked["prefill"]),
            "the same seconds, what is done once per search included, over those of the search without its prompts: "
            f"what masks are of a mean step; {where}", "<= 0.02",
            {"steps_s": float(np.median(masked["search"] - masked["prefill"]))},
        ),
        Claim(
            "valid", float((valid.all(1) & distinct).double().mean()),
            f"users all of whose items exist, are allowed and differ, over all users; {where}", ">= 1",
            {"users": setting.batch},
        ),
    ]  # fmt: skip


def index_size(table: SidTable) -> list[Claim]:
    """Bytes and seconds of the decode index of a catalogue, against 10 MB and 1 s."""
    took, index = _timed(lambda: build_index(table))
    items = {"items": index.items}
    return [
        Claim("index bytes", index.nbytes / 10e6, "decode index over 10 MB", "<= 1", items | {"bytes": index.nbytes}),
        Claim("index seconds", took, "seconds to build the decode index over 1 s", "<= 1", items | {"build_s": took}),
    ]


def large_index(items: int, seed: int) -> Claim:
    """A large simulated catalogue: SID table and decode index, against 60 s."""
    table_s, table = _timed(lambda: random_table(items, seed))
    index_s, index = _timed(lambda: build_index(table))
    return Claim(
        "large index", (table_s + index_s) / 60, "seconds for SID table and decode index over 60 s", "<= 1",
        {"items": items, "table_s": table_s, "index_s": index_s, "bytes": index.nbytes},
    )  # fmt: skip


def exactness(bundle: Bundle, histories: Sequence[np.ndarray]) -> Claim:
    """Top 10 of a beam of 50 against scoring every item, on the bare model. Only a trained one is evidence."""
    model, window = bundle.model(), bundle.params.architecture.window
    index = bundle.index_on(model.device)
    agree, identical = [], []
    for part in by_length(histories, window, 16):
        prompts = encode_histories([histories[i] for i in part], bundle.table, window).to(model.device)
        items = beam_search(model, prompts, index, EXACT_BEAM)[0][:, :TOP]
        exact = exact_scores(model, prompts, bundle.table, EXACT_CHUNK)
        best = exact.topk(items.shape[1], dim=1)
        agree += ((exact.gather(1, items) - best.values).abs() < TIE).all(1).tolist()
        identical += (items == best.indices).all(1).tolist()
    return Claim(
        "as exact", float(np.mean(agree)),
        f"users whose top {TOP} at beam {EXACT_BEAM} is that of exact scoring, ties within {TIE} nat, over all users",
        ">= 0.99", {"users": len(agree), "items": index.items, "identical": float(np.mean(identical))},
    )  # fmt: skip


def generate_by(model: nn.Module, table: SidTable, beam: int) -> Callable[[Prompts], torch.Tensor]:
    """Hugging Face's beam search over the same SIDs: prompts -> tokens int64 [batch, beam, levels], best first."""
    from transformers import GenerationConfig

    levels = table.vocabulary.levels
    children: dict[tuple[int, ...], set[int]] = {}
    for sid in table.tokens.tolist():
        for level, token in enumerate(sid):
            children.setdefault(tuple(sid[:level]), set()).add(token)
    allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
    config = GenerationConfig(
        max_new_tokens=levels, num_beams=beam, num_return_sequences=beam, do_sample=False, length_penalty=0.0,
        pad_token_id=table.vocabulary.PAD, bos_token_id=table.vocabulary.BOS,
    )  # fmt: skip

    def generate(prompts: Prompts) -> torch.Tensor:
        length = prompts.tokens.shape[1]
        found = model.generate(
            input_ids=prompts.tokens, attention_mask=prompts.mask.long(), generation_config=config,
            prefix_allowed_tokens_fn=lambda _, ids: allowed[tuple(ids[length:].tolist())],
        )  # fmt: skip
        return found[:, length:].view(-1, beam, levels)

    return generate


@torch.inference_mode()
def prompt_forward(model: nn.Module, prompts: Prompts) -> torch.Tensor:
    """The floor: one forward pass of the prompts, without a cache, logits of the last position alone."""
    return model(input_ids=prompts.tokens, attention_mask=prompts.mask.long(), use_cache=False, logits_to_keep=1).logits


@torch.inference_mode()
def prompt_cached(model: nn.Module, prompts: Prompts) -> torch.Tensor:
    """The prompts as a search begins with them: with the cache that its steps go on from."""
    return prefill(model, prompts)[0]


def in_turns(sides: Mapping[str, Callable], turns: int) -> dict[str, np.ndarray]:
    """Wall seconds of every side in every turn, [turns], after one that does not count. A side waits for its device."""
    took = [{name: _timed(side)[0] for name, side in sides.items()} for _ in range(turns + 1)]
    return {name: np.array([turn[name] for turn in took[1:]]) for name in sides}


def _median_ratio(above: np.ndarray, below: np.ndarray) -> float:
    return float(np.median(above / below))


def _timed(work: Callable) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
