"""Other serving forms within their error bounds, the relearning attacker, extraction against exact scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from genrec.audit_params import RelearnParams
from genrec.errors import UnlearningError
from genrec.evaluation.forgetting import holdout_users
from genrec.evaluation.ranking import held_out, target_nll, training_histories
from genrec.evaluation.robustness import extraction, int8, quantised, relearn, relearn_sample, unmerged
from genrec.evaluation.shift import forget_set_ranking
from genrec.evaluation.statistics import Bootstrap, difference, wilson
from genrec.models.adapter import Overlay, lora_sites
from genrec.models.beam import encode_histories, exact_scores
from genrec.training.base import train_adapter
from genrec.training.rows import Row, chunk_all, token_nll, whole

PLAN = Bootstrap(200)


@pytest.fixture(scope="module")
def merged(bundle):
    return bundle.model()


@pytest.fixture(scope="module")
def trained(dataset):
    return [u for u in range(len(dataset.user_ids)) if len(dataset.training_rows(u))]


@pytest.fixture(scope="module")
def forget_rows(dataset, trained, params):
    return chunk_all([(u, dataset.training_rows(u)) for u in trained[:30]], params.architecture.window)


def test_int8_moves_no_weight_by_more_than_half_a_step(merged):
    rounded = int8(merged)
    seen = 0
    for (name, before), (_, after) in zip(merged.named_modules(), rounded.named_modules(), strict=True):
        if isinstance(before, nn.Linear | nn.Embedding):
            seen += 1
            old, new = (m.weight.detach().double().numpy() for m in (before, after))
            step = np.abs(old).max(1, keepdims=True) / 127
            assert (np.abs(new - old) <= step / 2 * (1 + 2e-5)).all(), name
            levels = new / np.where(step > 0, step, 1)
            np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
            assert np.abs(np.round(levels)).max() == 127
    assert seen == 2 * 7 + 2  # seven linear layers in each of two blocks, embedding and head
    norms = [n for n, _ in merged.named_parameters() if "norm" in n]
    assert norms
    for name in norms:
        assert torch.equal(rounded.get_parameter(name), merged.get_parameter(name))


def test_int8_twice_is_int8_once(merged):
    once = int8(merged)
    twice = int8(once)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))
    weights = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 9, 500)[:, None]
    weights[3] = 0
    rounded = quantised(weights)
    assert torch.equal(quantised(rounded), rounded)
    assert torch.equal(rounded.abs().amax(1), weights.abs().amax(1))  # the largest of a row stays
    assert (rounded[3] == 0).all()


def test_int8_leaves_the_model_it_was_given(merged, bundle, dataset):
    before = {name: p.clone() for name, p in merged.named_parameters()}
    rounded = int8(merged)
    assert all(torch.equal(p, before[name]) for name, p in merged.named_parameters())
    assert not rounded.training
    cases = held_out(dataset)
    exact, rough = (target_nll(bundle, m, cases) for m in (merged, rounded))
    assert (exact != rough).any()
    np.testing.assert_allclose(exact, rough, atol=0.2)


def test_the_unmerged_form_keeps_its_lora_layers_and_says_the_same(bundle, merged, dataset):
    site, layer = next(iter(lora_sites(bundle.adapted()).items()))
    weaker = replace(bundle, overlays=(Overlay("b", {site: torch.full((layer.out_features,), 0.5)}),))
    cases = held_out(dataset)
    for this in (bundle, weaker):
        apart = unmerged(this)
        assert lora_sites(apart)
        np.testing.assert_allclose(target_nll(this, apart, cases), target_nll(this, this.model(), cases), atol=1e-5)
    assert not lora_sites(merged)


@pytest.mark.parametrize(("n", "share", "count"), [(30, 0.1, 3), (30, 1.0, 30), (4, 0.1, 1), (1, 0.5, 1)])
def test_the_attacker_holds_a_seeded_share_and_at_least_one_row(n, share, count):
    rows = [Row(np.array([i])) for i in range(n)]
    held = relearn_sample(rows, share, 5)
    assert len(held) == len(set(held)) == count
    assert held.tolist() == sorted(held)
    assert set(held) <= set(range(n))
    assert (held == relearn_sample(rows, share, 5)).all()
    if n == 30 and share < 1:
        assert any((held != relearn_sample(rows, share, seed)).any() for seed in range(3))


def test_relearning_brings_the_rows_back(damaged, forget_rows, table):
    """A model whose adapter was weakened, and what a few steps on a third of the rows make of it."""
    weaker = damaged(0.6)
    params = RelearnParams(share=0.34, steps=20, learning_rate=2e-3)
    state = {name: tensor.clone() for name, tensor in weaker.adapter.state.items()}
    after = relearn(weaker, forget_rows, params, seed=1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in weaker.adapter.state.items())
    held = [forget_rows[i] for i in relearn_sample(forget_rows, 0.34, 1)]
    before_nll, after_nll = (np.divide(*map(np.sum, token_nll(b.model(), held, table))) for b in (weaker, after))
    assert after_nll < before_nll - 0.05
    assert after.backbone is weaker.backbone
    assert (after.overlays, after.table, after.lineage) == ((), weaker.table, weaker.lineage)


def test_relearning_depends_on_the_seed_and_on_nothing_else(bundle, forget_rows):
    params = RelearnParams(steps=3, batch_size=4)
    first = relearn(bundle, forget_rows, params, seed=2).adapter.state
    torch.manual_seed(99)
    again = relearn(bundle, forget_rows, params, seed=2).adapter.state
    other = relearn(bundle, forget_rows, params, seed=3).adapter.state
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_relearning_starts_from_the_weights_with_their_overlays(bundle, forget_rows):
    """At a learning rate of next to nothing the result is the model that serves."""
    sites = lora_sites(bundle.adapted())
    rng = torch.Generator().manual_seed(0)
    scales = {site: torch.rand(layer.out_features, generator=rng) for site, layer in sites.items()}
    served = replace(bundle, overlays=(Overlay("b", scales),))
    after = relearn(served, forget_rows, RelearnParams(steps=1, learning_rate=1e-12), seed=0)
    for before, now in zip(served.model().parameters(), after.model().parameters(), strict=True):
        torch.testing.assert_close(before, now, atol=1e-6, rtol=1e-5)


def test_relearning_takes_whole_histories_too(bundle, dataset, trained):
    rows = whole((u, dataset.training_rows(u)) for u in trained[:10])
    assert max(len(row.items) for row in rows) > bundle.params.architecture.window
    after = relearn(bundle, rows, RelearnParams(steps=1, share=1.0), seed=0)
    assert any(not torch.equal(t, bundle.adapter.state[name]) for name, t in after.adapter.state.items())


def test_relearning_from_nothing_is_refused(bundle):
    with pytest.raises(UnlearningError, match="no forget rows"):
        relearn(bundle, [], RelearnParams(), seed=0)


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.1}, {"steps": 0}, {"learning_rate": 0}, {"step": 3}])
def test_relearn_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        RelearnParams(**wrong)
    assert all(field.description for field in RelearnParams.model_fields.values())


@pytest.mark.parametrize("beam", [12, 30, 50])
def test_extraction_equals_a_loop_over_exact_scores(bundle, merged, dataset, table, params, trained, beam):
    users, strangers = trained[:25], holdout_users(dataset)
    hits = []
    for group in (users, strangers):
        found = []
        for _, items in training_histories(dataset, group):
            prompt = encode_histories([items[:-1]], table, params.architecture.window)
            scores = exact_scores(merged, prompt, table)[0]
            found.append(float((scores > scores[items[-1]]).sum() < beam))
        hits.append(np.array(found))
    result = extraction(bundle, merged, dataset, users, strangers, PLAN, beam)
    assert [result.forgotten, result.unseen] == [wilson(int(h.sum()), len(h)) for h in hits]
    assert result.difference == difference(*hits, PLAN)


def test_extraction_with_a_beam_over_the_whole_catalogue_names_everything(bundle, merged, dataset, trained):
    strangers = holdout_users(dataset)
    result = extraction(bundle, merged, dataset, trained[:5], strangers, PLAN, beam=1000)
    assert (result.forgotten, result.unseen) == (wilson(5, 5), wilson(len(strangers), len(strangers)))
    assert result.difference.value == 0


def test_memorised_people_can_be_extracted_and_strangers_cannot(
    backbone, bundle, dataset, trained, table, params, small
):
    """The ten shortest histories by heart: their last items come out, and other people's do not."""
    order = sorted(trained, key=lambda u: len(dataset.training_rows(u)))
    few, others = order[:10], order[10:]
    longer = small(params, "train", epochs=100, batch_tokens=600, dropout=0.0)
    rows = whole((u, dataset.training_rows(u)) for u in few)
    parrot = replace(bundle, adapter=train_adapter(backbone, rows, table, longer)[0])
    model = parrot.model()
    result = extraction(parrot, model, dataset, few, others, PLAN, beam=1)
    assert result.forgotten.low > result.unseen.high
    assert result.difference.low > 0.3
    assert result.difference.value == pytest.approx(result.forgotten.value - result.unseen.value)
    known, unknown = (forget_set_ranking(parrot, m, dataset, few, PLAN) for m in (model, backbone.model()))
    assert known.recall.low > unknown.recall.high
    assert known.ndcg.low > unknown.ndcg.high
