"""The gradient baselines: their rows, their losses against slow formulas, the loop, and that each one forgets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.errors import ConfigError, UnlearningError
from genrec.models.adapter import Overlay, weight_names
from genrec.training.rows import Row, collate, token_nll
from genrec.unlearning import METHODS, descent, method
from genrec.unlearning.descent import descend, forget_rows, reference_model, retain_rows, sequence_log_p
from genrec.unlearning.graddiff import kl_from
from genrec.unlearning.npo import npo_loss
from genrec.unlearning.simnpo import simnpo_loss
from genrec.unlearning_params import DescentParams

ASCENDING = ("gradient_ascent", "graddiff", "npo", "simnpo")
TRAINED = ("finetune", *ASCENDING)


@pytest.fixture(scope="module")
def brief(params):
    """Parameters with few and large steps for every method."""
    sections = {
        name: getattr(params.unlearning, name).model_copy(update={"steps": 12, "learning_rate": 2e-3})
        for name in TRAINED
    }
    sections["finetune"] = params.unlearning.finetune.model_copy(update={"steps": 25, "learning_rate": 3e-4})
    return params.model_copy(update={"unlearning": params.unlearning.model_copy(update=sections)})


@pytest.fixture(scope="module")
def problems(user_problem, concept_problem, brief):
    return {"users": replace(user_problem, params=brief), "concept": replace(concept_problem, params=brief)}


@pytest.fixture(scope="module")
def before(bundle):
    """Copies of the start bundle's adapter weights, taken before any method ran."""
    return {name: tensor.clone() for name, tensor in bundle.adapter.state.items()}


@pytest.fixture(scope="module")
def outcomes(problems, before):
    """Each method run once on each problem."""
    return {(name, kind): METHODS[name].run(problem) for name in TRAINED for kind, problem in problems.items()}


def nll(bundle, rows):
    """NLL per target token of `rows`."""
    total, count = token_nll(bundle.adapted(), rows, bundle.table)
    return total.sum() / count.sum()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_forget_rows_of_users_are_all_their_training_rows_once(user_problem):
    rows, window = forget_rows(user_problem), user_problem.params.architecture.window
    assert {row.user for row in rows} <= set(user_problem.users.tolist())
    for user in user_problem.users:
        found = [row.items for row in rows if row.user == user]
        assert np.concatenate(found).tolist() == user_problem.restored.training_rows(user).tolist()
        assert all(len(items) == window for items in found[:-1])
    assert all(row.loss_from == 0 and row.skip is None and 0 < len(row.items) <= window for row in rows)
    assert max(len(user_problem.restored.training_rows(u)) for u in user_problem.users) > window


def test_forget_rows_of_a_concept_have_their_loss_on_it_alone(concept_problem):
    data, items = concept_problem.restored, concept_problem.items
    rows = forget_rows(concept_problem)
    staying = [u for u in range(len(data.user_ids)) if len(data.training_rows(u))]
    for user in staying:
        targets = [item for row in rows if row.user == user for item in row.items[~row.skip]]
        assert targets == [item for item in data.training_rows(user) if item in items]
    assert all((~row.skip).any() and len(row.items) <= concept_problem.params.architecture.window for row in rows)
    assert any(row.skip.any() for row in rows)  # other items stay as context


def test_forget_rows_of_a_concept_leave_out_people_who_are_gone(concept_problem, user_problem):
    """The concept's group of a night whose restored data also hold the users' group."""
    items = np.arange(len(user_problem.restored.item_ids))
    both = replace(concept_problem, items=items, retained=user_problem.retained, restored=user_problem.restored)
    rows = forget_rows(both)
    assert rows
    assert not {row.user for row in rows} & set(user_problem.users.tolist())


def test_retain_rows_hold_nothing_that_is_forgotten(user_problem, concept_problem):
    for problem in (user_problem, concept_problem):
        rows, data = retain_rows(problem), problem.retained
        for user in range(len(data.user_ids)):
            targets = [item for row in rows if row.user == user for item in row.items]
            assert targets == data.training_rows(user).tolist()
    assert not any(np.isin(row.items, concept_problem.items).any() for row in retain_rows(concept_problem))
    gone = {user_problem.restored.user_ids[u] for u in user_problem.users}
    assert not {user_problem.retained.user_ids[row.user] for row in retain_rows(user_problem)} & gone


