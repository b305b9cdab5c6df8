"""Forgetting figures: against loops, and that they see memorisation where there is some and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.config import GateParams
from genrec.data.sequences import HOLDOUT, TRAIN
from genrec.evaluation import power
from genrec.evaluation.evidence import curve
from genrec.evaluation.forgetting import (
    MATCHES,
    concept_exposure,
    concept_mass,
    holdout_users,
    user_forgetting,
    user_nll,
)
from genrec.evaluation.gates import user_gates
from genrec.evaluation.membership import membership
from genrec.evaluation.ranking import Cases, Ranking, held_out, training_histories
from genrec.evaluation.robustness import extraction
from genrec.evaluation.statistics import NOTHING, Bootstrap, wilson
from genrec.models.beam import encode_histories, exact_scores
from genrec.training.base import train_adapter
from genrec.training.rows import chunk, whole

PLAN = Bootstrap(300)


@pytest.fixture(scope="module")
def trained(dataset):
    return [u for u in range(len(dataset.user_ids)) if len(dataset.training_rows(u))]


@torch.no_grad()
def slow_user_nll(model, items, table, window):
    """Each item's tokens given what precedes it within its chunk, one forward pass per item."""
    nll, count = 0.0, 0
    for row in chunk(items, window):
        for at in range(row.loss_from, len(row.items)):
            tokens = torch.tensor([[1, *table.tokens[row.items[: at + 1]].ravel()]])
            logp = model(input_ids=tokens, use_cache=False).logits[0].log_softmax(-1)
            levels = table.vocabulary.levels
            for level in range(levels):
                place = 1 + at * levels + level
                nll, count = nll - logp[place - 1, tokens[0, place]].item(), count + 1
    return nll / count


def test_user_nll_equals_a_loop(bundle, model, dataset, table, params, trained):
    longest = max(trained, key=lambda u: len(dataset.training_rows(u)))
    users = [trained[0], longest, int(holdout_users(dataset)[0])]
    nll, lengths = user_nll(bundle, model, dataset, users)
    histories = [items for _, items in training_histories(dataset, users)]
    assert lengths.tolist() == [len(items) for items in histories]
    assert lengths[1] > params.architecture.window  # more than one chunk
    slow = [slow_user_nll(model, items, table, params.architecture.window) for items in histories]
    np.testing.assert_allclose(nll, slow, atol=1e-5)


def test_holdout_users_are_those_no_training_saw(dataset):
    found = holdout_users(dataset)
    assert len(found)
    for user in range(len(dataset.user_ids)):
        split = dataset.split[dataset.offsets[user] : dataset.offsets[user + 1]]
        assert (user in found) == (split == HOLDOUT).all()


def with_holdout(dataset, users):
    """The dataset in which `users` are holdout users as well."""
    split = dataset.split.copy()
    for user in users:
        split[dataset.offsets[user] : dataset.offsets[user + 1]] = HOLDOUT
    return replace(dataset, split=split)


def test_people_the_model_never_saw_look_like_people_it_never_saw(backbone, bundle, dataset, trained, table, params):
    """Train on a third of the people and ask about another third, with the last one beside the holdout users."""
    rows = whole((u, dataset.training_rows(u)) for u in trained[::3])
    stranger = replace(bundle, adapter=train_adapter(backbone, rows, table, params)[0])
    restored = with_holdout(dataset, trained[2::3])
    model = stranger.model()
    unseen = user_forgetting(stranger, model, restored, trained[1::3])
    gap, attack = unseen.gap(PLAN), unseen.membership(PLAN)
    assert gap.low <= 0 <= gap.high
    assert attack.low <= 0.5 <= attack.high
    assert (gap.n, attack.n) == (24, 24)
    seen = user_forgetting(stranger, model, restored, trained[::3])
    assert seen.gap(PLAN).value < gap.value
    assert seen.membership(PLAN).value > attack.value


def test_overtraining_shows_as_membership(backbone, bundle, dataset, trained, table, params, small):
    few = trained[:15]
    longer = small(params, "train", epochs=100, batch_tokens=600, dropout=0.0)
    rows = whole((u, dataset.training_rows(u)) for u in few)
    parrot = replace(bundle, adapter=train_adapter(backbone, rows, table, longer)[0])
    seen = user_forgetting(parrot, parrot.model(), dataset, few)
    assert seen.gap(PLAN).high < -0.1
    assert seen.membership(PLAN).low > 0.9


