"""The user-free backbone: a transformer that predicts the next SID token, trained on the catalogue and then frozen.

Every architecture takes packed rows of SID tokens and keeps the ids of `Vocabulary`: Llama blocks and T5 (`t5`) are
built from a config, a Hugging Face checkpoint gets the SID tokens added (`pretrained`).

No user data may reach it (architecture.md): its content hash is stored in every bundle and checked around every
unlearning run, so that "retrain the adapter without them" is exact for the weights.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from genrec.config import ArchitectureParams
from genrec.errors import BundleError
from genrec.sid.table import Vocabulary


@dataclass(frozen=True)
class Backbone:
    """A Hugging Face config (as a dict) and the weights by name."""

    config: dict
    state: dict[str, torch.Tensor]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the config and every tensor's name, type, shape and bytes."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in sorted(self.state):
            tensor = self.state[name].detach().cpu().contiguous()
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        return digest.hexdigest()

    def model(self) -> torch.nn.Module:
        """A fresh Hugging Face model with these weights and their type, in eval mode."""
        model = _from_config(self.config)
        model.load_state_dict(self.state)
        return model.eval()

    def to(self, dtype: str) -> "Backbone":
        """The same weights rounded to `dtype` (float32 or bfloat16), in which the model then computes."""
        if dtype == self.config.get("dtype", "float32"):
            return self
        state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in self.state.items()}
        return Backbone(self.config | {"dtype": dtype}, state)


def _from_config(config: dict) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    if config.is_encoder_decoder:
        from genrec.models.t5 import PackedT5

        return PackedT5._from_config(config)
    return AutoModelForCausalLM.from_config(config)


def architecture(params: ArchitectureParams, vocabulary: Vocabulary) -> dict:
    """The config of a Llama or T5 for a vocabulary and a history window, as a plain dict."""
    return _t5(params, vocabulary) if params.name == "t5" else _llama(params, vocabulary)


def _t5(params: ArchitectureParams, vocabulary: Vocabulary) -> dict:
    return {
        "model_type": "t5",
        "vocab_size": vocabulary.size,
        "levels": vocabulary.levels,
        "d_model": params.hidden,
        "d_ff": params.feed_forward,
        "d_kv": params.head_width or params.hidden // params.heads,
        "num_layers": params.layers,
        "num_decoder_layers": params.layers,
        "num_heads": params.heads,
        "pad_token_id": vocabulary.PAD,
        "bos_token_id": vocabulary.BOS,
        "decoder_start_token_id": vocabulary.BOS,
        "eos_token_id": None,
    }


def _llama(params: ArchitectureParams, vocabulary: Vocabulary) -> dict:
    width = {} if params.head_width is None else {"head_dim": params.head_width}
    return width | {
        "model_type": "llama",
        "vocab_size": vocabulary.size,
        "hidden_size": params.hidden,
        "intermediate_size": params.feed_forward,
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "num_key_value_heads": params.heads,
        "max_position_embeddings": 1 + (params.window + 1) * vocabulary.levels,
        "pad_token_id": vocabulary.PAD,
        "bos_token_id": vocabulary.BOS,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }


def initialise(config: dict, seed: int) -> Backbone:
    """A backbone with random weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _from_config(config)
    return of_model(config, model)


def of_model(config: dict, model: torch.nn.Module) -> Backbone:
    return Backbone(config, {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})


def save_backbone(backbone: Backbone, directory: Path) -> None:
    """Hugging Face layout: config.json and model.safetensors."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(backbone.config, indent=1, sort_keys=True) + "\n")
    save_file(backbone.state, directory / "model.safetensors")


def load_backbone(directory: Path) -> Backbone:
    from safetensors.torch import load_file

    try:
        return Backbone(json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors"))
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            f"Backbone at {directory.name}/ cannot be read: {error}. Rebuild it with `dvc repro`."
        ) from error
