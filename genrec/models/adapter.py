"""The adapter: LoRA on every linear layer, the only weights that interactions ever touch, and U-CAN's overlays."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn

from genrec.models.backbone import Backbone

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Adapter:
    """LoRA weights in PEFT's own naming, with rank and alpha (the update is scaled by alpha / rank)."""

    rank: int
    alpha: float
    state: State

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
    """One request batch's attenuation: a scale in (0, 1] per output dimension of each adapter site.

    scales: site name -> float32 [d_out], which multiplies the rows of that site's B. A and B themselves never change,
    so that a rollback drops the overlay and a repeat changes nothing.
    """

    batch_id: str
    scales: State


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
    """The model that serves: backbone plus adapter with the overlays applied, in eval mode."""
    from peft import set_peft_model_state_dict

    model = attach(backbone, adapter.rank, adapter.alpha, dropout, seed=0)
    set_peft_model_state_dict(model, dict(adapter.state))
    for site, scale in combine(overlays).items():
        weight = lora_sites(model)[site].lora_B["default"].weight
        weight.data.mul_(scale.to(weight)[:, None])
    return model.eval()


def lora_sites(model: nn.Module) -> dict[str, nn.Module]:
    """LoRA layers by the name of the linear layer they adapt, in module order."""
    from peft.tuners.lora import Linear

    prefix = "base_model.model."
    return {n.removeprefix(prefix): m for n, m in model.named_modules() if isinstance(m, Linear)}


def combine(overlays: Sequence[Overlay]) -> dict[str, torch.Tensor]:
    """Overlays combine by the elementwise minimum, which is order-free and idempotent."""
    sites = sorted({site for overlay in overlays for site in overlay.scales})
    return {site: reduce(torch.minimum, [o.scales[site] for o in overlays if site in o.scales]) for site in sites}


def fold(adapter: Adapter, overlays: Sequence[Overlay]) -> Adapter:
    """The adapter with the overlays multiplied into B: what a method that trains further has to start from."""
    state = dict(adapter.state)
    for site, scale in combine(overlays).items():
        name = f"base_model.model.{site}.lora_B.weight"
        state[name] = state[name] * scale[:, None]
    return Adapter(adapter.rank, adapter.alpha, state)