def test_without_never_seen_people_every_figure_is_unknown_and_no_gate_passes(bundle, model, dataset, trained):
    """`split.holdout_users` 0, as the published protocols have it."""
    everybody = replace(dataset, split=np.where(dataset.split == HOLDOUT, TRAIN, dataset.split))
    found = user_forgetting(bundle, model, everybody, trained[:12])
    assert (len(found.unseen), found.matches.shape) == (0, (12, 0))
    for reference in (None, found):
        verdicts = user_gates(found, GateParams(min_users=10), PLAN, reference)
        assert {gate.verdict for gate in verdicts} == {"INCONCLUSIVE"}
        assert all(gate.rule.endswith("there are no never-seen people: split.holdout_users was 0") for gate in verdicts)
    assert found.gap(PLAN) is found.gap_over(found, PLAN) is found.membership(PLAN) is NOTHING
    assert membership(bundle, model, everybody, trained[:12], PLAN).min_k.tpr is NOTHING
    prompted = extraction(bundle, model, everybody, trained[:12], holdout_users(everybody), PLAN)
    assert (prompted.forgotten.n, prompted.difference) == (12, NOTHING)
    assert curve(found, found.membership(PLAN), 0.95).points == ()
    assert power.user_nll(found, 0.05, 0.95, 0.8).note == "0 never-seen users: raise split.holdout_users"
    assert power.membership(0, (0.45, 0.55), 0.95, 0.8).note.startswith("0 never-seen users are too few")


def test_each_person_is_compared_with_the_nearest_in_length(bundle, model, dataset, trained):
    users = trained[:6]
    found = user_forgetting(bundle, model, dataset, users)
    nll_f, length_f = user_nll(bundle, model, dataset, users)
    nll_h, length_h = user_nll(bundle, model, dataset, holdout_users(dataset))
    gaps = []
    for nll, length in zip(nll_f, length_f, strict=True):
        nearest = sorted(range(len(nll_h)), key=lambda j: abs(np.log1p(length) - np.log1p(length_h[j])))
        gaps.append(nll - nll_h[nearest[:MATCHES]].mean())
    assert found.gap(PLAN).value == pytest.approx(np.mean(gaps))
    assert found.membership(PLAN).value == pytest.approx((nll_f[:, None] < nll_h).mean())


def test_the_gap_over_another_model_is_the_difference_of_the_gaps_and_far_narrower(bundle, damaged, dataset, trained):
    other = damaged(0.9)
    mine, theirs = (user_forgetting(b, b.model(), dataset, trained[:20]) for b in (bundle, other))
    over = mine.gap_over(theirs, PLAN)
    assert over.value == pytest.approx(mine.gap(PLAN).value - theirs.gap(PLAN).value)
    assert over.high - over.low < 0.5 * (mine.gap(PLAN).high - mine.gap(PLAN).low)


def test_the_mass_of_a_concept_is_the_sum_of_its_items_probabilities(bundle, model, dataset):
    cases, items = held_out(dataset).select(np.arange(5) < 5), dataset.concepts["Cycling"].astype(np.int64)
    prompts = encode_histories(cases.histories, bundle.table, bundle.params.architecture.window)
    everything = exact_scores(model, prompts, bundle.table).exp()
    found = concept_mass(bundle, model, cases, items, PLAN)
    assert found.value == pytest.approx(everything[:, items].sum(1).mean().item(), rel=1e-4)
    assert everything.sum(1).max() <= 1.0001


def test_exposure_counts_cases_that_asked_for_something_else():
    concept = np.array([7, 8])
    top = np.tile(np.arange(10, 20), (5, 1))
    top[0, 9] = 7  # shown at place 10
    top[1, 0] = 8  # shown, but the target is of the concept itself
    top[2, 2] = 8
    top[4] = -1
    targets = np.array([1, 7, 2, 3, 4])
    cases = Cases(np.arange(5), (np.array([0]),) * 5, targets)
    ranking = Ranking(top, np.full(5, -1), np.zeros(5))
    assert concept_exposure(ranking, cases, concept, 10, 0.95) == wilson(2, 4, 0.95)
    assert concept_exposure(ranking, cases, concept, 5, 0.9) == wilson(1, 4, 0.9)
    own, shown = cases.select(targets == 7), ranking.select(targets == 7)
    assert concept_exposure(shown, own, concept, 10, 0.95).n == 0
