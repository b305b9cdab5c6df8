"""T5 and pretrained causal LMs behind the causal model's interface: training, decoding, bundle and unlearning."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from genrec.config import Params
from genrec.errors import ConfigError, UnlearningError
from genrec.models.adapter import Adapter, adapter_state, attach
from genrec.models.beam import beam_search, encode_histories, exact_scores
from genrec.models.bundle import Bundle, Lineage, load_bundle, save_bundle
from genrec.models.pretrained import FAMILIES, load_pretrained, load_tokenizer
from genrec.sid.table import Vocabulary
from genrec.training.base import train_adapter, train_backbone
from genrec.training.rows import Row, batch_loss, collate, token_nll
from genrec.training.titles import title_batch
from genrec.unlearning import method
from genrec.unlearning.tracer import soft_forward, soft_sids

SHAPE = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NAMES = ("qwen2", "llama", "t5")
WINDOW = 8
OWN_SHAPE = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
}  # fmt: skip
"""What a model type calls its shape where it is not as in SHAPE."""


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    """Writes a tiny random checkpoint of a model type as the hub has them: weights, config, tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    def write(kind, tokenizer=True, **values):
        folder = tmp_path_factory.mktemp(kind)
        shape = SHAPE | OWN_SHAPE.get(kind, {}) | values
        config = AutoConfig.for_model(kind, tie_word_embeddings=kind in ("qwen2", "gpt2"), **shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        if tokenizer:
            words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
            words.pre_tokenizer = pre_tokenizers.Whitespace()
            words.train_from_iterator(
                dataset.titles, trainers.WordLevelTrainer(vocab_size=120, special_tokens=["[UNK]"])
            )
            PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="module")
def qwen2(checkpoint):
    return checkpoint("qwen2")


@pytest.fixture(scope="module")
def shaped(params, small, checkpoint, qwen2):
    """name -> parameters of a short training of that architecture."""

    def make(name, **values):
        brief = small(small(params, "backbone", visits=16), "train", epochs=2, rank=4, alpha=8)
        if name == "t5":
            brief = small(brief, "backbone", visits=4)
            return small(brief, "architecture", name="t5", layers=1, head_width=12, **values)
        folder = qwen2 if name == "qwen2" else checkpoint(name)
        return small(brief, "architecture", name="pretrained", checkpoint=str(folder), **values)

    return make


@pytest.fixture(scope="module")
def build(table, codebooks, training, embeddings, dataset):
    """parameters -> the bundle, the losses of its backbone and of its adapter; the same is built once."""

    @cache
    def make(key):
        params = Params.model_validate_json(key)
        backbone, learned = train_backbone(table, embeddings, params, dataset.titles)
        adapter, curve = train_adapter(backbone, training[:16], table, params)
        return Bundle(backbone, adapter, table, codebooks, params, Lineage("d0", "c0")), learned.losses, curve.losses

    return lambda params: make(params.model_dump_json())


@pytest.fixture(scope="module", params=NAMES)
def built(request, shaped, build):
    return build(shaped(request.param))


@pytest.fixture(scope="module")
def prompts(table):
    rng = np.random.default_rng(5)
    return encode_histories([rng.integers(0, 59, size=n) for n in (1, 8, 3, 12)], table, WINDOW)


def test_training_lowers_the_loss_and_touches_the_adapter(built):
    bundle, backbone_losses, adapter_losses = built
    assert adapter_losses[-1] < adapter_losses[0]
    assert all(np.isfinite(backbone_losses))
    changed = [t for name, t in bundle.adapter.state.items() if "lora_B" in name]
    assert all(t.abs().max() > 0 for t in changed)


