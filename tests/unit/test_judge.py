"""The judge that nights, calibrations and the bench share: which cases, which gates, and against whom."""

from dataclasses import replace

import numpy as np
import pytest

from genrec.evaluation.judge import Erased, Forgotten, forgetting, judge, measure, robustness_gates
from genrec.evaluation.ranking import held_out
from genrec.evaluation.statistics import Bootstrap

PLAN = Bootstrap(200)
NONE = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def people(user_problem, params):
    limits = params.gates.model_copy(update={"min_users": 3})
    return Erased(user_problem.retained, user_problem.restored, limits, PLAN)


@pytest.fixture(scope="module")
def persons(user_problem):
    return (Forgotten("people", user_problem.users, NONE),)


@pytest.fixture(scope="module")
def concept(concept_problem, params):
    return Erased(concept_problem.retained, concept_problem.restored, params.gates, PLAN)


@pytest.fixture(scope="module")
def topic(concept_problem):
    return (Forgotten("Cycling", NONE, concept_problem.items),)


def test_a_sample_of_the_cases_is_the_same_people_with_and_without_the_concept(concept):
    some = replace(concept, max_cases=20)
    names = [
        {data.user_ids[u] for u in cases.users}
        for data, cases in ((some.retained, some.cases), (some.restored, some.provoking))
    ]
    assert len(names[0]) == len(names[1]) == 20
    assert len(names[0] & names[1]) >= 15  # a person whose target was of the concept has no case without it
    assert len(concept.cases.targets) == len(held_out(concept.retained).targets) > 20
    other = replace(some, plan=replace(PLAN, seed=1))
    assert {other.retained.user_ids[u] for u in other.cases.users} != names[0]
    assert replace(concept, max_cases=10_000).cases.targets.tolist() == concept.cases.targets.tolist()


def test_forgotten_people_have_no_case(people, user_night):
    gone = set(user_night.forget.user_ids)
    assert not gone & {people.retained.user_ids[u] for u in people.cases.users}
    assert not gone & {people.restored.user_ids[u] for u in people.provoking.users}


def test_measuring_only_what_is_forgotten_ranks_only_what_a_concept_needs(people, persons, concept, topic, bundle):
    model = bundle.model()
    assert len(forgetting(people, bundle, model, persons).ranking.rank) == 0
    found = forgetting(concept, bundle, model, topic)
    assert len(found.ranking.rank) == len(concept.provoking.targets)
    assert found.forgetting == measure(concept, bundle, topic).forgetting


def judged(erased, groups, bundle, candidate, exact=False, reference=None):
    before = measure(erased, bundle, groups)
    return judge(
        erased, groups, bundle, bundle.with_lineage(retrain_s=10.0), before, candidate,
        exact=exact, wall_s=2.0, reference=reference,
    )  # fmt: skip


def test_robustness_is_asked_only_of_an_approximate_candidate_that_has_not_failed(people, persons, bundle, damaged):
    names = [gate.name for gate in judged(people, persons, bundle, bundle)[0]]
    assert names == [
        "integrity", "user-nll", "membership", "over-forgetting", "utility", "robustness int8", "robustness unmerged",
        "drift", "cost",
    ]  # fmt: skip
    assert not any(g.name.startswith("robustness") for g in judged(people, persons, bundle, bundle, exact=True)[0])
    found = judged(people, persons, bundle, damaged(8.0))[0]
    assert next(g for g in found if g.name == "utility").verdict == "FAIL"
    assert not any(g.name.startswith("robustness") for g in found)


def test_a_candidate_is_equivalent_to_itself_as_the_reference(people, persons, bundle):
    """Whoever is remembered: with the candidate as its own reference the paired difference is exactly zero."""
    found, after = judged(people, persons, bundle, bundle, reference=measure(people, bundle, persons))
    gate = next(g for g in found if g.name == "user-nll")
    assert gate.verdict == "PASS"
    assert after.users["people"].gap_over(after.users["people"], PLAN).high == 0


def test_both_forms_of_the_model_are_measured_and_unmerged_is_the_same_function(concept, topic, bundle):
    int8, unmerged = robustness_gates(concept, bundle, topic)
    exposed = forgetting(concept, bundle, bundle.model(), topic).forgetting["sh@10 Cycling"]
    assert unmerged.value == pytest.approx(exposed.value, abs=0.05)
    assert "after int8" in int8.rule


def test_the_collateral_slice_shares_two_codes_with_a_forgotten_item(concept, bundle, concept_problem):
    found = concept.beside(bundle, concept_problem.items)
    sids = bundle.table.sids[:, :-1]
    for target, beside in zip(concept.cases.targets, found, strict=True):
        shared = max((sids[target] == sids[item]).sum() for item in concept_problem.items)
        assert beside == (shared >= 2)
    assert found.any()
