"""TRACER: what methods.md says must hold, with slow oracles for the soft forward pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.subjects import Subject
from genrec.errors import UnlearningError
from genrec.models.adapter import lora_sites
from genrec.models.backbone import Backbone
from genrec.sid.quantise import residuals_along
from genrec.sid.table import SidTable, Vocabulary, reassign
from genrec.training.base import nearest_items
from genrec.training.rows import Row, token_nll
from genrec.unlearning import tracer as module
from genrec.unlearning.soft_sids import one_hot, phi_gradient, regulariser, soft_forward, soft_sids
from genrec.unlearning.tracer import commit, optimise, replaced, tracer, tracer_rows
from genrec.unlearning.ucan import ucan
from genrec.unlearning_params import TracerParams

CODES, LEVELS = 8, 4


def soft_of(bundle, items, embeddings, table=None):
    return soft_sids(table or bundle.table, items, embeddings, bundle.codebooks)


@pytest.fixture(scope="module")
def items(concept_problem):
    return concept_problem.items


@pytest.fixture(scope="module")
def soft(bundle, items, embeddings):
    return soft_of(bundle, items, embeddings)


@pytest.fixture(scope="module")
def outcome(concept_problem):
    return tracer(concept_problem)


@pytest.fixture(scope="module")
def others(bundle, items):
    return np.setdiff1d(np.arange(len(bundle.table.item_ids)), items)


@pytest.fixture(scope="module")
def rows(items, others):
    """Concept items first, in the middle and last; only as history; not at all."""
    c, o = items, others
    return [
        Row(np.array([o[3], c[0], o[7], c[1]])),
        Row(np.array([c[2], o[1]])),
        Row(np.array([o[9], c[3], c[4], o[2], o[30]]), loss_from=3),
        Row(np.array([o[4], o[5], o[6]]), loss_from=1),
    ]


def zeros(soft):
    """phi as a run starts it."""
    return torch.zeros_like(soft.logits0, requires_grad=True)


def random_q(soft, seed=0, scale=2.0):
    noise = torch.randn(soft.logits0.shape, generator=torch.Generator().manual_seed(seed))
    return soft.q(scale * noise)


# --- soft assignment -------------------------------------------------------------------------------------------------


def test_phi_of_zero_gives_back_every_stored_sid(bundle, items, embeddings, soft, others):
    for chosen, s in ((items, soft), (others, soft_of(bundle, others, embeddings))):
        q = s.q(torch.zeros_like(s.logits0))
        np.testing.assert_array_equal(q.argmax(-1).numpy(), bundle.table.sids[chosen, :-1])
        torch.testing.assert_close(q.sum(-1), torch.ones(q.shape[:2]))


@pytest.mark.parametrize("seed", range(3))
def test_phi_of_zero_gives_back_items_that_an_earlier_request_moved(bundle, items, embeddings, seed):
    codes = np.random.default_rng(seed).integers(CODES, size=(len(items), 3)).astype(np.int32)
    table = reassign(bundle.table, items, codes)
    soft = soft_of(bundle, items, embeddings, table)
    q = soft.q(torch.zeros_like(soft.logits0))
    np.testing.assert_array_equal(q.argmax(-1).numpy(), codes)


def test_phi_of_zero_gives_back_a_code_that_wins_by_less_than_float32_sees(bundle, embeddings):
    """Two centroids at almost the same distance: the stored one stays on top."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1, 16))
    z /= np.linalg.norm(z)
    offset = rng.normal(size=16)
    offset -= offset @ z[0] * z[0]
    offset /= np.linalg.norm(offset)
    centroids = rng.normal(size=(3, CODES, 16)).astype(np.float32) + 3
    centroids[0, 2] = (z[0] + offset).astype(np.float32)
    centroids[0, 6] = (z[0] - offset * (1 - 1e-9)).astype(np.float32)
    codebooks = replace(bundle.codebooks, centroids=centroids)
    for code in (2, 6):
        table = SidTable(("a", "b"), np.array([[code, 0, 0, 0], [5, 1, 1, 0]], np.int32), Vocabulary((8, 8, 8, 8)))
        soft = soft_sids(table, np.array([0]), z, codebooks)
        assert soft.q(torch.zeros_like(soft.logits0)).argmax(-1)[0, 0] == code


