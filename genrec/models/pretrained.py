"""A Hugging Face causal LM as backbone: SID tokens join its vocabulary, and only their rows learn the catalogue.

The SID tokens come first (ids of `Vocabulary`, padding and BOS included) and the checkpoint's t-th token moves to id
`vocabulary.size + t`: SID tables, rows and decoding are the same for every architecture. Weights and shape are all that
is taken: eos, sampling and whatever else a checkpoint says on generation stay behind.
"""

import torch
from torch import nn

from genrec.errors import ConfigError
from genrec.models.backbone import Backbone, of_model
from genrec.sid.table import Vocabulary


def load_pretrained(checkpoint: str, vocabulary: Vocabulary, seed: int) -> Backbone:
    """The causal LM of a Hugging Face name or folder in float32, with rows for the SID tokens drawn from `seed`.

    Raises ConfigError when there is none.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"architecture.checkpoint = {checkpoint!r} is no causal LM that can be loaded: {reason} "
            "Give a Hugging Face name or a folder with config.json and model.safetensors."
        ) from error
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
