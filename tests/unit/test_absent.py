"""Requests about those of whom the prepared tables hold nothing: their rows have gone, or k-core keeps them outside."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from genrec import planning
from genrec.data.prepare import prepare
from genrec.data.sequences import load_dataset
from genrec.data.subjects import Subject, read_tombstones
from genrec.data.tables import Tables, read_tables, write_tables
from genrec.errors import RequestError, UnlearningError
from genrec.evaluation import gates
from genrec.evaluation.judge import Erased, judge, measure
from genrec.evaluation.statistics import Bootstrap
from genrec.night import Night, erase_batch
from genrec.requests.certificates import CertificateFacts, issue
from genrec.requests.intake import submit, submit_and_verify
from genrec.unlearning import method
from genrec.unlearning.untouched import UNTOUCHED
from tests.unit.conftest import KEY
from tests.unit.past import Past

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)
RARE, ODD, TAG = "rare person", "odd item", "Odd tag"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory, shop, params):
    """The shop with somebody who has two rows, one of them of an item that nobody else has, under a tag of its own."""
    root = tmp_path_factory.mktemp("sparse")
    tables = read_tables(shop.root / "data")
    known = tables.items["item_id"][0].as_py()
    rows = pa.table(
        {"user_id": [RARE, RARE], "item_id": [known, ODD], "timestamp": [1, 2], "rating": [4.0, 4.0]},
        schema=tables.interactions.schema,
    )
    item = pa.table(
        {"item_id": [ODD], "title": ["Odd"], "text": ["Odd"], "concepts": [[TAG]]}, schema=tables.items.schema
    )
    (root / "data").mkdir()
    together = Tables(pa.concat_tables([tables.interactions, rows]), pa.concat_tables([tables.items, item]))
    write_tables(together, root / "data")
    prepare(root / "data", root / "prepared", params, KEY)
    return root


@pytest.fixture
def past(tmp_path, sparse, bundle, params):
    past = Past(tmp_path / "home", sparse, bundle, params)
    past.train(NOW)
    return past


ABSENT = (
    Subject("user", RARE), Subject("item", item_id=ODD), Subject("concept", concept=TAG),
    Subject("interaction", RARE, ODD),
)  # fmt: skip


def begin(past, *subjects):
    """The night that serves `subjects`, its data erased and prepared."""
    workspace = past.workspace
    for subject in subjects:
        submit_and_verify(workspace, subject, now=NOW, verifier="desk")
    batch = past.ledger.claim(now=NOW)
    before = {"data_version_before": past.data_version, "champion_before": past.champion}
    past.ledger.set_stage(batch.id, "started", before, now=NOW)
    night = Night(workspace, batch, past.champion)
    erase_batch(night)
    prepare(workspace.data, workspace.prepared, past.params, KEY)
    past.pin()
    return night


@pytest.mark.parametrize("subject", ABSENT, ids=lambda one: one.kind)
def test_whoever_is_in_the_raw_tables_alone_may_ask(past, subject):
    assert not load_dataset(past.workspace.prepared).holds(subject)
    request = submit_and_verify(past.workspace, subject, now=NOW, verifier="desk")
    assert request.state == "queued"
    assert past.ledger.deny_list() == (frozenset() if subject.user_id else {ODD})


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Subject("user", "nobody"), "Unknown user"), (Subject("item", item_id="nothing"), "Unknown item"),
        (Subject("concept", concept="Odd tg"), "Known concepts near it: Odd tag"),
        (Subject("interaction", "nobody", ODD), "Unknown user"),
    ],
)  # fmt: skip
def test_whoever_is_in_no_table_is_still_refused(past, subject, message):
    with pytest.raises(RequestError, match=message):
        submit(past.workspace, subject, now=NOW)


def test_an_interaction_that_never_was_is_refused_though_both_ids_are_known(past):
    other = read_tables(past.workspace.data).items["item_id"][5].as_py()
    with pytest.raises(RequestError, match="no interaction"):
        submit(past.workspace, Subject("interaction", RARE, other), now=NOW)


def test_their_raw_rows_go_with_a_tombstone_and_the_prepared_ones_stay(past):
    before, version = load_dataset(past.workspace.prepared), past.data_version
    night = begin(past, *ABSENT)
    assert RARE not in (past.workspace.data / "interactions.csv").read_text()
    assert ODD not in read_tables(past.workspace.data).interactions["item_id"].to_pylist()
    stones = read_tombstones(past.workspace.data)
    assert {(kind, digest) for kind, digests in stones.items() for digest in digests} == {
        (one.kind, one.digest(past.workspace.pseudonym_key())) for one in ABSENT
    }
    assert past.data_version != version
    assert np.array_equal(night.restored.items, before.items)
    assert night.restored.user_ids == before.user_ids
    assert night.forget is None
    (group,) = night.groups
    assert (group.kind, len(group.request_ids), len(group.users), len(group.items)) == ("absent", 4, 0, 0)


def test_a_person_whose_rows_are_there_is_not_taken_for_absent(past):
    person = load_dataset(past.workspace.prepared).user_ids[3]
    night = begin(past, Subject("user", person), Subject("user", RARE))
    absent, people = night.groups
    assert (absent.kind, people.kind) == ("absent", "user")
    assert [night.restored.user_ids[u] for u in people.users] == [person]
    assert len(night.forget.items) == len(night.restored.history(people.users[0]))


def test_a_concept_without_a_row_left_is_measured_on_its_items_like_any_other(past):
    """Forgotten once, asked again: nothing is sealed, the items are still in the catalogue and climb their ladder."""
    past.night(Subject("concept", concept="Cycling"), now=NOW)
    night = begin(past, Subject("concept", concept="Cycling"))
    (group,) = night.groups
    assert (group.kind, len(group.items) > 0, night.forget) == ("concept", True, None)
    found = gates.integrity(night.champion, night.champion, night.retained, night.forget, group.items)
    assert found.verdict == "PASS"


def test_the_weights_stay_where_the_champion_never_saw_them(past):
    plan = planning.plan(begin(past, Subject("user", RARE)), NOW)["absent"]
    assert plan["ladder"] == [UNTOUCHED, "retrain"]
    assert "The prepared tables held no row of it" in plan["reason"]
    assert "Version 1 was trained without one: its weights stay as they are." in plan["reason"]
    assert {request.plan for request in past.ledger.requests("running")} == {plan["reason"]}


@pytest.mark.parametrize("lost", ["a concept", "the data", "k-core"])
def test_whoever_the_champion_may_have_seen_is_retrained_without(past, lost):
    """Their rows went with a concept of an edited champion, with data fetched anew, or with another k-core."""
    workspace = past.workspace
    if lost == "a concept":
        past.night(Subject("concept", concept="Cycling"), now=NOW)
    if lost == "the data":
        tables = read_tables(workspace.data)
        write_tables(Tables(tables.interactions.slice(1), tables.items), workspace.data)
        prepare(workspace.data, workspace.prepared, past.params, KEY)
        past.pin()
    night = begin(past, Subject("user", RARE))
    if lost == "k-core":
        changed = past.params.model_copy(update={"data": past.params.data.model_copy(update={"k_core": 4})})
        from genrec.workspace import params_yaml

        workspace.params_file.write_text(params_yaml(changed))
    plan = planning.plan(night, NOW)["absent"]
    assert plan["ladder"] == ["retrain"]
    assert f"Version {past.champion} may have been trained when there was one" in plan["reason"]


def test_nights_that_erased_people_alone_lie_between_the_training_and_the_proof(past):
    people = load_dataset(past.workspace.prepared).user_ids
    past.night(Subject("user", people[2]), now=NOW)
    past.night(Subject("user", people[7]), now=NOW + DAY)
    assert past.champion == "3"
    assert planning.trained_without(past.workspace, "3", past.data_version)
    assert not planning.trained_without(past.workspace, "2", past.data_version)
    assert not planning.trained_without(past.workspace, "9", past.data_version)


def test_an_untouched_champion_passes_its_gates_and_edits_nothing(user_night, bundle, params, user_problem):
    nobody = np.empty(0, np.int64)
    problem = replace(user_problem, users=nobody)
    outcome = method(UNTOUCHED).run(problem)
    assert outcome.bundle == bundle
    with pytest.raises(UnlearningError, match="cannot stay as they are"):
        method(UNTOUCHED).run(user_problem)
    erased = Erased(user_night.retained, user_night.retained, params.gates, Bootstrap.of(params))
    group = SimpleNamespace(label="the absent", users=nobody, items=nobody)
    before = measure(erased, bundle, [group])
    found, _ = judge(erased, [group], bundle, bundle, before, outcome.bundle, exact=False, wall_s=0.0)
    assert gates.decide(found, exact=False) == "PASS"
    assert {gate.name for gate in found} >= {"integrity", "utility", "drift"}
    assert not {gate.name for gate in found} & {"user-nll", "membership", "concept"}


def test_the_certificate_says_that_no_row_was_there(past, tmp_path):
    request = submit_and_verify(past.workspace, Subject("user", RARE), now=NOW, verifier="desk")
    done = replace(request, state="fulfilled", method=UNTOUCHED, unlearned_at=NOW)
    path = issue(done, CertificateFacts("d1", "d2", "h1", "h2", "1", "2", ()), tmp_path, None)
    assert "held no row of it when the night began" in path.read_text()
    assert "were edited" not in path.read_text()
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