def test_q_equals_its_formula(bundle, items, embeddings, soft):
    """softmax((-||r - c||^2 / tau) + phi), phi in units of tau, tau the median top-2 gap of squared distances."""
    phi = np.random.default_rng(0).normal(size=soft.logits0.shape)
    q = soft.q(torch.from_numpy(phi)).double().numpy()
    residuals = residuals_along(embeddings[items], bundle.table.sids[items, :-1], bundle.codebooks)
    for level in range(3):
        d = ((residuals[:, level, None] - bundle.codebooks.centroids[level].astype(np.float64)) ** 2).sum(-1)
        top = np.sort(d, axis=1)
        tau = np.median(top[:, 1] - top[:, 0])
        assert soft.tau[level].item() == pytest.approx(tau, rel=1e-5)
        exponent = np.exp(-(d - d.min(1, keepdims=True)) / tau + phi[:, level])
        np.testing.assert_allclose(q[:, level], exponent / exponent.sum(1, keepdims=True), rtol=1e-3, atol=1e-7)


def test_rho_is_the_share_of_retained_items(bundle, soft, others):
    for level in range(3):
        for code in range(CODES):
            share = np.mean(bundle.table.sids[others, level] == code)
            assert soft.rho[level, code].item() == pytest.approx(share, abs=1e-6)


# --- soft forward ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def slow_soft(bundle, row, soft, q):
    """Expected log-likelihood of each item of one row: embeddings built token by token, in float64, no padding."""
    model = bundle.adapted().double()
    embed = model.get_input_embeddings().weight
    offsets, table = bundle.table.vocabulary.offsets, bundle.table
    q = q.double()
    inputs = [embed[1]]
    for item in row.items:
        place = int(soft.place[item])
        for level in range(LEVELS):
            if place >= 0 and level < LEVELS - 1:
                inputs.append(sum(q[place, level, k] * embed[offsets[level] + k] for k in range(CODES)))
            else:
                inputs.append(embed[table.tokens[item, level]])
    logp = model(inputs_embeds=torch.stack(inputs)[None, :-1], use_cache=False).logits[0].log_softmax(-1)
    found = []
    for at, item in enumerate(row.items):
        place, total = int(soft.place[item]), 0.0
        for level in range(LEVELS):
            here = logp[at * LEVELS + level]
            if place >= 0 and level < LEVELS - 1:
                total += sum(q[place, level, k] * here[offsets[level] + k] for k in range(CODES)).item()
            else:
                total += here[table.tokens[item, level]].item()
        found.append(total)
    return found


def test_the_soft_forward_equals_a_loop_over_tokens(bundle, model, rows, soft):
    q = random_q(soft)
    with torch.no_grad():
        log_p, is_forget, is_retain = soft_forward(model, rows, bundle.table, soft, q)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(log_p[i, : len(row.items)], slow_soft(bundle, row, soft, q), atol=1e-4)
        for at, item in enumerate(row.items):
            target = at >= row.loss_from
            assert is_forget[i, at] == (target and soft.place[item] >= 0)
            assert is_retain[i, at] == (target and soft.place[item] < 0)
        assert not is_forget[i, len(row.items) :].any()
        assert not is_retain[i, len(row.items) :].any()


def test_with_one_hot_q_it_is_the_hard_model(bundle, model, rows, soft, items):
    with torch.no_grad():
        log_p, *_ = soft_forward(model, rows, bundle.table, soft, one_hot(bundle.table, items, CODES))
    for i, row in enumerate(rows):
        for at in range(len(row.items)):
            only = Row(row.items[: at + 1], loss_from=at)
            assert log_p[i, at].item() == pytest.approx(-token_nll(model, [only], bundle.table)[0][0], abs=1e-4)


def test_soft_tokens_act_on_histories_and_on_targets(bundle, model, soft, items, others):
    row = Row(np.array([others[3], items[0], others[7]]))
    unchanged = one_hot(bundle.table, items, CODES)
    for level in range(3):
        changed = unchanged.clone()
        changed[0, level] = 1 / CODES
        with torch.no_grad():
            before, after = (soft_forward(model, [row], bundle.table, soft, q)[0][0] for q in (unchanged, changed))
        moved = (after - before).abs() > 1e-3
        assert moved.tolist() == [False, True, True], level