def test_attention_is_the_scaled_dot_product_of_torch(built, table, monkeypatch):
    """In a training step, of every layer; its speed is why nothing else is done about attention here."""
    bundle, calls, fused = built[0], [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    batch_loss(bundle.adapted(), collate([Row(np.array([3, 1, 4]))], table)).backward()
    assert len(calls) >= bundle.adapted().config.num_hidden_layers


def test_a_beam_as_wide_as_the_catalogue_is_exact(built, prompts, table):
    bundle, model = built[0], built[0].model()
    items, scores = beam_search(model, prompts, bundle.index, beam=500)
    exact = exact_scores(model, prompts, table)
    torch.testing.assert_close(scores, exact.sort(descending=True).values, atol=2e-5, rtol=0)
    torch.testing.assert_close(exact.gather(1, items), scores, atol=2e-5, rtol=0)
    torch.testing.assert_close(exact_scores(model, prompts, table, chunk=7), exact, atol=2e-5, rtol=0)


def test_packed_rows_say_what_decoding_says(built, table):
    """The likelihood of every item of a row is the exact score of that item after the ones before it."""
    model, items = built[0].model(), np.array([3, 40, 17, 58])
    total, count = token_nll(model, [Row(items)], table)
    prompts = encode_histories([items[:n] for n in range(1, 4)], table, WINDOW)
    exact = exact_scores(model, prompts, table)[range(3), items[1:]].sum().item()
    first, _ = token_nll(model, [Row(items[:1])], table)
    assert count.tolist() == [4 * table.vocabulary.levels]
    assert total[0] - first[0] == pytest.approx(-exact, abs=1e-3)


def test_t5_computes_what_transformers_computes(build, shaped, table, prompts):
    """One history and one target at a time through the class of the library, as TIGER does."""
    from transformers import T5Config, T5ForConditionalGeneration

    backbone = build(shaped("t5"))[0].backbone
    plain = T5ForConditionalGeneration(T5Config(**backbone.config)).eval()
    plain.load_state_dict(backbone.state)
    target = torch.from_numpy(table.tokens)
    begun = torch.cat([torch.full_like(target[:, :1], Vocabulary.BOS), target[:, :-1]], 1)
    exact = exact_scores(backbone.model(), prompts, table)
    for tokens, mask, scores in zip(prompts.tokens, prompts.mask, exact, strict=True):
        history = tokens[mask].expand(len(target), -1)
        with torch.no_grad():
            logp = plain(input_ids=history, decoder_input_ids=begun).logits.log_softmax(-1)
        slow = logp.gather(-1, target[..., None])[..., 0].sum(1)
        torch.testing.assert_close(scores, slow, atol=2e-5, rtol=0)


def test_a_bundle_comes_back_as_it_was(built, prompts, tmp_path):
    bundle = built[0]
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.backbone.hash == bundle.backbone.hash
    assert loaded.params == bundle.params
    found, expected = (beam_search(b.model(), prompts, b.index, 10) for b in (loaded, bundle))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["ucan_plus", "retrain"])
def test_unlearning_changes_the_adapter_alone(built, user_problem, small, name):
    bundle = built[0]
    params = small(bundle.params, "unlearning.ucan_plus", steps=2, batch_tokens=200, contrast_rows=2)
    problem = replace(user_problem, bundle=bundle, params=small(params, "train", epochs=1))
    after = method(name).run(problem).bundle
    assert after.backbone.hash == bundle.backbone.hash
    assert after.adapter.state.keys() == bundle.adapter.state.keys()
    assert any(not torch.equal(after.adapter.state[n], t) for n, t in bundle.adapter.state.items())


def test_scif_takes_second_derivatives_of_t5(build, shaped, concept_problem, small):
    bundle = build(shaped("t5"))[0]
    params = small(bundle.params, "unlearning.scif", cg_steps=1, retain_rows=4)
    after = method("scif").run(replace(concept_problem, bundle=bundle, params=params)).bundle
    assert after.backbone.hash == bundle.backbone.hash
    assert any(not torch.equal(after.adapter.state[n], t) for n, t in bundle.adapter.state.items())


def test_soft_sids_reach_t5_as_history_and_as_targets(build, shaped, concept_problem, embeddings, codebooks, table):
    """Sharpened to the stored codes they are the stored SIDs; soft ones send a gradient to every concept item."""
    model, concept = build(shaped("t5"))[0].adapted(), concept_problem.items
    rows = [Row(np.array([concept[0], 3, concept[1]]))]
    soft = soft_sids(table, concept, embeddings, codebooks)
    phi = torch.zeros_like(soft.logits0, requires_grad=True)
    hard = soft_forward(model, rows, table, soft, soft.q(phi, 1e6))[0].sum().item()
    assert -hard == pytest.approx(token_nll(model, rows, table)[0][0], abs=1e-3)
    log_p, _, is_retained = soft_forward(model, rows, table, soft, soft.q(phi))
    (through_history,) = torch.autograd.grad(log_p[is_retained].sum(), phi, retain_graph=True)
    (everything,) = torch.autograd.grad(log_p.sum(), phi)
    assert through_history[0].abs().max() > 0
    assert everything[1].abs().max() > 0


