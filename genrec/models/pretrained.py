"""A Hugging Face causal LM as backbone: SID tokens join its vocabulary, and only their rows learn the catalogue.

The SID tokens come first (ids of `Vocabulary`, padding and BOS included) and the checkpoint's t-th token moves to id
`vocabulary.size + t`: SID tables, rows and decoding are the same for every architecture. Weights and shape are all that
is taken: eos, sampling and whatever else a checkpoint says on generation stay behind.
"""

import torch
from torch import nn

from genrec.errors import ConfigError, reason
from genrec.models.backbone import Backbone, of_model
from genrec.models.beam import CHUNK, Prompts, continued, prefill
from genrec.sid.table import Vocabulary

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt")
"""Model types that the tests take through training, decoding and a bundle."""

SAME = 1e-2
"""Log-probabilities of a checkpoint's sequences may differ by so much (nat) between one pass and beam search."""


def load_pretrained(checkpoint: str, vocabulary: Vocabulary, seed: int, window: int) -> Backbone:
    """The causal LM of a Hugging Face name or folder in float32, with rows for the SID tokens drawn from `seed`.

    Raises ConfigError when there is none, and for one that cannot be decoded here: too few positions for `window` items
    and a target, or no beams as positions of one sequence.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, use_safetensors=True)
    except Exception as error:  # of transformers, safetensors, the hub, or a package that the checkpoint needs
        raise ConfigError(
            f"architecture.checkpoint = {checkpoint!r} is no causal LM that can be loaded: {reason(error)} "
            "Give a Hugging Face name or a folder with config.json and model.safetensors, whole and not quantised."
        ) from error
    _check(model.eval(), checkpoint, vocabulary, window)
    count = vocabulary.size
    model.resize_token_embeddings(model.get_input_embeddings().num_embeddings + count, mean_resizing=False)
    tables = {id(e.weight): e.weight for e in (model.get_input_embeddings(), model.get_output_embeddings())}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in tables.values():  # one where input and output are tied
            old = weight[:-count].clone()
            rows = torch.randn(count, weight.shape[1], generator=generator) * old.std()
            weight.copy_(torch.cat([rows, old]))
    return of_model(_shape(model, vocabulary), model)


def _check(model: nn.Module, checkpoint: str, vocabulary: Vocabulary, window: int) -> None:
    """Raises ConfigError where the loaded `model` cannot do what training and decoding ask of it."""
    name = f"architecture.checkpoint = {checkpoint!r} ({model.config.model_type})"
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError(f"{name} is quantised already. Give it unquantised; architecture.dtype makes it small.")
    config, levels = model.config.get_text_config(), vocabulary.levels
    positions, needed = getattr(config, "max_position_embeddings", None), (window + 1) * levels
    if positions is not None and positions < needed:
        raise ConfigError(
            f"{name} has {positions} positions, and {window} items of history and a target of {levels} tokens each take"
            f" {needed}. Lower architecture.window to {positions // levels - 1}, or take another checkpoint."
        )
    sliding, keys = getattr(config, "sliding_window", None), 1 + window * levels + CHUNK * (levels - 1)
    if sliding is not None and sliding < keys:
        raise ConfigError(
            f"{name} has a sliding window of {sliding} keys, and exact scoring of {CHUNK} items side by side after "
            f"{window} needs {keys}. Lower architecture.window, or take another checkpoint. {_remedy()}"
        )
    try:
        apart = _beams_differ(model)
    except Exception as error:  # whatever a model does with arguments it does not know
        raise ConfigError(f"{name} cannot be decoded: {reason(error)} {_remedy()}") from error
    if not apart <= SAME:  # NaN too
        raise ConfigError(
            f"{name} cannot be decoded: two beams in one sequence under a 4D mask differ by {apart:.2g} nat from each "
            f"alone. {_remedy()}"
        )


def _remedy() -> str:
    return f"Model types that are tested: {', '.join(FAMILIES)}."


@torch.inference_mode()
def _beams_differ(model: nn.Module) -> float:
    """Two continuations side by side, as beam search has them, against one pass over each: the largest difference."""
    prompt, paths = torch.arange(1, 6)[None], torch.tensor([[6, 7], [8, 9]])
    _, cache, position = prefill(model, Prompts(prompt, torch.ones_like(prompt, dtype=torch.bool)))
    own, found = torch.eye(2, dtype=torch.bool), []
    for step in range(2):
        visible = torch.cat([torch.ones(2, prompt.shape[1], dtype=torch.bool), own.repeat(1, step + 1)], 1)
        found.append(continued(model, paths[None, :, step], visible[None], position[:, None] + step, cache))
    whole = model(input_ids=torch.cat([prompt.expand(2, -1), paths], 1), use_cache=False).logits.float()
    expected = whole.log_softmax(-1)[:, -2:]
    return float((torch.stack(found, 2)[0] - expected).abs().max())


def _shape(model: nn.Module, vocabulary: Vocabulary) -> dict:
    """The checkpoint's config without names, paths and token ids of its own."""
    values = model.config.to_diff_dict()
    for name in ("_name_or_path", "architectures", "dtype", "transformers_version"):
        values.pop(name, None)
    return values | {"pad_token_id": vocabulary.PAD, "bos_token_id": vocabulary.BOS, "eos_token_id": None}


def with_trainable_rows(backbone: Backbone, count: int) -> nn.Module:
    """The model with PEFT's trainable tokens on the first `count` ids, as input and as output; nothing else learns."""
    from peft import TrainableTokensConfig, get_peft_model

    model = backbone.model()
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in tables]
    if tables[0].weight is tables[1].weight:
        names = names[:1]  # PEFT lets the tied output follow
    config = TrainableTokensConfig(token_indices=list(range(count)), target_modules=names, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def load_tokenizer(checkpoint: str):
    """The checkpoint's tokenizer, or None where it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError):
        return None