@pytest.mark.parametrize("alone", [False, True])
def test_a_concept_that_is_only_ever_a_target_gives_phi_a_gradient(bundle, model, soft, items, others, alone):
    """Every entry of every level, the first item of a sequence included."""
    history = [] if alone else [others[3], others[7]]
    row = Row(np.array([*history, items[0]]), loss_from=len(history))
    phi = torch.zeros_like(soft.logits0, requires_grad=True)
    log_p, is_forget, _ = soft_forward(model, [row], bundle.table, soft, soft.q(phi))
    log_p[is_forget].mean().backward()
    place = soft.place[items[0]]
    assert (phi.grad[place].abs().amax(-1) > 1e-6).all()
    assert phi.grad[[i for i in range(len(items)) if i != place]].abs().sum() == 0


def test_the_gradient_of_phi_equals_finite_differences(bundle, soft, items, others):
    row = Row(np.array([others[3], items[0], others[7], items[1]]), loss_from=1)
    model = bundle.adapted()

    def value(phi):
        log_p, is_forget, is_retain = soft_forward(model, [row], bundle.table, soft, soft.q(phi))
        return log_p[is_forget].sum() + 0.5 * log_p[is_retain].sum()

    phi = torch.randn(soft.logits0.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(value(phi), phi)
    places = [int(soft.place[items[0]]), int(soft.place[items[1]])]
    with torch.no_grad():
        for entry in [(places[0], 0, 3), (places[0], 2, 1), (places[1], 1, 5), (places[1], 0, 0)]:
            step = torch.zeros_like(phi)
            step[entry] = 1e-2
            slope = (value(phi + step) - value(phi - step)) / 2e-2
            assert gradient[entry].item() == pytest.approx(slope.item(), abs=3e-3)


# --- training rows ---------------------------------------------------------------------------------------------------


def test_rows_are_those_of_people_who_stay_with_the_concept_in_its_places(concept_problem, items):
    found, data = tracer_rows(concept_problem), concept_problem.restored
    users = [u for u in range(len(data.user_ids)) if len(data.training_rows(u))]
    assert {row.user for row in found.beside} <= set(users)
    for row in found.beside:
        training = data.training_rows(row.user).tolist()
        assert any(training[i : i + len(row.items)] == row.items.tolist() for i in range(len(training)))
    asked = np.concatenate([data.training_rows(u) for u in users])
    used = np.concatenate([row.items for row in found.forget])
    assert np.isin(used, items).sum() == np.isin(asked, items).sum()  # each of them once
    assert all(np.isin(row.items[-1], items) for row in found.forget)
    for short, full in zip(found.forget, found.beside, strict=True):
        assert full.items[: len(short.items)].tolist() == short.items.tolist()
        assert not np.isin(full.items[len(short.items) :], items).any()
    assert not any(np.isin(row.items, items).any() for row in found.retain)


def test_near_items_take_the_place_of_concept_items_and_of_nothing_else(concept_problem, items, others):
    concept = np.zeros(len(concept_problem.restored.item_ids), bool)
    concept[items] = True
    near = nearest_items(concept_problem.embeddings, 3, among=others)
    for row in tracer_rows(concept_problem).beside:
        found, where = replaced(row, concept, near, np.random.default_rng(0))
        assert where.tolist() == np.isin(row.items, items).tolist()
        assert found.items[~where].tolist() == row.items[~where].tolist()
        assert all(new in near[old] for new, old in zip(found.items[where], row.items[where], strict=True))
        assert not np.isin(found.items, items).any()


def test_a_concept_that_nobody_trained_on_is_refused(concept_problem):
    nothing = replace(concept_problem, restored=concept_problem.retained)
    with pytest.raises(UnlearningError, match="nothing for TRACER to unlearn"):
        tracer(nothing)


def test_every_forget_row_is_used_although_the_steps_are_few(concept_problem, soft, small, monkeypatch):
    params = small(concept_problem.params, "unlearning.tracer", steps=1, batch_tokens=300)
    problem, seen, original = replace(concept_problem, params=params), [], module.soft_forward

    def forward(model, rows, *rest):
        seen.extend(id(row) for row in rows)
        return original(model, rows, *rest)

    monkeypatch.setattr(module, "soft_forward", forward)
    rows = tracer_rows(problem)
    optimise(problem, problem.bundle.adapted(), soft, rows, zeros(soft))
    assert set(seen) == {id(row) for row in rows.forget}


# --- whole runs ------------------------------------------------------------------------------------------------------


def concept_log_p(bundle, problem):
    """Mean log-likelihood of the concept's own SIDs where people had its items, under the hard model."""
    rows = tracer_rows(replace(problem, bundle=bundle)).forget
    only = [replace(row, skip=~np.isin(row.items, problem.items)) for row in rows]
    total, count = token_nll(bundle.adapted(), only, bundle.table)
    return -total.sum() / (count.sum() / LEVELS)


def test_the_concept_becomes_unlikely(concept_problem, outcome, bundle):
    before, after = concept_log_p(bundle, concept_problem), concept_log_p(outcome.bundle, concept_problem)
    assert after < before - 1


def test_concept_items_move_and_retained_ones_never_do(outcome, bundle, items, others):
    before, after = bundle.table.sids, outcome.bundle.table.sids
    np.testing.assert_array_equal(after[others], before[others])
    assert (after[items, :-1] != before[items, :-1]).any(1).all()
    assert outcome.diagnostics["reassigned_share"] == 1
    assert 0 < outcome.diagnostics["moved_by_phi_share"] <= 1
    assert len(np.unique(after, axis=0)) == len(after)
    assert outcome.bundle.table.item_ids == bundle.table.item_ids
    assert sorted(outcome.bundle.index.leaf_item.tolist()) == list(range(len(after)))


def test_backbone_codebooks_and_the_start_bundle_stay(outcome, bundle):
    after = outcome.bundle
    assert Backbone(after.backbone.config, after.backbone.state).hash == bundle.backbone.hash
    assert after.codebooks is bundle.codebooks
    assert any(not torch.equal(t, bundle.adapter.state[name]) for name, t in after.adapter.state.items())
    assert (after.adapter.rank, after.adapter.alpha) == (bundle.adapter.rank, bundle.adapter.alpha)


def test_a_run_is_a_function_of_its_seed(outcome, concept_problem):
    again = tracer(concept_problem)
    assert again.diagnostics == outcome.diagnostics
    np.testing.assert_array_equal(again.bundle.table.sids, outcome.bundle.table.sids)
    assert all(torch.equal(t, outcome.bundle.adapter.state[name]) for name, t in again.bundle.adapter.state.items())
    other = tracer(replace(concept_problem, seed=1))
    assert any(not torch.equal(t, outcome.bundle.adapter.state[name]) for name, t in other.bundle.adapter.state.items())


def test_a_run_that_moves_nothing_failed(concept_problem, small):
    params = small(concept_problem.params, "unlearning.tracer", steps=1, phi_learning_rate=1e-12)
    with pytest.raises(UnlearningError, match="moved none of the concept's SIDs"):
        tracer(replace(concept_problem, params=params))


def test_forgetting_stops_pushing_below_a_uniform_guess(concept_problem, small):
    """However heavy its weight, L_F pushes no further than its margin below 1 / items."""
    ends = []
    for margin in (3.0, 8.0):
        settings = {"forget_margin": margin, "forget_weight": 10.0, "steps": 60}
        found = tracer(replace(concept_problem, params=small(concept_problem.params, "unlearning.tracer", **settings)))
        floor = -(np.log(len(concept_problem.retained.item_ids)) + margin)
        assert found.diagnostics["forget_log_p_per_item"] >= floor - 1e-6
        ends.append(found.diagnostics["forget_log_p_per_item"])
    assert ends[1] < ends[0]


def test_only_codes_that_retained_items_favour_are_updated(concept_problem, soft):
    """rho_l(k) > E_q rho_l needs a retained item with that code: phi of any other code stays at zero."""
    phi = zeros(soft)
    optimise(concept_problem, concept_problem.bundle.adapted(), soft, tracer_rows(concept_problem), phi)
    free = soft.rho == 0
    assert phi.abs().sum() > 0
    assert (phi[:, free] == 0).all()
    smallest = soft.rho.argmin(-1)  # no mean over codes can be below the smallest share
    assert (phi[:, torch.arange(3), smallest] == 0).all()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_regulariser_of_a_score_goes_as_one_over_the_number_of_concept_items(count):
    """Each item with the same scores: the whole costs the same, and each score 1 / #concept items of it."""
    one = torch.tensor([[[1.5, -0.5, 0.0], [0.25, -2.0, 3.0]]])
    phi = one.repeat(count, 1, 1).requires_grad_()
    assert regulariser(phi).item() == pytest.approx(7.25)
    (slope,) = torch.autograd.grad(regulariser(phi), phi)
    torch.testing.assert_close(slope, one.sign().repeat(count, 1, 1) / count)


def test_phi_is_stepped_by_forgetting_and_regulariser_where_the_mask_is_open():
    params = TracerParams(forget_weight=0.1, score_weight=0.4)
    phi = torch.tensor([[[2.0, -1.0, 0.0, 1.0]], [[1.0, 1.0, -3.0, 1.0]]], requires_grad=True)
    q = torch.tensor([[[0.7, 0.1, 0.1, 0.1]], [[0.1, 0.7, 0.1, 0.1]]])
    rho = torch.tensor([[0.1, 0.6, 0.2, 0.1]])  # means under q: .16 and .46
    of_forgetting = torch.tensor([[[5.0, 3.0, 2.0, -4.0]], [[5.0, 3.0, 2.0, -4.0]]])
    found = phi_gradient(phi, of_forgetting, q, rho, params)
    # of item 0 the codes 1 and 2 are open, of item 1 code 1; .1 dL_F plus .4 / 2 items times the sign of phi
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.3 - 0.2, 0.2, 0.0]], [[0.0, 0.3 + 0.2, 0.0, 0.0]]]))
    assert not found.requires_grad