@pytest.mark.parametrize("name", [*TRAINED, "scif"])
def test_nothing_to_forget_is_refused(user_problem, concept_problem, name):
    untrained = [
        u for u in range(len(user_problem.restored.user_ids)) if not len(user_problem.restored.training_rows(u))
    ]
    without = replace(concept_problem, restored=concept_problem.retained)
    for problem in (replace(user_problem, users=np.array(untrained)), without):
        with pytest.raises(UnlearningError, match="nothing to unlearn"):
            METHODS[name].run(problem)


def test_nobody_left_is_refused(user_problem):
    class Nobody(type(user_problem)):
        retained_users = np.empty(0, np.int64)

    nobody = Nobody(**{name: getattr(user_problem, name) for name in user_problem.__dataclass_fields__})
    with pytest.raises(UnlearningError, match="No user with training rows is retained"):
        retain_rows(nobody)


# --- losses against slow formulas ------------------------------------------------------------------------------------


def test_sequence_log_p_is_the_sum_over_targets_of_each_row(bundle, model):
    rows = [
        Row(np.array([3, 8, 1, 20])),
        Row(np.array([5, 6, 7]), loss_from=1),
        Row(np.array([9, 2, 4]), skip=np.array([True, False, True])),
    ]
    log_p, tokens = sequence_log_p(model, collate(rows, bundle.table))
    total, count = token_nll(model, rows, bundle.table)
    np.testing.assert_allclose(log_p.detach(), -total, rtol=1e-5)
    assert tokens.tolist() == count.tolist() == [16, 8, 4]


LOG_P, REFERENCE, TOKENS = [-40.0, -9.0, -3.5], [-35.0, -9.0, -6.0], [16, 8, 4]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_equals_its_formula(beta):
    log_p, reference = (torch.tensor(x, dtype=torch.float64) for x in (LOG_P, REFERENCE))
    ratios = [np.exp(a) / np.exp(b) for a, b in zip(LOG_P, REFERENCE, strict=True)]
    expected = 2 / beta * sum(np.log(1 + ratio**beta) for ratio in ratios) / 3
    assert npo_loss(log_p, reference, beta).item() == pytest.approx(expected, rel=1e-9)