def test_ucan_refuses_t5(build, shaped, user_problem):
    bundle = build(shaped("t5"))[0]
    with pytest.raises(UnlearningError, match=r"U-CAN reads one activation per token.*user_ladder"):
        method("ucan").run(replace(user_problem, bundle=bundle))


# --- pretrained ------------------------------------------------------------------------------------------------------


def test_only_the_rows_of_sid_tokens_learn_the_catalogue(build, shaped, qwen2, table):
    from transformers import AutoModelForCausalLM

    size = table.vocabulary.size
    backbone = build(shaped("qwen2"))[0].backbone
    started = load_pretrained(str(qwen2), table.vocabulary, 0, WINDOW)
    original = AutoModelForCausalLM.from_pretrained(qwen2).state_dict()
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    assert backbone.state.keys() == original.keys()
    for name, tensor in original.items():
        kept = backbone.state[name][size:] if name in tables else backbone.state[name]
        assert torch.equal(kept, tensor), name
    moved = (backbone.state["model.embed_tokens.weight"] != started.state["model.embed_tokens.weight"]).any(1)
    assert moved[Vocabulary.BOS : size].all()
    assert not moved[size:].any()


def test_titles_and_sids_learn_each_other(build, shaped, qwen2, table, dataset):
    tokenizer = load_tokenizer(str(qwen2))
    items = range(0, 59, 3)
    batch = title_batch(items, [dataset.titles[i] for i in items], tokenizer, table)
    words = np.array(tokenizer(dataset.titles[3], add_special_tokens=False)["input_ids"]) + table.vocabulary.size
    sid = table.tokens[3]
    assert batch.tokens[2][: 1 + len(words) + len(sid)].tolist() == [Vocabulary.BOS, *words, *sid]
    assert batch.labels[2][batch.labels[2] >= 0].tolist() == sid.tolist()
    assert batch.tokens[3][: 1 + len(words) + len(sid)].tolist() == [Vocabulary.BOS, *sid, *words]
    assert batch.labels[3][batch.labels[3] >= 0].tolist() == words.tolist()
    trained, untrained = build(shaped("qwen2"))[0].backbone, load_pretrained(str(qwen2), table.vocabulary, 0, WINDOW)
    after, before = (batch_loss(b.model(), batch).item() for b in (trained, untrained))
    assert after < before - 0.15


def test_a_checkpoint_without_a_tokenizer_learns_from_walks_alone(checkpoint, shaped, table, embeddings):
    folder = checkpoint("llama", tokenizer=False)
    params = shaped("qwen2").model_copy(deep=True)
    architecture = params.architecture.model_copy(update={"checkpoint": str(folder)})
    _, curve = train_backbone(table, embeddings, params.model_copy(update={"architecture": architecture}))
    assert load_tokenizer(str(folder)) is None
    assert all(np.isfinite(curve.losses))


def test_generation_settings_of_a_checkpoint_leak_nowhere(build, shaped, qwen2, prompts, tmp_path):
    plain = build(shaped("qwen2"))[0]
    settings = {"do_sample": True, "temperature": 0.1, "top_k": 1, "eos_token_id": 5, "num_beams": 3, "max_length": 4}
    path = qwen2 / "generation_config.json"
    before = path.read_text()
    path.write_text(json.dumps(settings))
    try:
        loud = build(shaped("qwen2", hidden=33))[0]  # which a checkpoint ignores: not the one built before
    finally:
        path.write_text(before)
    assert loud.backbone.hash == plain.backbone.hash
    found, expected = (beam_search(b.model(), prompts, b.index, 10) for b in (loud, plain))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    save_bundle(loud, tmp_path / "bundle")
    assert not list((tmp_path / "bundle").rglob("generation_config.json"))
    served = loud.model().generation_config.to_diff_dict()
    assert not served.keys() & settings.keys()
    assert loud.backbone.config["eos_token_id"] is None
    assert str(qwen2) not in json.dumps(loud.backbone.config)