def test_phi_alone_is_masked(concept_problem, soft):
    model = concept_problem.bundle.adapted()
    before = {site: layer.lora_B["default"].weight.detach().clone() for site, layer in lora_sites(model).items()}
    optimise(concept_problem, model, soft, tracer_rows(concept_problem), zeros(soft))
    assert all((layer.lora_B["default"].weight != before[site]).all() for site, layer in lora_sites(model).items())


def test_training_starts_from_the_effective_weights(concept_problem, user_problem, outcome):
    """Overlays are folded into the adapter it starts from, and are gone after."""
    attenuated = ucan(user_problem).bundle
    found = tracer(replace(concept_problem, bundle=attenuated))
    assert found.bundle.overlays == ()
    state, plain = found.bundle.adapter.state, outcome.bundle.adapter.state
    assert any((state[name] - plain[name]).abs().max() > 0.05 for name in state)


def test_the_repaired_rung_is_the_same_commit_and_more_steps_on_it(concept_problem, outcome):
    repaired = module.REPAIRED.run(concept_problem)
    np.testing.assert_array_equal(repaired.bundle.table.sids, outcome.bundle.table.sids)
    more = concept_problem.params.unlearning.tracer.repair_steps
    assert repaired.diagnostics["steps"] == outcome.diagnostics["steps"] + more
    assert repaired.diagnostics["hard_minus_soft_log_p"] == outcome.diagnostics["hard_minus_soft_log_p"]
    assert repaired.diagnostics["retained_kl"] != outcome.diagnostics["retained_kl"]