def test_npo_is_gradient_ascent_where_beta_vanishes_and_stops_where_the_likelihood_is_gone():
    log_p = torch.tensor(LOG_P, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor(REFERENCE, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(npo_loss(log_p, reference, 1e-6), log_p)
    np.testing.assert_allclose(gradient, np.full(3, 1 / 3), rtol=1e-4)  # of the mean log p, which goes down
    (gradient,) = torch.autograd.grad(npo_loss(log_p - 1000, reference, 0.1), log_p)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(("beta", "gamma"), [(2.5, 0.0), (0.7, 0.4)])
def test_simnpo_equals_its_formula(beta, gamma):
    expected = 0.0
    for value, tokens in zip(LOG_P, TOKENS, strict=True):
        sigmoid = 1 / (1 + np.exp(beta / tokens * value + gamma))
        expected += -2 / beta * np.log(sigmoid) / 3
    found = simnpo_loss(torch.tensor(LOG_P, dtype=torch.float64), torch.tensor(TOKENS), beta, gamma)
    assert found.item() == pytest.approx(expected, rel=1e-9)


@torch.no_grad()
def test_kl_equals_a_sum_over_tokens(bundle, model, damaged):
    other = damaged(0.5).adapted()
    rows = [Row(np.array([3, 8, 1])), Row(np.array([5, 6]), loss_from=1)]
    values = []
    for row in rows:
        tokens = torch.tensor([[1, *bundle.table.tokens[row.items].ravel()]])
        p, q = (m(input_ids=tokens[:, :-1], use_cache=False).logits[0].double().softmax(-1) for m in (model, other))
        values += (p * (p / q).log()).sum(-1)[4 * row.loss_from :].tolist()
    assert len(values) == 16
    batch = collate(rows, bundle.table)
    assert kl_from(model, other, batch).item() == pytest.approx(np.mean(values), rel=1e-4)
    assert kl_from(model, other, batch) != pytest.approx(kl_from(other, model, batch).item(), rel=1e-3)
    assert kl_from(model, model, batch).item() == pytest.approx(0, abs=1e-6)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_batches_are_half_and_half_and_use_every_row_before_any_again(user_problem, monkeypatch):
    forget, retain = forget_rows(user_problem), retain_rows(user_problem)
    monkeypatch.setattr(descent, "forget_rows", lambda problem: forget)
    monkeypatch.setattr(descent, "retain_rows", lambda problem: retain)
    seen = {"forget": [], "retain": []}

    def loss(model, f, r):
        seen["forget"].append([id(row) for row in f.rows])
        seen["retain"].append([id(row) for row in r.rows])
        return {"x": sum(p.sum() for p in model.parameters() if p.requires_grad)}

    settings = DescentParams(steps=9, batch_size=7)
    assert set(descend(user_problem, settings, loss).diagnostics) == {"x_loss"}
    for kind, rows in (("forget", forget), ("retain", retain)):
        assert [len(batch) for batch in seen[kind]] == [3] * 9
        drawn = [row for batch in seen[kind] for row in batch]
        assert set(drawn) <= {id(row) for row in rows}
        times = [drawn.count(id(row)) for row in rows]
        assert max(times) - min(times) <= 1
    assert len(forget) < 27  # so that some come twice


def test_the_sum_of_the_terms_is_descended_and_each_is_reported(user_problem):
    def loss(model, f, r):
        first, second = [p for p in model.parameters() if p.requires_grad][:2]
        return {"a": first.sum(), "b": -3 * second.sum()}

    outcome = descend(user_problem, DescentParams(steps=1, learning_rate=1e-3), loss)
    before, after = user_problem.bundle.adapter.state, outcome.bundle.adapter.state
    moved = {
        name: (after[name] - before[name]).mean().item()
        for name in before
        if not equal({0: before[name]}, {0: after[name]})
    }
    assert sorted(round(value, 6) for value in moved.values()) == [-0.001, 0.001]  # AdamW's first step is the sign
    assert outcome.diagnostics["a_loss"] == pytest.approx(
        sum(before[n].sum().item() for n in moved if moved[n] < 0), rel=1e-4
    )


def test_a_loss_that_is_not_finite_names_the_remedy(user_problem):
    def loss(model, f, r):
        weight = next(p for p in model.parameters() if p.requires_grad)
        return {"x": (weight * 0).sum().log()}

    with pytest.raises(UnlearningError, match=r"became -inf.* at step 1 of 5\. Lower .*learning_rate \(0\.01\)"):
        descend(user_problem, DescentParams(steps=5, learning_rate=0.01), loss)


def test_a_gradient_that_is_not_finite_is_refused_even_at_the_last_step(user_problem):
    def loss(model, f, r):
        weight = next(p for p in model.parameters() if p.requires_grad)
        return {"x": (weight * 0).sum().sqrt()}  # 0, with an undefined slope

    with pytest.raises(UnlearningError, match="gradient norm nan"):
        descend(user_problem, DescentParams(steps=1), loss)


@pytest.mark.parametrize("axis", ["out", "rank", "in"])
def test_training_starts_from_the_effective_weights(user_problem, bundle, axis):
    state, scales = bundle.adapter.state, {}
    for site in bundle.adapter.sites:
        a, b = weight_names(site)
        size = {"out": len(state[b]), "rank": len(state[a]), "in": state[a].shape[1]}[axis]
        scales[site] = torch.linspace(0.1, 1, size)
    overlay = Overlay("b", scales, axis)
    start = replace(bundle, overlays=(overlay,))
    problem = replace(user_problem, bundle=start)

    def loss(model, f, r):
        return {"x": next(p for p in model.parameters() if p.requires_grad).sum()}

    outcome = descend(problem, DescentParams(steps=1, learning_rate=1e-9), loss)
    assert outcome.bundle.overlays == ()
    tokens = torch.randint(2, bundle.table.vocabulary.size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = start.adapted()(input_ids=tokens).logits
        torch.testing.assert_close(outcome.bundle.adapted()(input_ids=tokens).logits, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(reference_model(problem)(input_ids=tokens).logits, expected)


# --- the methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["users", "concept"])
@pytest.mark.parametrize("name", ASCENDING)
def test_what_is_forgotten_becomes_less_likely(outcomes, problems, name, kind):
    rows = forget_rows(problems[kind])
    assert nll(outcomes[name, kind].bundle, rows) > nll(problems[kind].bundle, rows) + 0.05


def test_fine_tuning_helps_the_retained_rows(outcomes, problems):
    for kind, problem in problems.items():
        rows = retain_rows(problem)
        assert nll(outcomes["finetune", kind].bundle, rows) < nll(problem.bundle, rows)


@pytest.mark.parametrize("name", TRAINED)
def test_only_the_adapter_changes_and_the_start_bundle_does_not(outcomes, before, problems, bundle, name):
    after = outcomes[name, "users"].bundle
    assert equal(before, dict(problems["users"].bundle.adapter.state))
    assert after.backbone is bundle.backbone
    assert after.table is bundle.table
    assert not equal(dict(after.adapter.state), before)
    assert (after.adapter.rank, after.adapter.alpha) == (bundle.adapter.rank, bundle.adapter.alpha)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_a_function_of_its_seed(outcomes, problems, name):
    torch.manual_seed(99)
    first, again = outcomes[name, "users"], METHODS[name].run(problems["users"])
    assert again.diagnostics == first.diagnostics
    assert equal(dict(again.bundle.adapter.state), dict(first.bundle.adapter.state))
    other = METHODS[name].run(replace(problems["users"], seed=8))
    assert not equal(dict(other.bundle.adapter.state), dict(first.bundle.adapter.state))


@pytest.mark.parametrize("name", ["graddiff", "npo", "simnpo"])
def test_the_retain_weight_protects_retained_rows(outcomes, problems, small, name):
    problem = problems["users"]
    without = METHODS[name].run(replace(problem, params=small(problem.params, f"unlearning.{name}", retain_weight=0.0)))
    rows = retain_rows(problem)
    assert nll(outcomes[name, "users"].bundle, rows) < nll(without.bundle, rows)


def test_graddiff_without_a_retain_term_is_gradient_ascent(outcomes, problems, small):
    problem = problems["users"]
    alone = METHODS["graddiff"].run(
        replace(problem, params=small(problem.params, "unlearning.graddiff", retain_weight=0.0))
    )
    assert equal(dict(alone.bundle.adapter.state), dict(outcomes["gradient_ascent", "users"].bundle.adapter.state))


def test_the_kl_term_holds_the_model_where_it_was(outcomes, problems, small):
    problem = problems["users"]
    changes = {"retain_term": "kl", "retain_weight": 3.0}
    held = METHODS["graddiff"].run(replace(problem, params=small(problem.params, "unlearning.graddiff", **changes)))
    batch = collate(retain_rows(problem), problem.bundle.table)
    reference = reference_model(problem)
    with torch.no_grad():
        distance = {
            name: kl_from(reference, b.adapted(), batch).item()
            for name, b in (("kl", held.bundle), ("nll", outcomes["graddiff", "users"].bundle))
        }
    assert distance["kl"] < distance["nll"]
    assert nll(held.bundle, forget_rows(problem)) > nll(problem.bundle, forget_rows(problem))


# --- the filter and the registry -------------------------------------------------------------------------------------


def test_the_filter_denies_the_items_and_changes_no_weight(concept_problem, bundle):
    outcome = METHODS["output_filter"].run(replace(concept_problem, bundle=replace(bundle, deny=("i0001",))))
    ids = bundle.table.item_ids
    assert set(outcome.bundle.deny) == {"i0001", *(ids[i] for i in concept_problem.items)}
    assert outcome.bundle.adapter is bundle.adapter
    assert outcome.bundle.overlays is bundle.overlays
    assert outcome.diagnostics["kind"] == "suppression"


def test_a_filter_cannot_hide_a_person(user_problem):
    with pytest.raises(UnlearningError, match="cannot hide a person"):
        METHODS["output_filter"].run(user_problem)


def test_every_method_goes_by_its_own_name_and_an_unknown_one_lists_them():
    assert all(method(name).name == name for name in METHODS)
    assert [name for name, found in METHODS.items() if found.exact] == ["retrain"]
    with pytest.raises(ConfigError) as error:
        method("zzz")
    assert all(name in str(error.value) for name in METHODS)
    with pytest.raises(ConfigError, match=r"Known methods near it: .*simnpo"):
        method("simmpo")
