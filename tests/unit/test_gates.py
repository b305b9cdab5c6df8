"""Gates: verdicts at their boundaries, the attempt's verdict, and that integrity notices each kind of damage."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from genrec import saga
from genrec.config import GateParams
from genrec.data.subjects import Subject
from genrec.evaluation import gates
from genrec.evaluation.forgetting import UserForgetting
from genrec.evaluation.gates import Gate, at_least, at_most, by_construction, decide, either, inside
from genrec.evaluation.ranking import Ranking
from genrec.evaluation.statistics import NOTHING, Bootstrap, Measure, mean, ratio
from genrec.models.backbone import Backbone
from genrec.requests.certificates import issue, verify
from genrec.sid.table import SidTable
from tests.unit.test_certificates import FACTS, REQUEST

LIMITS = GateParams()
PLAN = Bootstrap(300)


def measure(low, high):
    return Measure((low + high) / 2, low, high, 10)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.5, "PASS"),
        (0.1, 0.51, "INCONCLUSIVE"),
        (0.5, 0.6, "INCONCLUSIVE"),
        (0.51, 0.6, "FAIL"),
        (0.5, 0.5, "PASS"),
    ],
)
def test_at_most_and_its_mirror(low, high, verdict):
    assert at_most(measure(low, high), 0.5) == verdict
    assert at_least(measure(-high, -low), -0.5) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-1, 1, "PASS"),
        (-0.2, 0.3, "PASS"),
        (-1.1, 0, "INCONCLUSIVE"),
        (0, 1.1, "INCONCLUSIVE"),
        (-3, 3, "INCONCLUSIVE"),
        (1, 2, "INCONCLUSIVE"),
        (1.01, 2, "FAIL"),
        (-2, -1.01, "FAIL"),
    ],
)
def test_equivalence_is_two_sided(low, high, verdict):
    assert inside(measure(low, high), -1, 1) == verdict


def test_no_examples_decide_nothing():
    assert at_most(NOTHING, 1) == at_least(NOTHING, 1) == inside(NOTHING, 0, 1) == "INCONCLUSIVE"


def test_either_route_is_enough_and_both_have_to_fail():
    p, f, i = "PASS", "FAIL", "INCONCLUSIVE"
    assert [either(*pair) for pair in ((p, f), (i, p), (f, f), (f, i), (i, i))] == [p, p, f, i, i]


def gate(verdict, blocking=True):
    return Gate("g", verdict, 0, 0, 0, 0, 1, gates.AT_MOST, "", blocking)


@pytest.mark.parametrize(
    ("verdicts", "approximate", "exact"),
    [
        (["PASS", "PASS"], "PASS", "PASS"),
        (["PASS", "INCONCLUSIVE"], "INCONCLUSIVE", "PASS"),
        (["INCONCLUSIVE", "FAIL"], "FAIL", "FAIL"),
        ([], "PASS", "PASS"),
    ],
)
def test_an_approximate_method_needs_every_gate_an_exact_one_no_failure(verdicts, approximate, exact):
    found = [*map(gate, verdicts), gate("FAIL", blocking=False), gate("INCONCLUSIVE", blocking=False)]
    assert decide(found, exact=False) == approximate
    assert decide(found, exact=True) == exact


def test_what_holds_by_construction_is_shown_and_does_not_block():
    shown = by_construction(gate("FAIL"))
    assert (shown.verdict, shown.blocking) == ("FAIL", False)
    assert "by construction" in shown.rule
    assert decide([shown], exact=True) == "PASS"


# --- integrity -------------------------------------------------------------------------------------------------------

NONE = np.empty(0, np.int64)


def violations(before, after, data, forget, movable=NONE):
    found = gates.integrity(before, after, data, forget, movable)
    assert found.verdict == ("PASS" if found.value == 0 else "FAIL")
    assert found.blocking
    return found.value


def moved(table, item):
    """The table with one item at another digit of its prefix."""
    sids = table.sids.copy()
    sids[item, -1] = table.vocabulary.sizes[-1] - 1
    return SidTable(table.item_ids, sids, table.vocabulary)


def test_an_untouched_bundle_is_sound(bundle, user_night):
    assert violations(bundle, bundle, user_night.retained, None) == 0
    assert violations(bundle, bundle, user_night.retained, user_night.forget) == 0


def test_a_changed_backbone_is_noticed(bundle, dataset):
    state = {name: tensor.clone() for name, tensor in bundle.backbone.state.items()}
    next(iter(state.values())).view(-1)[0] += 1e-4
    assert violations(bundle, replace(bundle, backbone=Backbone(bundle.backbone.config, state)), dataset, None) == 1


def test_a_moved_sid_is_noticed_unless_the_item_may_move(bundle, dataset):
    after = replace(bundle, table=moved(bundle.table, 12))
    assert violations(bundle, after, dataset, None) == 1
    assert violations(bundle, after, dataset, None, np.array([11, 13])) == 1
    assert violations(bundle, after, dataset, None, np.array([12])) == 0


def test_a_catalogue_that_is_not_the_datas_is_noticed(bundle, dataset):
    assert violations(bundle, bundle, replace(dataset, item_ids=(*dataset.item_ids[:-1], "other")), None) == 1
    more = replace(dataset, item_ids=(*dataset.item_ids, "zz"))
    assert violations(bundle, bundle, more, None) == 2  # and the index does not cover it


def test_rows_that_are_still_there_are_noticed(bundle, user_night, dataset):
    """One forgotten row back in the retained rows is one too many."""
    forget, retained = user_night.forget, user_night.retained
    assert violations(bundle, bundle, dataset, forget) == 1
    name, item = forget.user_ids[0], forget.items[0]
    at = next(i for i, user in enumerate((*retained.user_ids, "~")) if user > name)
    one_back = replace(
        retained,
        user_ids=(*retained.user_ids[:at], name, *retained.user_ids[at:]),
        offsets=np.concatenate([retained.offsets[: at + 1], retained.offsets[at:] + 1]),
        items=np.insert(retained.items, retained.offsets[at], item),
        split=np.insert(retained.split, retained.offsets[at], 0),
    )
    assert violations(bundle, bundle, one_back, forget) == 1


def test_one_interaction_may_go_while_the_person_stays(bundle, night, dataset):
    item = dataset.item_ids[dataset.history(8)[2]]
    erased = night(Subject("interaction", dataset.user_ids[8], item))
    assert dataset.user_ids[8] in erased.retained.user_ids
    assert violations(bundle, bundle, erased.retained, erased.forget) == 0
    assert violations(bundle, bundle, dataset, erased.forget) == 1


def test_a_forget_set_without_rows_is_noticed(bundle, user_night):
    empty = replace(
        user_night.forget,
        user_ids=(),
        offsets=np.zeros(1, np.int64),
        items=NONE,
        split=NONE,
        position=NONE,
        subjects=(),
    )
    assert violations(bundle, bundle, user_night.retained, empty) == 1


def test_damages_add_up(bundle, dataset, user_night):
    after = replace(bundle, table=moved(bundle.table, 3), backbone=Backbone({"x": 1}, bundle.backbone.state))
    assert violations(bundle, after, dataset, user_night.forget) == 3


# --- forgetting, utility, drift, cost --------------------------------------------------------------------------------


def people(forgotten, unseen):
    return UserForgetting(np.asarray(forgotten, float), np.asarray(unseen, float), np.arange(len(forgotten))[:, None])


def verdicts(found, retrained=None):
    result = gates.user_gates(found, LIMITS, PLAN, retrained)
    assert [g.name for g in result] == ["user-nll", "membership", "over-forgetting"]
    assert all(g.blocking for g in result)
    return [g.verdict for g in result]


def test_user_gates_see_both_sides():
    same = np.full(30, 1.4)
    assert verdicts(people(same, same)) == ["PASS", "PASS", "PASS"]
    assert verdicts(people(same - 0.2, same)) == ["FAIL", "FAIL", "PASS"]  # remembered
    assert verdicts(people(same + 0.2, same)) == ["FAIL", "FAIL", "FAIL"]  # pushed too far
    spread = np.linspace(1.1, 1.7, 12)
    assert verdicts(people(spread, spread[::-1])) == ["INCONCLUSIVE"] * 3


def test_too_few_people_decide_nothing_however_clear_they_look():
    clear = people(np.full(LIMITS.min_users - 1, 1.2), np.full(30, 1.4))
    assert verdicts(clear) == verdicts(clear, clear) == ["INCONCLUSIVE"] * 3
    assert "decide nothing" in gates.user_gates(clear, LIMITS, PLAN)[0].rule


def test_a_retrained_model_decides_what_never_seen_people_cannot():
    """People differ far more from each other than two models differ on the same people."""
    hard = np.linspace(1.1, 1.7, 12)
    easy = hard[::-1]
    retrained, bound = people(hard, easy), LIMITS.user_nll_retrained
    assert verdicts(people(hard + bound / 2, easy), retrained) == ["PASS"] * 3
    assert verdicts(people(hard - bound / 2, easy), retrained) == ["PASS"] * 3
    assert verdicts(people(hard - 2 * bound, easy), retrained)[0] == "INCONCLUSIVE"  # the other route is still open
    shown = gates.user_gates(people(hard - 2 * bound, easy), LIMITS, PLAN, retrained)[0]
    assert shown.high == pytest.approx(-2 * bound)
    assert "retrained" in shown.rule
    same = np.full(30, 1.4)
    assert verdicts(people(same - 0.2, same), people(same, same)) == ["FAIL", "FAIL", "PASS"]
    assert verdicts(people(same - 0.2, same), people(same - 0.2, same)) == ["PASS"] * 3


def test_the_concept_gate_allows_a_margin_over_the_retrained_model():
    margin = LIMITS.concept_margin
    shown = measure(0.0, 0.004 + margin)
    assert gates.concept_gate(shown, LIMITS, "Horror").verdict == "INCONCLUSIVE"
    assert gates.concept_gate(shown, LIMITS, "Horror", Measure(0.004, 0, 0.01, 10)).verdict == "PASS"
    assert gates.concept_gate(shown, LIMITS, "Horror", Measure(0.0, 0, 0.01, 10)).limit == LIMITS.concept_sh10


def test_the_worst_forgetting_gate_stands_for_a_form_of_the_model():
    found = gates.robustness_gate("int8", [gate("PASS"), replace(gate("FAIL"), name="membership"), gate("PASS")])
    assert (found.name, found.verdict, found.blocking) == ("robustness int8", "FAIL", True)
    assert "membership after int8" in found.rule
    assert gates.robustness_gate("int8", [gate("PASS"), gate("INCONCLUSIVE")]).verdict == "INCONCLUSIVE"


def test_relearning_may_gain_no_more_than_the_retrained_model_and_a_margin():
    limit = LIMITS.relearn_gain
    assert gates.relearn_gate(measure(-0.2, limit), LIMITS).verdict == "PASS"
    assert gates.relearn_gate(measure(limit * 1.01, 0.2), LIMITS).verdict == "FAIL"


def test_the_concept_gate_looks_at_the_upper_bound():
    limit = LIMITS.concept_sh10
    assert gates.concept_gate(measure(0, limit), LIMITS, "Horror").verdict == "PASS"
    assert gates.concept_gate(measure(0, 2 * limit), LIMITS, "Horror").verdict == "INCONCLUSIVE"
    found = gates.concept_gate(measure(2 * limit, 3 * limit), LIMITS, "Horror")
    assert (found.verdict, found.blocking, found.limit) == ("FAIL", True, limit)
    assert "Horror" in found.rule


def ranking(places, nll):
    return Ranking(np.zeros((len(places), 10), int), np.asarray(places), np.asarray(nll, float))


@pytest.fixture(scope="module")
def before():
    rng = np.random.default_rng(0)
    return ranking(rng.integers(-1, 20, 200), rng.normal(2, 0.3, 200))


def utility(before, after):
    return gates.utility_gate("utility", before, after, 0.98, 0.02, PLAN)


def test_utility_passes_by_the_ratio_although_the_likelihood_fell(before):
    found = utility(before, ranking(before.rank, before.nll + 1))
    assert (found.verdict, found.limit, found.value) == ("PASS", 0.98, 1.0)


def test_utility_passes_by_the_likelihood_although_the_ratio_is_open(before):
    places = np.random.default_rng(1).permutation(before.rank)
    found = utility(before, ranking(places, before.nll + 0.01))
    assert at_least(ratio(ranking(places, before.nll).ndcg(10), before.ndcg(10), PLAN), 0.98) == "INCONCLUSIVE"
    assert (found.verdict, found.limit) == ("PASS", 0.02)
    assert found.value == pytest.approx(0.01)


def test_utility_fails_only_on_both_routes(before):
    ruined = np.full(len(before.rank), -1)
    assert utility(before, ranking(ruined, before.nll + 1)).verdict == "FAIL"
    assert utility(before, ranking(ruined, before.nll)).verdict == "PASS"
    noisy = before.nll + np.random.default_rng(2).normal(0.02, 1, len(before.nll))
    assert utility(before, ranking(ruined, noisy)).verdict == "INCONCLUSIVE"


def test_the_figures_of_a_certified_utility_gate_give_its_verdict(before, tmp_path):
    """Whichever rule passed, and where none did: a reader of the certificate can do it again."""
    ruined, places = np.full(len(before.rank), -1), np.random.default_rng(1).permutation(before.rank)
    noisy = before.nll + np.random.default_rng(2).normal(0.02, 1, len(before.nll))
    after = {
        "by the ratio": (before.rank, before.nll + 1), "by the likelihood": (places, before.nll + 0.01),
        "by none": (ruined, before.nll + 1), "open": (ruined, noisy),
    }  # fmt: skip
    found = {name: utility(before, ranking(*figures)) for name, figures in after.items()}
    assert [gate.verdict for gate in found.values()] == ["PASS", "PASS", "FAIL", "INCONCLUSIVE"]
    certified = tuple(saga._gate_figure(gate.as_dict() | {"name": name}) for name, gate in found.items())
    assert [gate.rule for gate in certified] == [gate.check for gate in found.values()]
    assert certified[0].figure == "NDCG@10 ratio to the champion"
    facts = replace(FACTS, gates=tuple(replace(gate, blocking=False) for gate in certified))
    result = verify(issue(REQUEST, facts, tmp_path, None))
    assert (result.problems, result.gates_checked, result.not_recomputed) == ((), 4, ())
    changed = replace(certified[1], low=0.021, high=0.022)  # not by either rule
    result = verify(issue(REQUEST, replace(facts, gates=(changed,)), tmp_path / "changed", None))
    assert result.problems == ("Gate 'by the likelihood': its figures do not give its verdict.",)


def test_utility_without_cases_is_open(before):
    nobody = before.select(np.zeros(len(before.rank), bool))
    found = utility(nobody, nobody)
    assert (found.verdict, found.n) == ("INCONCLUSIVE", 0)


def test_drift_adds_up_over_nights_and_does_not_block(before):
    after = ranking(np.where(np.arange(200) < 4, -1, before.rank), before.nll)
    tonight = ratio(after.ndcg(10), before.ndcg(10), PLAN)
    found = gates.drift_gate(before, after, 0.95, LIMITS, PLAN)
    assert found.value == pytest.approx(1 - 0.95 * tonight.value)
    assert (found.low, found.high) == (pytest.approx(1 - 0.95 * tonight.high), pytest.approx(1 - 0.95 * tonight.low))
    assert found.low <= found.value <= found.high
    assert (found.verdict, found.blocking) == ("FAIL", False)
    assert gates.drift_gate(before, before, 1.0, LIMITS, PLAN).verdict == "PASS"


def test_cost_is_reported_and_does_not_block():
    assert gates.cost_gate(10.0, 100.0, LIMITS).verdict == "PASS"
    found = gates.cost_gate(11.0, 100.0, LIMITS)
    assert (found.verdict, found.value, found.blocking) == ("FAIL", pytest.approx(0.11), False)


def test_a_base_model_has_to_beat_popularity(before):
    top = np.zeros(200, int)
    worse = gates.beats_popularity(before, top, PLAN)
    assert worse.verdict == "FAIL"
    better = gates.beats_popularity(before, np.full(200, 10), PLAN)
    assert better.verdict == "PASS"
    assert better.value == pytest.approx(before.ndcg(10).mean())
    popular = np.random.default_rng(5).integers(0, 40, 200)
    theirs = np.where(popular < 10, 1 / np.log2(popular + 2), 0)
    assert gates.beats_popularity(before, popular, PLAN).value == pytest.approx(
        mean(before.ndcg(10) - theirs, PLAN).value
    )


def test_a_gate_says_how_its_verdict_follows():
    found = gates.cost_gate(1.0, 100.0, LIMITS).as_dict()
    assert set(found) == {*("name", "verdict", "value", "low", "high", "limit", "n", "check", "rule", "blocking")}
    assert found["check"] == "high <= limit"


AT = datetime(2031, 5, 4, tzinfo=UTC)


def named(name, verdict, rule="NLL gap"):
    return Gate(name, verdict, 0.1, -1, 1, (-0.05, 0.05), 3, gates.INSIDE, rule)


@pytest.mark.parametrize(
    "name", ["user-nll", "membership", "over-forgetting", "robustness int8", "robustness unmerged"]
)
def test_a_calibration_carries_an_inconclusive_gate_about_people_and_says_so(name):
    rule = "membership after int8: AUC" if name.startswith("robustness") else "AUC"
    carried = gates.by_calibration(named(name, "INCONCLUSIVE", rule), AT, 85)
    assert (carried.verdict, carried.blocking) == ("INCONCLUSIVE", False)
    assert carried.rule == f"{rule}; carried by the calibration of 2031-05-04 on 85 users"
    for verdict in ("PASS", "FAIL"):
        other = named(name, verdict, rule)
        assert gates.by_calibration(other, AT, 85) == other


@pytest.mark.parametrize("name", ["integrity", "utility", "collateral", "concept", "relearn", "robustness int8"])
def test_a_calibration_carries_nothing_else(name):
    other = named(name, "INCONCLUSIVE", "concept after int8: SH@10")
    assert gates.by_calibration(other, AT, 85) == other


def test_of_equally_bad_gates_robustness_shows_the_one_that_cannot_be_carried():
    found = [named("user-nll", "INCONCLUSIVE"), named("concept", "INCONCLUSIVE"), named("membership", "PASS")]
    for order in (found, found[::-1]):
        assert gates.robustness_gate("int8", order).rule.startswith("concept after int8")
    failed = [*found, named("membership", "FAIL")]
    assert gates.robustness_gate("int8", failed).rule.startswith("membership after int8")


def test_a_small_group_is_decided_by_its_own_failures_and_by_what_nobody_carries():
    def verdict(*found):
        return decide([gates.by_calibration(gate, AT, 85) for gate in found], exact=False)

    unsure, good = named("user-nll", "INCONCLUSIVE"), named("utility", "PASS")
    assert verdict(unsure, good) == "PASS"
    assert verdict(unsure, named("utility", "INCONCLUSIVE")) == "INCONCLUSIVE"
    assert verdict(unsure, good, named("membership", "FAIL")) == "FAIL"