def test_a_new_sid_is_the_best_fresh_leaf_outside_the_branches_of_the_concept():
    """Items 0 and 1 are the concept; 2 and 3 stay. Branch (1, 5) is the concept's alone, (1, 4) is not."""
    sids = np.array([[1, 5, 2, 0], [1, 4, 3, 0], [1, 4, 6, 0], [2, 0, 0, 0]], np.int32)
    table = SidTable(("a", "b", "c", "d"), sids, Vocabulary((8, 8, 8, 4)))
    scores = torch.zeros(2, 3, CODES)
    scores[0, 0, 1], scores[1, 0, 1] = 9.0, 9.0  # both would stay in branch 1
    scores[0, 1, 5], scores[0, 1, 4] = 9.0, 8.0  # its own old branch, then the one c keeps alive
    scores[0, 2, 6], scores[0, 2, 3], scores[0, 2, 7] = 9.0, 8.0, 7.0  # c's leaf, b's old leaf, a fresh one
    scores[1, 1, 5], scores[1, 1, 7] = 9.0, 8.0  # a's old branch, which nobody staying has; one nobody had
    scores[1, 2, 2] = 9.0
    new, share = commit(table, np.array([0, 1]), scores)
    assert new.sids[:2, :3].tolist() == [[1, 4, 7], [1, 7, 2]]
    assert share == 1
    np.testing.assert_array_equal(new.sids[2:], sids[2:])