def test_a_bfloat16_backbone_keeps_a_float32_adapter(build, shaped, prompts, table, tmp_path):
    bundle = build(shaped("qwen2", dtype="bfloat16"))[0]
    assert {t.dtype for t in bundle.backbone.state.values()} == {torch.bfloat16}
    assert {t.dtype for t in bundle.adapter.state.values()} == {torch.float32}
    assert bundle.model().dtype == torch.bfloat16
    items, scores = beam_search(bundle.model(), prompts, bundle.index, beam=500)
    exact = exact_scores(bundle.model(), prompts, table)
    torch.testing.assert_close(exact.gather(1, items), scores, atol=0.1, rtol=0)
    full = build(shaped("qwen2"))[0]
    torch.testing.assert_close(exact, exact_scores(full.model(), prompts, table), atol=0.5, rtol=0)
    save_bundle(bundle, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").backbone.hash == bundle.backbone.hash


@pytest.mark.parametrize("section", [{"name": "pretrained"}, {"checkpoint": "gpt2"}, {"name": "t5", "checkpoint": "x"}])
def test_a_checkpoint_and_the_name_pretrained_go_together(section):
    with pytest.raises(ValueError, match="name pretrained needs a checkpoint, and no other name takes one"):
        Params.model_validate({"architecture": section})


@pytest.mark.parametrize("content", [None, "{}"])
def test_what_is_no_causal_lm_is_refused(content, tmp_path, table):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"architecture\.checkpoint = .* is no causal LM that can be loaded"):
        load_pretrained(str(tmp_path), table.vocabulary, 0, WINDOW)


@pytest.mark.parametrize("kind", sorted({*FAMILIES} - {*NAMES}))
def test_every_tested_family_decodes_exactly_and_comes_back(
    kind, checkpoint, table, codebooks, params, prompts, tmp_path
):
    """Untrained, with an adapter that changes what it says; qwen2 and llama are trained above."""
    backbone = load_pretrained(str(checkpoint(kind, tokenizer=False)), table.vocabulary, 0, WINDOW)
    attached = attach(backbone, 4, 8.0, 0.0, 0)
    state, rng = adapter_state(attached), torch.Generator().manual_seed(1)
    state = {n: 0.1 * torch.randn(t.shape, generator=rng) if "lora_B" in n else t for n, t in state.items()}
    bundle = Bundle(backbone, Adapter(4, 8.0, state), table, codebooks, params, Lineage("d0", "c0"))
    model = bundle.model()
    scores = beam_search(model, prompts, bundle.index, beam=500)[1]
    exact = exact_scores(model, prompts, table)
    torch.testing.assert_close(scores, exact.sort(descending=True).values, atol=5e-5, rtol=0)
    assert (exact - exact_scores(backbone.model(), prompts, table)).abs().max() > 0.01
    row = np.array([3, 40, 17, 58])
    total, _ = token_nll(model, [Row(row, 3)], table)
    after = encode_histories([row[:3]], table, WINDOW)
    assert total[0] == pytest.approx(-exact_scores(model, after, table)[0, 58].item(), abs=1e-3)
    save_bundle(bundle, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").backbone.hash == backbone.hash


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("bloom", {}, r"\(bloom\) cannot be decoded: .* Model types that are tested: llama, .*opt\."),
        ("gpt2", {"max_position_embeddings": 35}, r"\(gpt2\) has 35 positions, and 8 items .* 36\. Lower .* to 7,"),
        ("mistral", {"sliding_window": 64}, r"\(mistral\) has a sliding window of 64 keys, and .* needs 1569\."),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_decoded_is_refused_when_it_is_loaded(kind, values, message, checkpoint, table):
    assert table.vocabulary.levels == 4
    with pytest.raises(ConfigError, match=message):
        load_pretrained(str(checkpoint(kind, tokenizer=False, **values)), table.vocabulary, 0, WINDOW)


@pytest.mark.parametrize("damage", ["cut", "other shape", "quantised", "silent"])
def test_a_damaged_checkpoint_is_refused_in_one_line(damage, checkpoint, table, monkeypatch):
    from transformers import AutoModelForCausalLM

    folder = checkpoint("llama", tokenizer=False)
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-200])
    elif damage == "other shape":
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    elif damage == "quantised":
        quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
        (folder / "config.json").write_text(json.dumps(config | quantised))
    else:
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (_ for _ in ()).throw(ValueError))
    with pytest.raises(ConfigError, match=r"no causal LM that can be loaded: .*whole and not quantised\.$") as error:
        load_pretrained(str(folder), table.vocabulary, 0, WINDOW)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_not_loaded(checkpoint, table):
    from transformers import AutoModelForCausalLM

    folder = checkpoint("llama", tokenizer=False)
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"is no causal LM that can be loaded.*model\.safetensors"):
        load_pretrained(str(folder), table.vocabulary, 0, WINDOW)
