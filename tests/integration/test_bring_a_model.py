"""docs/how-to/bring-a-model.md, on a tiny random checkpoint: trained, registered, read by PEFT."""

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from genrec.config import Settings
from genrec.registry import open_registry
from tests.conftest import TINY, copied, set_params
from tests.snippets import ROOT, blocks, runnable
from tests.terminal import Terminal

PAGE = ROOT / "docs" / "how-to" / "bring-a-model.md"
BLOCKS = {block.title: block.text for block in blocks(PAGE)}
CHECKPOINT = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(trained, tmp_path_factory):
    """The workspace with the page's parameters and the checkpoint in it, trained and promoted."""
    home = tmp_path_factory.mktemp("own") / "shop"
    copied(trained, home)
    checkpoint = AutoConfig.for_model("qwen2", **CHECKPOINT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(checkpoint).save_pretrained(home / "my-model")
    page = yaml.safe_load(BLOCKS["params.yaml"])
    brief = {"backbone": {"visits": 500, "learning_rate": 0.01}, "train": {**TINY["train"], "epochs": 15}}
    set_params(home, **brief, **page)
    (train,) = runnable(PAGE)
    assert "verdict: PASS" in Terminal(home).run(train)
    return home


def test_the_champion_stands_on_the_checkpoint(home):
    registry = open_registry(Settings(home=home).workspace)
    bundle = registry.bundle(registry.champion().number)
    original = AutoModelForCausalLM.from_pretrained(home / "my-model", dtype=torch.bfloat16).state_dict()
    kept = bundle.backbone.state
    assert bundle.backbone.config["model_type"] == "qwen2"
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    for name, tensor in original.items():
        assert torch.equal(kept[name][-len(tensor) :], tensor), name
    assert len(kept["model.embed_tokens.weight"]) == 64 + bundle.table.vocabulary.size
    assert {tensor.dtype for tensor in bundle.adapter.state.values()} == {torch.float32}


def test_peft_reads_the_registered_version(home, monkeypatch):
    monkeypatch.setenv("GENREC_HOME", str(home))
    found: dict = {}
    exec(compile(BLOCKS["read_a_version.py"], "read_a_version.py", "exec"), found)
    registry = open_registry(Settings(home=home).workspace)
    bundle = registry.bundle(registry.champion().number)
    tokens = torch.randint(2, bundle.table.vocabulary.size, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs, bare = (
            model(input_ids=tokens).logits for model in (bundle.adapted(), found["model"], bundle.backbone.model())
        )
    assert torch.equal(ours, theirs)
    assert (ours - bare).abs().max() > 0.1
