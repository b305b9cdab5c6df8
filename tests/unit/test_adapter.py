"""The adapter: what it touches, that PEFT reads it, and the algebra of overlays."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from genrec.models.adapter import (
    Adapter,
    Overlay,
    adapted_model,
    attach,
    canonical,
    canonicalise,
    combine,
    fold,
    lora_sites,
    weight_names,
)
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


def test_peft_reads_the_adapter_without_the_overlays_beside_it(bundle, model, overlays, tokens, tmp_path):
    save_bundle(replace(bundle, overlays=tuple(overlays)), tmp_path / "b")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "b" / "backbone")
    loaded = PeftModel.from_pretrained(base, tmp_path / "b" / "adapter").eval()
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    attenuated = adapted_model(bundle.backbone, bundle.adapter, overlays)
    assert not torch.allclose(logits(loaded, tokens), logits(attenuated, tokens), atol=1e-2)


def test_overlays_combine_by_minimum_whatever_the_order_and_repeats(overlays):
    a, b, c = overlays
    expected = combine([a, b, c])
    for (_, site), scale in expected.items():
        rows = torch.stack([o.scales[site] for o in overlays if site in o.scales])
        assert torch.equal(scale, rows.amin(0))
    for order in ([c, a, b], [b, c, a], [a, b, c, a], [a, a, b, c, c]):
        assert same(combine(order), expected)
    assert same(combine([a, a]), {("out", site): scale for site, scale in a.scales.items()})
    assert combine([]) == {}


def test_overlays_scale_the_rows_of_b(bundle, overlays, tokens):
    """The effective update of a site is diag(s) B A (alpha / r), and B itself stays as it was."""
    before = {name: tensor.clone() for name, tensor in bundle.adapter.state.items()}
    model = adapted_model(bundle.backbone, bundle.adapter, overlays)
    for site, layer in lora_sites(model).items():
        a, b = (before[f"base_model.model.{site}.lora_{part}.weight"].double() for part in "AB")
        s = combine(overlays)["out", site].double()
        update = bundle.adapter.alpha / bundle.adapter.rank * torch.diag(s) @ b @ a
        torch.testing.assert_close(layer.get_delta_weight("default").double(), update, atol=1e-6, rtol=1e-5)
    assert same(dict(bundle.adapter.state), before)


def test_folding_equals_applying(bundle, model, overlays, tokens):
    applied = logits(adapted_model(bundle.backbone, bundle.adapter, overlays), tokens)
    folded = fold(bundle.adapter, overlays)
    assert torch.equal(logits(adapted_model(bundle.backbone, folded), tokens), applied)
    assert not torch.allclose(applied, logits(model, tokens), atol=1e-2)
    assert same(dict(fold(bundle.adapter, ()).state), dict(bundle.adapter.state))


@pytest.fixture(scope="module")
def mixed(bundle):
    """Two overlays on each axis; the second of an axis leaves out the first site."""
    generator, found = torch.Generator().manual_seed(2), []
    state = bundle.adapter.state
    for number, axis in enumerate(("out", "rank", "in", "rank", "in", "out")):
        scales = {}
        for site in bundle.adapter.sites[number // 3 :]:
            a, b = weight_names(site)
            size = {"out": len(state[b]), "rank": bundle.adapter.rank, "in": state[a].shape[1]}[axis]
            scales[site] = 0.05 + 0.95 * torch.rand(size, generator=generator)
        found.append(Overlay(f"m{number}", scales, axis))
    return found


def test_an_adapter_knows_its_sites(bundle, model):
    assert sorted(bundle.adapter.sites) == sorted(lora_sites(model))


def test_overlays_of_all_axes_act_as_their_formula(bundle, mixed):
    """Entry by entry: (alpha / r) s_out[j] s_in[i] sum_k s_rank[k] sigma_k u_jk v_ki, singular triples of BA."""
    model = adapted_model(bundle.backbone, bundle.adapter, mixed)
    for site, layer in lora_sites(model).items():
        a, b = (bundle.adapter.state[name].double() for name in weight_names(site))
        u, sigma, vt = torch.linalg.svd(b @ a, full_matrices=False)
        least = {
            axis: torch.stack([o.scales[site] for o in mixed if o.axis == axis and site in o.scales]).amin(0).double()
            for axis in ("out", "rank", "in")
        }
        update = torch.zeros(len(b), a.shape[1], dtype=torch.float64)
        for k in range(bundle.adapter.rank):
            update += least["rank"][k] * sigma[k] * u[:, k, None] * vt[k]
        update = least["out"][:, None] * update * least["in"] * bundle.adapter.alpha / bundle.adapter.rank
        torch.testing.assert_close(layer.get_delta_weight("default").double(), update, atol=1e-5, rtol=1e-4)


def test_axes_do_not_mix_and_their_order_does_not_matter(bundle, mixed):
    combined = combine(mixed)
    assert {axis for axis, _ in combined} == {"out", "rank", "in"}
    assert same(combine([*reversed(mixed), mixed[1]]), combined)
    folded = fold(bundle.adapter, mixed)
    assert same(dict(fold(bundle.adapter, mixed[::-1]).state), dict(folded.state))


@pytest.mark.parametrize("shape", [(9, 4, 7), (3, 4, 7), (9, 4, 2), (4, 4, 4)])
def test_the_canonical_form_is_the_same_function_in_singular_order(shape):
    d_out, rank, d_in = shape
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rank, d_in, generator=generator)
    b = torch.randn(d_out, rank, generator=generator)
    new_a, new_b = canonical(a, b)
    assert (new_a.shape, new_b.shape, new_a.dtype) == (a.shape, b.shape, a.dtype)
    torch.testing.assert_close(new_b @ new_a, b @ a, atol=1e-5, rtol=1e-5)
    sigma = torch.linalg.svdvals(b @ a)[:rank]
    expected = torch.diag(torch.cat([sigma, torch.zeros(rank - len(sigma))]))
    for gram in (new_a @ new_a.T, new_b.T @ new_b):  # orthogonal, each with the root of the singular value
        torch.testing.assert_close(gram, expected, atol=1e-5, rtol=1e-5)


def test_the_canonical_form_forgets_which_basis_it_came_from():
    generator = torch.Generator().manual_seed(0)
    a, b, mix = (torch.randn(*shape, generator=generator) for shape in ((4, 7), (9, 4), (4, 4)))
    first, second = canonical(a, b), canonical(mix @ a, b @ torch.linalg.inv(mix))
    for k in range(4):
        one, other = (torch.outer(new_b[:, k], new_a[k]) for new_a, new_b in (first, second))
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(torch.outer(b[:, 0], a[0]), torch.outer((b @ torch.linalg.inv(mix))[:, 0], (mix @ a)[0]))


def test_a_canonical_adapter_gives_the_same_logits(bundle, model, tokens):
    changed = canonicalise(bundle.adapter, bundle.adapter.sites)
    assert not torch.allclose(
        changed.state[weight_names(changed.sites[0])[0]], bundle.adapter.state[weight_names(changed.sites[0])[0]]
    )
    torch.testing.assert_close(
        logits(adapted_model(bundle.backbone, changed), tokens), logits(model, tokens), atol=1e-4, rtol=1e-4
    )


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