def test_scores_that_move_nothing_are_told_apart_from_the_moves_they_get(bundle, items, soft):
    table, share = commit(bundle.table, items, soft.scores(torch.zeros_like(soft.logits0)))
    assert share == 0
    assert (table.sids[items, :-1] != bundle.table.sids[items, :-1]).any(1).all()


def test_after_the_commit_the_served_sids_are_pushed_down(concept_problem, soft, monkeypatch):
    """From the commit on q is one-hot, on the committed table; before it, on the stored one, it is soft."""
    seen, original = [], module.soft_forward

    def forward(model, rows, table, soft, q):
        seen.append((table, bool(((q == 0) | (q == 1)).all())))
        return original(model, rows, table, soft, q)

    monkeypatch.setattr(module, "soft_forward", forward)
    phi = zeros(soft)
    rows = tracer_rows(concept_problem)
    table, figures = optimise(concept_problem, concept_problem.bundle.adapted(), soft, rows, phi)
    hard = [one_hot for of, one_hot in seen if of is table]
    before = [one_hot for of, one_hot in seen if of is concept_problem.bundle.table]
    assert all(hard)
    assert not any(before)
    assert len(hard) == figures["steps"] - int(module.SETTLE * figures["steps"]) + 1
    assert len(hard) + len(before) == figures["steps"] + 2


def test_new_sids_without_a_free_dedup_digit_are_an_unlearning_error():
    """So that the ladder goes on to the next rung: nine items want the eight leaves of one branch."""
    sids = np.array([[1, row % CODES, row // CODES, 0] for row in range(9)] + [[2, 0, 0, 0]], np.int32)
    table = SidTable(tuple("abcdefghij"), sids, Vocabulary((8, 8, 8, 1)))
    scores = torch.zeros(9, 3, CODES)
    scores[:, 0, 5], scores[:, 1, 3] = 1.0, 1.0
    with pytest.raises(UnlearningError, match="no dedup digit left"):
        commit(table, np.arange(9), scores)


def test_in_a_repaired_table_every_item_gets_a_leaf_of_its_own():
    table = SidTable(("a", "b"), np.array([[1, 0, 0, 0], [2, 0, 0, 0]], np.int32), Vocabulary((8, 8, 8, 1)))
    scores = torch.zeros(2, 3, CODES)
    scores[:, 0, 5], scores[:, 2, 4], scores[:, 2, 6] = 1.0, 2.0, 1.0
    assert commit(table, np.array([0, 1]), scores)[0].sids[:, [0, 2, 3]].tolist() == [[5, 4, 0], [5, 6, 0]]


def test_a_later_request_leaves_an_earlier_reassignment_in_place(concept_problem, outcome, night):
    """phi starts at zero on the SIDs as they are now, and only the second concept's items may move."""
    later = night(Subject("concept", concept="Garden"))
    items = later.restored.concepts["Garden"]
    problem = replace(
        concept_problem, bundle=outcome.bundle, retained=later.retained, restored=later.restored, items=items
    )
    second = tracer(problem).bundle
    frozen = np.setdiff1d(np.arange(len(second.table.item_ids)), items)
    np.testing.assert_array_equal(second.table.sids[frozen], outcome.bundle.table.sids[frozen])
    assert (second.table.sids[items] != outcome.bundle.table.sids[items]).any()
