"""The adapter: LoRA on every linear layer, the only weights that interactions ever touch, and U-CAN's overlays."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from genrec.models.backbone import Backbone
from genrec.models.device import best_device

State = Mapping[str, torch.Tensor]
Axis = Literal["out", "rank", "in"]


@dataclass(frozen=True)
class Adapter:
    """LoRA weights in PEFT's own naming, with rank and alpha (the update is scaled by alpha / rank)."""

    rank: int
    alpha: float
    state: State

    @property
    def sites(self) -> list[str]:
        """Names of the linear layers it adapts."""
        first, last = weight_names("|")[0].split("|")
        return [name.removeprefix(first).removesuffix(last) for name in self.state if name.endswith(last)]

    def config(self) -> dict:
        """What PEFT's adapter_config.json needs, so that `PeftModel.from_pretrained` reads a bundle's adapter."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": "all-linear",
            "base_model_name_or_path": "../backbone",
            "inference_mode": True,
        }


@dataclass(frozen=True)
class Overlay:
    """One request batch's attenuation: a scale in [0, 1] per dimension of each adapter site, along one axis.

    scales: site name -> float32 [d_out], [rank] or [d_in], which multiplies the rows of that site's B (axis "out"), the
    components of its `canonical` factorisation ("rank") or the columns of A ("in"). A and B themselves never change, so
    that a rollback drops the overlay and a repeat changes nothing.
    """

    batch_id: str
    scales: State
    axis: Axis = "out"


def attach(backbone: Backbone, rank: int, alpha: float, dropout: float, seed: int) -> nn.Module:
    """The backbone with a fresh LoRA on all linear layers; only the LoRA weights require gradients."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in a way transformers deprecates
        torch.manual_seed(seed)
        return get_peft_model(backbone.model(), config)


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(model).items()}


def adapted_model(
    backbone: Backbone, adapter: Adapter, overlays: Sequence[Overlay] = (), dropout: float = 0.0
) -> nn.Module:
    """The model that serves: backbone plus adapter with the overlays applied, in eval mode, on `best_device`."""
    from peft import set_peft_model_state_dict

    model = attach(backbone, adapter.rank, adapter.alpha, dropout, seed=0)
    set_peft_model_state_dict(model, dict(fold(adapter, overlays).state))
    return model.eval().to(best_device())


def lora_sites(model: nn.Module) -> dict[str, nn.Module]:
    """LoRA layers by the name of the linear layer they adapt, in module order."""
    from peft.tuners.lora import Linear

    prefix = "base_model.model."
    return {n.removeprefix(prefix): m for n, m in model.named_modules() if isinstance(m, Linear)}


def combine(overlays: Sequence[Overlay]) -> dict[tuple[Axis, str], torch.Tensor]:
    """Scales by (axis, site): the elementwise minimum over the overlays, which is order-free and idempotent."""
    found: dict[tuple[Axis, str], list[torch.Tensor]] = {}
    for overlay in overlays:
        for site, scale in overlay.scales.items():
            found.setdefault((overlay.axis, site), []).append(scale)
    return {key: reduce(torch.minimum, found[key]) for key in sorted(found)}


def canonical(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A' [r, d_in] and B' [d_out, r] with B' A' = B A, whose components are its singular triples, largest first.

    A LoRA's own rank axis is arbitrary (B M^-1 and M A are the same update for any invertible M); the singular value
    decomposition fixes it, each value shared evenly by the two factors. Components beyond the smaller dimension are 0.
    """
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root, missing = s.sqrt(), a.shape[0] - len(s)
    new_b, new_a = q_b @ u * root, root[:, None] * (vt @ q_a.T)
    return F.pad(new_a, (0, 0, 0, missing)).to(a), F.pad(new_b, (0, missing)).to(b)


def canonicalise(adapter: Adapter, sites: Iterable[str]) -> Adapter:
    """The same function with the rank axis of `sites` in its `canonical` form."""
    state = dict(adapter.state)
    for site in sites:
        a, b = weight_names(site)
        state[a], state[b] = canonical(state[a], state[b])
    return Adapter(adapter.rank, adapter.alpha, state)


def weight_names(site: str) -> tuple[str, str]:
    """Names of the site's A and B in an adapter's state."""
    return f"base_model.model.{site}.lora_A.weight", f"base_model.model.{site}.lora_B.weight"


def fold(adapter: Adapter, overlays: Sequence[Overlay]) -> Adapter:
    """The adapter with the overlays multiplied into A and B: what a method that trains further has to start from.

    The update of a site becomes (alpha / r) diag(s_out) B' diag(s_rank) A' diag(s_in).
    """
    scales = combine(overlays)
    state = dict(canonicalise(adapter, [site for axis, site in scales if axis == "rank"]).state)
    for (axis, site), scale in scales.items():
        a, b = weight_names(site)
        if axis == "out":
            state[b] = state[b] * scale[:, None]
        elif axis == "rank":
            state[b] = state[b] * scale
        else:
            state[a] = state[a] * scale
    return Adapter(adapter.rank, adapter.alpha, state)
