"""The adapter: what it touches, that PEFT reads it, and the algebra of overlays."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from genrec.models.adapter import Adapter, Overlay, adapted_model, attach, combine, fold, lora_sites
from genrec.models.backbone import Backbone
from genrec.models.bundle import save_bundle
from genrec.training.base import train_adapter


@pytest.fixture(scope="module")
def overlays(model):
    """Three overlays; the last two leave out sites, so that not all sites have the same number of scales."""
    generator = torch.Generator().manual_seed(0)
    sites = {name: layer.lora_B["default"].weight.shape[0] for name, layer in lora_sites(model).items()}
    found = []
    for number in range(3):
        kept = list(sites)[number:]
        scales = {site: 0.05 + 0.95 * torch.rand(sites[site], generator=generator) for site in kept}
        found.append(Overlay(f"b{number}", scales))
    return found


@pytest.fixture(scope="module")
def tokens(table):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(2, table.vocabulary.size, (3, 17), generator=rng)


@torch.no_grad()
def logits(model, tokens):
    return model(input_ids=tokens, use_cache=False).logits


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_every_linear_layer_but_the_head_has_an_adapter_site(model, params):
    names = {
        f"model.layers.{layer}.{part}"
        for layer in range(params.architecture.layers)
        for part in (*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down")))
    }
    assert set(lora_sites(model)) == names


def test_only_lora_weights_are_trained(backbone, training, table, params, small, monkeypatch):
    hash_before = Backbone(backbone.config, backbone.state).hash
    seen = {}
    monkeypatch.setattr("genrec.training.base.adapter_state", lambda model: seen.update(model.state_dict()) or {})
    train_adapter(backbone, training[:15], table, small(params, "train", epochs=2))
    fresh = attach(backbone, params.train.rank, params.train.alpha, 0.0, params.seed).state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], seen[name])}
    assert changed == {name for name in fresh if ".lora_" in name}
    assert Backbone(backbone.config, backbone.state).hash == hash_before


def test_the_stored_adapter_holds_lora_matrices_and_nothing_else(bundle, model, params):
    expected = {f"base_model.model.{site}.lora_{part}.weight" for site in lora_sites(model) for part in "AB"}
    assert set(bundle.adapter.state) == expected
    assert not bundle.adapter.config().get("modules_to_save")
    assert model.peft_config["default"].modules_to_save is None
    rank = {t.shape[0 if ".lora_A" in name else 1] for name, t in bundle.adapter.state.items()}
    assert rank == {params.train.rank}


def test_a_fresh_adapter_is_seeded_and_changes_nothing(backbone, tokens):
    first, again, other = (attach(backbone, 4, 8, 0.0, seed) for seed in (0, 0, 1))
    assert same(first.state_dict(), again.state_dict())
    assert not same(first.state_dict(), other.state_dict())
    assert torch.equal(logits(first, tokens), logits(backbone.model(), tokens))


def test_peft_and_transformers_read_the_saved_adapter_and_backbone(bundle, model, tokens, tmp_path):
    save_bundle(bundle, tmp_path / "b")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "b" / "backbone")
    assert torch.equal(logits(base.eval(), tokens), logits(bundle.backbone.model(), tokens))
    loaded = PeftModel.from_pretrained(base, tmp_path / "b" / "adapter").eval()
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    assert not torch.allclose(logits(model, tokens), logits(bundle.backbone.model(), tokens), atol=1e-2)


def test_overlays_combine_by_minimum_whatever_the_order_and_repeats(overlays):
    a, b, c = overlays
    expected = combine([a, b, c])
    for site, scale in expected.items():
        rows = torch.stack([o.scales[site] for o in overlays if site in o.scales])
        assert torch.equal(scale, rows.amin(0))
    for order in ([c, a, b], [b, c, a], [a, b, c, a], [a, a, b, c, c]):
        assert same(combine(order), expected)
    assert same(combine([a, a]), dict(a.scales))
    assert combine([]) == {}


def test_overlays_scale_the_rows_of_b(bundle, overlays, tokens):
    """The effective update of a site is diag(s) B A (alpha / r), and B itself stays as it was."""
    before = {name: tensor.clone() for name, tensor in bundle.adapter.state.items()}
    model = adapted_model(bundle.backbone, bundle.adapter, overlays)
    for site, layer in lora_sites(model).items():
        a, b = (before[f"base_model.model.{site}.lora_{part}.weight"].double() for part in "AB")
        s = combine(overlays)[site].double()
        update = bundle.adapter.alpha / bundle.adapter.rank * torch.diag(s) @ b @ a
        torch.testing.assert_close(layer.get_delta_weight("default").double(), update, atol=1e-6, rtol=1e-5)
    assert same(dict(bundle.adapter.state), before)


def test_folding_equals_applying(bundle, model, overlays, tokens):
    applied = logits(adapted_model(bundle.backbone, bundle.adapter, overlays), tokens)
    folded = fold(bundle.adapter, overlays)
    assert torch.equal(logits(adapted_model(bundle.backbone, folded), tokens), applied)
    assert not torch.allclose(applied, logits(model, tokens), atol=1e-2)
    assert same(dict(fold(bundle.adapter, ()).state), dict(bundle.adapter.state))


def test_dropping_an_overlay_undoes_it(bundle, overlays, tokens):
    one = replace(bundle, overlays=(overlays[0],))
    both = replace(one, overlays=(*one.overlays, overlays[1]))
    rolled_back = replace(both, overlays=tuple(o for o in both.overlays if o.batch_id != overlays[1].batch_id))
    assert torch.equal(logits(rolled_back.model(), tokens), logits(one.model(), tokens))
    assert not torch.equal(logits(both.model(), tokens), logits(one.model(), tokens))


def test_an_overlay_of_zeros_is_the_backbone(bundle, model, tokens):
    zeros = {name: torch.zeros(layer.lora_B["default"].weight.shape[0]) for name, layer in lora_sites(model).items()}
    silent = adapted_model(bundle.backbone, bundle.adapter, [Overlay("b", zeros)])
    assert torch.equal(logits(silent, tokens), logits(bundle.backbone.model(), tokens))


def test_a_model_is_a_copy(bundle, tokens):
    first = bundle.model()
    before = logits(first, tokens)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert torch.equal(logits(bundle.model(), tokens), before)
    assert isinstance(bundle.adapter, Adapter)
