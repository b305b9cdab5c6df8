"""U-CAN: formulas against slow ones, activations against one forward pass per user, and what it leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from genrec.errors import UnlearningError
from genrec.models.adapter import adapted_model, combine, lora_sites, weight_names
from genrec.models.backbone import Backbone
from genrec.training.rows import chunk
from genrec.unlearning import METHODS
from genrec.unlearning.ucan import EPS, attenuation, contrast, split_half_reliability, stream_activations, ucan
from genrec.unlearning_params import UcanParams


@pytest.fixture(scope="module")
def outcome(user_problem):
    return ucan(user_problem)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_contrast_equals_its_formula():
    rng = np.random.default_rng(0)
    forget, retain = rng.random((5, 7)), rng.random((9, 7))
    retain[:, 2] = 0
    expected = []
    for j in range(7):
        a_f = sum(row[j] for row in forget) / 5
        a_r = sum(row[j] for row in retain) / 9
        expected.append(max(0.0, (a_f - a_r) / (a_r + EPS)))
    np.testing.assert_allclose(contrast(forget, retain), expected)
    assert 0 in expected


def slow_attenuation(c, utility, params):
    def unit_rank(x):
        return [(sum(y < v for y in x) + (sum(y == v for y in x) - 1) / 2) / (len(x) - 1) for v in x]

    risk = [
        params.risk_weight * a + (1 - params.risk_weight) * (1 - b)
        for a, b in zip(unit_rank(c), unit_rank(utility), strict=True)
    ]
    t = np.quantile(risk, params.quantile)
    return [
        1.0 if r <= t else params.floor + (1 - params.floor) * np.exp(-params.decay * (r - t) / (1 - t)) for r in risk
    ]


@pytest.mark.parametrize(
    "params",
    [
        UcanParams(),
        UcanParams(quantile=0.5, floor=0.3),
        UcanParams(risk_weight=1),
        UcanParams(risk_weight=0, decay=0.5),
    ],
)
def test_attenuation_equals_its_formula(params):
    rng = np.random.default_rng(1)
    c, utility = rng.random(40).round(1), rng.random(40)  # with ties, as a contrast clipped at 0 has
    scales = attenuation(c, utility, params)
    np.testing.assert_allclose(scales, slow_attenuation(c, utility, params))
    assert scales.min() >= params.floor
    assert scales.max() == 1
    assert 0 < (scales < 1).mean() <= 1 - params.quantile + 0.03


def test_the_riskiest_dimension_decays_most_and_the_most_useful_least():
    c, utility = np.linspace(0, 1, 20), np.linspace(1, 0, 20)  # the last is risky and useless
    scales = attenuation(c, utility, UcanParams(quantile=0.5))
    assert (np.diff(scales) <= 0).all()
    assert scales[-1] < 0.2
    assert (scales[:10] == 1).all()


def test_activations_equal_a_loop_over_users(bundle, dataset, params):
    model = bundle.adapted()
    longest = int(np.argmax([len(dataset.training_rows(u)) for u in range(len(dataset.user_ids))]))
    users = [longest, 0, 8, 3]
    found = stream_activations(bundle, model, dataset, users)
    layers = lora_sites(model)
    assert set(found) == set(layers)
    captured = {}
    for site, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, site=site: captured.update({site: inputs[0]}))
    for i, user in enumerate(users):
        rows = chunk(dataset.training_rows(user), params.architecture.window)
        assert len(rows) > 1 or user != longest
        outputs = {site: [] for site in layers}
        squares = {site: [] for site in layers}
        for row in rows:
            tokens = [1, *bundle.table.tokens[row.items].ravel()]
            with torch.no_grad():
                model(input_ids=torch.tensor([tokens]), use_cache=False)
            for site, layer in layers.items():
                x = captured[site][0].double()
                a, b = (layer.__getattr__(f"lora_{part}")["default"].weight.detach().double() for part in "AB")
                h = x @ a.T
                outputs[site].append((params.train.alpha / params.train.rank * (h @ b.T)).abs())
                squares[site].append(h.square())
        for site in layers:
            np.testing.assert_allclose(found[site].magnitude[i], torch.cat(outputs[site]).mean(0), rtol=2e-4, atol=1e-6)
            np.testing.assert_allclose(found[site].square[i], torch.cat(squares[site]).mean(0), rtol=2e-4, atol=1e-6)


def test_streaming_leaves_no_hooks(bundle, dataset):
    model = bundle.adapted()
    stream_activations(bundle, model, dataset, [0])
    assert not any(layer.lora_B["default"]._forward_hooks for layer in lora_sites(model).values())


def test_every_site_gets_scales_between_the_floor_and_one(outcome, model, user_problem):
    (overlay,) = outcome.bundle.overlays
    assert overlay.batch_id == "b-users"
    assert {site: len(s) for site, s in overlay.scales.items()} == {
        site: layer.lora_B["default"].weight.shape[0] for site, layer in lora_sites(model).items()
    }
    everything = torch.cat(list(overlay.scales.values()))
    floor = user_problem.params.unlearning.ucan.floor
    assert everything.min() >= floor
    assert everything.max() == 1
    assert outcome.diagnostics["attenuated_share"] == pytest.approx((everything < 1).double().mean().item(), abs=1e-6)
    assert 0.05 < outcome.diagnostics["attenuated_share"] < 0.2  # a tenth, and ties
    assert outcome.diagnostics["mean_scale"] == pytest.approx(everything.double().mean().item(), abs=1e-6)


def test_the_scales_follow_contrast_and_utility(outcome, user_problem, bundle):
    """The whole method once more, site by site, from the activations."""
    problem, params = user_problem, user_problem.params.unlearning.ucan
    model = bundle.adapted()
    rng = np.random.default_rng(problem.seed)
    sample = rng.choice(problem.retained_users, params.retain_users, replace=False)
    forget = stream_activations(bundle, model, problem.restored, problem.users)
    retain = stream_activations(bundle, model, problem.retained, sample)
    for site, layer in lora_sites(model).items():
        b = layer.lora_B["default"].weight.detach().double().numpy()
        norm = np.sqrt(retain[site].square.mean(0))
        utility = [sum(abs(b[j, k]) * norm[k] for k in range(b.shape[1])) for j in range(len(b))]
        c = contrast(forget[site].magnitude, retain[site].magnitude)
        expected = slow_attenuation(c, utility, params)
        np.testing.assert_allclose(outcome.bundle.overlays[0].scales[site], expected, rtol=1e-5)


def test_everything_but_the_overlay_stays(outcome, user_problem, bundle):
    after = outcome.bundle
    assert Backbone(after.backbone.config, after.backbone.state).hash == bundle.backbone.hash
    assert after.adapter is bundle.adapter
    assert after.table is bundle.table
    assert user_problem.bundle.overlays == ()
    a = after.adapted().state_dict()
    assert {name for name, t in bundle.adapted().state_dict().items() if not torch.equal(t, a[name])} <= {
        name for name in a if ".lora_B." in name
    }


def test_a_repeat_changes_nothing(outcome, user_problem):
    again = ucan(user_problem)
    assert again.diagnostics == outcome.diagnostics
    on_top = ucan(replace(user_problem, bundle=outcome.bundle))
    for repeated in (again.bundle, on_top.bundle):
        assert len(repeated.overlays) == 1
        assert same(repeated.overlays[0].scales, outcome.bundle.overlays[0].scales)
    doubled = combine([*outcome.bundle.overlays, *on_top.bundle.overlays])
    assert same({site: s for (_, site), s in doubled.items()}, dict(outcome.bundle.overlays[0].scales))


def test_another_batch_adds_its_own_overlay(outcome, user_problem):
    second = ucan(replace(user_problem, bundle=outcome.bundle, batch_id="b-next", users=user_problem.users[:3]))
    assert [o.batch_id for o in second.bundle.overlays] == ["b-users", "b-next"]
    assert second.bundle.overlays[0] is outcome.bundle.overlays[0]
    combined = combine(second.bundle.overlays)
    assert all((combined["out", site] <= s).all() for site, s in outcome.bundle.overlays[0].scales.items())


def test_the_seed_chooses_the_retain_sample(outcome, user_problem):
    other = ucan(replace(user_problem, seed=user_problem.seed + 1))
    assert not same(other.bundle.overlays[0].scales, outcome.bundle.overlays[0].scales)


def test_people_without_training_rows_are_nothing_to_attenuate(user_problem):
    problem = user_problem
    untrained = [u for u in range(len(problem.restored.user_ids)) if not len(problem.restored.training_rows(u))]
    with pytest.raises(UnlearningError, match="nothing to attenuate"):
        ucan(replace(problem, users=np.array(untrained)))
    assert len(untrained)


def test_split_half_reliability_tells_signal_from_noise(outcome, model, bundle, dataset, user_problem):
    users = np.flatnonzero([len(dataset.training_rows(u)) > 0 for u in range(len(dataset.user_ids))])
    retain = stream_activations(bundle, model, dataset, users[40:])
    noise = stream_activations(bundle, model, dataset, users[:40])
    rng = np.random.default_rng(0)
    signal = {
        s: replace(a, magnitude=a.magnitude * (1 + 9 * rng.random(a.magnitude.shape[1]))) for s, a in noise.items()
    }
    assert split_half_reliability(signal, retain, 0) > 0.9
    assert split_half_reliability(noise, retain, 0) < 0.5
    one = {"site": signal[next(iter(signal))]}
    order = np.random.default_rng(4).permutation(40)
    halves = [
        contrast(one["site"].magnitude[h], retain[next(iter(signal))].magnitude) for h in (order[:20], order[20:])
    ]
    found = split_half_reliability(one, {"site": retain[next(iter(signal))]}, 4)
    assert found == pytest.approx(spearmanr(*halves)[0])
    three = {s: replace(a, magnitude=a.magnitude[:3]) for s, a in noise.items()}
    assert np.isnan(split_half_reliability(three, retain, 0))


# --- the other axes --------------------------------------------------------------------------------------------------


def slow_dimensions(bundle, problem, users, data, site, axis):
    """Per-user means of |activation| and of squared input of one site, one forward pass per row, from A and B."""
    model, inputs = bundle.adapted(), []
    lora_sites(model)[site].register_forward_pre_hook(lambda _, given: inputs.append(given[0][0].double()))
    a, b = (bundle.adapter.state[name].double() for name in weight_names(site))
    _, sigma, vt = torch.linalg.svd(b @ a)
    to_rank = sigma[: len(a), None].sqrt() * vt[: len(a)]
    magnitudes, squares = [], []
    for user in users:
        inputs.clear()
        for row in chunk(data.training_rows(int(user)), problem.params.architecture.window):
            with torch.no_grad():
                tokens = [1, *bundle.table.tokens[row.items].ravel()]
                model(input_ids=torch.tensor([tokens]), use_cache=False)
        x = torch.cat(inputs)
        z = x if axis == "in" else x @ to_rank.T
        magnitudes.append(z.abs().mean(0).numpy())
        squares.append(z.square().mean(0).numpy())
    return np.stack(magnitudes), np.stack(squares)


@pytest.mark.parametrize("axis", ["in", "rank"])
def test_other_axes_follow_their_own_contrast_and_utility(user_problem, bundle, small, axis):
    problem = replace(user_problem, params=small(user_problem.params, "unlearning.ucan", axis=axis, quantile=0.5))
    params = problem.params.unlearning.ucan
    (overlay,) = ucan(problem).bundle.overlays
    assert overlay.axis == axis
    assert sorted(overlay.scales) == sorted(bundle.adapter.sites)
    sample = np.random.default_rng(problem.seed).choice(problem.retained_users, params.retain_users, replace=False)
    for site in (bundle.adapter.sites[0], bundle.adapter.sites[-1]):
        forget, _ = slow_dimensions(bundle, problem, problem.users, problem.restored, site, axis)
        retain, squares = slow_dimensions(bundle, problem, sample, problem.retained, site, axis)
        a, b = (bundle.adapter.state[name].double() for name in weight_names(site))
        u, sigma, _ = torch.linalg.svd(b @ a, full_matrices=False)
        weights = a if axis == "in" else (u * sigma.sqrt())[:, : len(a)]
        useful = weights.abs().sum(0).numpy() * np.sqrt(squares.mean(0))
        expected = slow_attenuation(contrast(forget, retain), useful, params)
        np.testing.assert_allclose(overlay.scales[site], expected, rtol=1e-4)
        assert (np.array(expected) < 1).any()


def size_of_update(bundle):
    return sum(layer.get_delta_weight("default").square().sum() for layer in lora_sites(bundle.adapted()).values())


@pytest.mark.parametrize("axis", ["out", "rank", "in"])
def test_each_axis_attenuates_the_model_and_leaves_its_weights(user_problem, bundle, small, axis):
    problem = replace(user_problem, params=small(user_problem.params, "unlearning.ucan", axis=axis))
    after = ucan(problem).bundle
    assert after.adapter is bundle.adapter
    assert size_of_update(after) < size_of_update(bundle)
    again = ucan(replace(problem, bundle=after)).bundle
    assert len(again.overlays) == 1
    assert same(again.overlays[0].scales, after.overlays[0].scales)


@pytest.mark.parametrize("axis", ["out", "rank", "in"])
def test_the_order_of_requests_does_not_matter(user_problem, small, axis):
    """Scales come from A and B as they are, not as earlier requests have attenuated them."""
    first = replace(user_problem, params=small(user_problem.params, "unlearning.ucan", axis=axis))
    second = replace(first, batch_id="b-next", users=user_problem.users[:3])
    one = ucan(replace(second, bundle=ucan(first).bundle)).bundle
    other = ucan(replace(first, bundle=ucan(second).bundle)).bundle
    assert same(combine(one.overlays), combine(other.overlays))
    assert same(adapted_model(one.backbone, one.adapter, one.overlays).state_dict(), other.adapted().state_dict())


def test_requests_on_different_axes_add_up(user_problem, small):
    rows = ucan(user_problem).bundle
    params = small(user_problem.params, "unlearning.ucan", axis="in")
    both = ucan(replace(user_problem, bundle=rows, batch_id="b-next", params=params)).bundle
    assert [o.axis for o in both.overlays] == ["out", "in"]
    for site, layer in lora_sites(both.adapted()).items():
        first = lora_sites(rows.adapted())[site].get_delta_weight("default")
        expected = first * both.overlays[1].scales[site]
        torch.testing.assert_close(layer.get_delta_weight("default"), expected, atol=1e-6, rtol=1e-5)


# --- ablations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weight"), [("ucan_without_contrast", 0.0), ("ucan_without_utility", 1.0)])
def test_an_ablation_leaves_one_component_out(user_problem, outcome, small, name, weight):
    found = METHODS[name].run(user_problem).bundle.overlays[0]
    alone = replace(user_problem, params=small(user_problem.params, "unlearning.ucan", risk_weight=weight))
    assert same(found.scales, ucan(alone).bundle.overlays[0].scales)
    assert not same(found.scales, outcome.bundle.overlays[0].scales)


def test_without_contrast_the_forgotten_users_make_no_difference(user_problem):
    run = METHODS["ucan_without_contrast"].run
    fewer = replace(user_problem, users=user_problem.users[:1])
    assert same(run(user_problem).bundle.overlays[0].scales, run(fewer).bundle.overlays[0].scales)


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_hard_pruning_cuts_what_ucan_attenuates_and_nothing_else(user_problem, outcome, small, floor):
    problem = replace(user_problem, params=small(user_problem.params, "unlearning.hard_prune", floor=floor))
    hard, soft = METHODS["hard_prune"].run(problem).bundle.overlays[0].scales, outcome.bundle.overlays[0].scales
    for site, scale in hard.items():
        assert set(scale.tolist()) <= {torch.tensor(floor).item(), 1.0}
        assert torch.equal(scale < 1, soft[site] < 1)
    assert any((scale < 1).any() for scale in hard.values())
