"""The ledger on a real SQLite file and a real PostgreSQL server: state machine, idempotency, refusals, resumption."""

import dataclasses
import json
import random
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from genrec.config import RequestParams
from genrec.data.subjects import Subject
from genrec.errors import ConfigError, RequestError
from genrec.requests.audit import verify_chain
from genrec.requests.database import connect, writing
from genrec.requests.ledger import CLOSED, TRANSITIONS, Known, Ledger
from genrec.requests.schema import AuditRow, Base, BatchRow, RequestRow

NOW = datetime(2031, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
KEY = b"a secret"
KNOWN = Known(
    users={"person-1"},
    items={"film-1", "film-2"},
    concepts={"Horror": 20, "Drama": 60},
    catalogue_size=100,
    interactions=lambda user, item: (user, item) == ("person-1", "film-1"),
)
USER = Subject("user", user_id="person-1")
CONCEPT = Subject("concept", concept="Horror")
ITEM = Subject("item", item_id="film-2")
INTERACTION = Subject("interaction", user_id="person-1", item_id="film-1")


@pytest.fixture
def url(new_ledger_url):
    return new_ledger_url()


@pytest.fixture
def ledger(url):
    ledger = Ledger(url, KEY, RequestParams())
    yield ledger
    ledger.engine.dispose()


@pytest.fixture
def sqlite_ledger(tmp_path):
    return Ledger(f"sqlite:///{tmp_path / 'var' / 'ledger.db'}", KEY, RequestParams())


def queue(ledger, subject=USER, deny_items=(), now=NOW):
    request = ledger.submit(subject, KNOWN, now=now)
    return ledger.verify(request.id, now=now, verifier="desk", deny_items=deny_items)


def fulfil(ledger, batch, now=NOW):
    methods = dict.fromkeys(batch.request_ids, "ucan")
    return ledger.fulfil(batch.id, methods, now=now, data_version="d2", model_version="7")


def rows(ledger, table):
    with Session(ledger.engine) as session:
        return session.scalar(select(func.count()).select_from(table))


def described(engine):
    """Everything the database itself says of its tables, Alembic's own aside."""
    inspector = inspect(engine)
    return {
        table: (
            {c["name"]: (str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)},
            inspector.get_pk_constraint(table),
            *(
                sorted(json.dumps(one, sort_keys=True, default=str) for one in found(table))
                for found in (inspector.get_indexes, inspector.get_foreign_keys, inspector.get_unique_constraints)
            ),
        )
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def test_migrations_make_exactly_the_declared_schema(ledger, empty_database_url):
    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        indexes = {index["name"]: index for index in inspect(connection).get_indexes("requests")}
    options = indexes["uq_requests_open_digest"]["dialect_options"]
    assert sorted(str(options[f"{ledger.engine.dialect.name}_where"]).split("'")[1::2]) == sorted(CLOSED)
    declared = connect(empty_database_url())
    Base.metadata.create_all(declared)
    assert described(ledger.engine) == described(declared)
    declared.dispose()


def test_migrations_go_down_to_nothing_and_up_again(ledger):
    before = described(ledger.engine)
    config = Config()
    config.set_main_option("script_location", "genrec.requests:migrations")
    for move, left in (
        (lambda: command.downgrade(config, "base"), {}),
        (lambda: command.upgrade(config, "head"), before),
    ):
        with writing(ledger.engine) as session:
            config.attributes["connection"] = session.connection()
            move()
        assert described(ledger.engine) == left


def test_many_can_open_a_new_ledger_at_once(empty_database_url):
    url = empty_database_url()
    with ThreadPoolExecutor(12) as pool:
        ledgers = list(pool.map(lambda _: Ledger(url, KEY, RequestParams()), range(12)))
    assert all(one.requests() == [] for one in ledgers)
    for one in ledgers:
        one.engine.dispose()


def test_the_file_is_the_owners_and_every_connection_is_strict(sqlite_ledger, tmp_path):
    ledger = sqlite_ledger
    assert stat.S_IMODE((tmp_path / "var" / "ledger.db").stat().st_mode) == 0o600
    with ledger.engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "secure_delete", "busy_timeout")
        }
    assert pragma == {"journal_mode": "wal", "foreign_keys": 1, "secure_delete": 1, "busy_timeout": 30000}


def test_sqlite_without_a_file_is_refused():
    with pytest.raises(ConfigError, match="names no file"):
        connect("sqlite://")


def test_a_request_runs_through_to_fulfilled(ledger):
    request = ledger.submit(USER, KNOWN, now=NOW)
    assert (request.state, request.attempts, request.label) == ("received", 0, None)
    assert request.digest == USER.digest(KEY)
    assert request.due_at == NOW + timedelta(days=30)
    verified = ledger.verify(request.id, now=NOW + timedelta(hours=1), verifier="desk")
    assert verified.state == "queued"
    assert verified.verified_at == verified.suppressed_at == NOW + timedelta(hours=1)
    batch = ledger.claim(now=NOW + timedelta(hours=2))
    assert batch.subjects == ((request.id, USER),)
    assert ledger.get(request.id).state == "running"
    [done] = fulfil(ledger, batch, NOW + timedelta(hours=3))
    assert (done.state, done.method, done.batch_id) == ("fulfilled", "ucan", batch.id)
    assert done.unlearned_at == NOW + timedelta(hours=3)
    assert ledger.get(request.id) == done
    assert ledger.tombstones() == {"user": {request.digest}}
    assert done.as_dict()["received_at"] == "2031-05-04T03:02:01.123456+00:00"
    with Session(ledger.engine) as session:
        events = session.scalars(select(AuditRow.event).order_by(AuditRow.seq)).all()
    assert events == ["received", "verified", "queued", "claimed", "running", "fulfilled", "closed"]


def test_times_are_kept_as_utc_and_naive_ones_are_refused(ledger):
    local = NOW.astimezone(timezone(timedelta(hours=9)))
    request = ledger.submit(USER, KNOWN, now=local)
    assert request == ledger.get(request.id)
    assert request.received_at.isoformat() == NOW.isoformat()
    for call in (
        lambda naive: ledger.hold(request.id, now=naive, reason="x"),
        lambda naive: ledger.requests(overdue_at=naive),
    ):
        with pytest.raises(RequestError, match="no time zone"):
            call(NOW.replace(tzinfo=None))


MOVES = {
    "queued": lambda ledger, request, batch: ledger.verify(request, now=NOW, verifier="desk"),
    "cancelled": lambda ledger, request, batch: ledger.cancel(request, now=NOW, reason="changed their mind"),
    "rejected": lambda ledger, request, batch: ledger.reject(request, now=NOW, reason="not the account's owner"),
    "held": lambda ledger, request, batch: ledger.hold(request, now=NOW, reason="legal"),
    "released": lambda ledger, request, batch: ledger.release(request, now=NOW),
    "fulfilled": lambda ledger, request, batch: ledger.fulfil(
        batch, {request: "ucan"}, now=NOW, data_version="d", model_version="1"
    ),
    "failed": lambda ledger, request, batch: ledger.fail(batch, "gate", now=NOW),
}


def reach(ledger, state):
    """A request in `state` and the open batch that its row belongs to, which the table may then refuse to close."""
    request = ledger.submit(USER, KNOWN, now=NOW).id
    if state != "received":
        ledger.verify(request, now=NOW, verifier="desk")
    batch = ledger.claim(now=NOW).id if state in ("running", "fulfilled", "failed") else None
    if state not in ("received", "queued", "running"):
        MOVES[state](ledger, request, batch)
    assert ledger.get(request).state == state
    if state != "running":
        with writing(ledger.engine) as session:
            session.merge(BatchRow(id="b-open", claimed_at=NOW, stage="claimed", details={}))
            session.flush()
            session.get(RequestRow, request).batch_id = batch = "b-open"
    return request, batch


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("state", [state for state in TRANSITIONS if state != "verified"])
def test_every_move_is_done_or_refused_as_the_table_says(ledger, state, move):
    request, batch = reach(ledger, state)
    before, events = ledger.get(request), rows(ledger, AuditRow)
    wanted = {"queued": "verified", "released": "received" if state == "received" else "queued"}.get(move, move)
    if wanted in TRANSITIONS[state]:
        MOVES[move](ledger, request, batch)
        after = ledger.get(request).state
        assert after == ("queued" if move == "released" else move)
    else:
        with pytest.raises(RequestError, match=f"is {state} and cannot become {wanted}"):
            MOVES[move](ledger, request, batch)
        assert ledger.get(request) == before
        assert rows(ledger, AuditRow) == events
    verify_chain(ledger.engine)


@pytest.mark.parametrize("state", [state for state in TRANSITIONS if state != "verified"])
def test_claim_takes_queued_and_failed_requests_only(ledger, state):
    request = ledger.submit(USER, KNOWN, now=NOW).id
    with writing(ledger.engine) as session:
        session.get(RequestRow, request).state = state
    batch = ledger.claim(now=NOW)
    assert (batch is not None) == (state in ("queued", "failed")) == ("running" in TRANSITIONS[state])


def test_release_goes_back_to_where_the_hold_began(ledger):
    request = ledger.submit(USER, KNOWN, now=NOW).id
    assert ledger.hold(request, now=NOW, reason="identity").reason == "identity"
    released = ledger.release(request, now=NOW)
    assert (released.state, released.reason) == ("received", None)
    ledger.verify(request, now=NOW, verifier="desk")
    ledger.hold(request, now=NOW, reason="legal")
    assert ledger.claim(now=NOW) is None
    assert ledger.release(request, now=NOW).state == "queued"


def test_eight_threads_submitting_the_same_make_one_request(url, ledger):
    ledgers = [Ledger(url, KEY, RequestParams()) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda one: one.submit(USER, KNOWN, now=NOW, idempotency_key="k").id, ledgers))
    assert len(found) == 1
    assert (rows(ledger, RequestRow), rows(ledger, AuditRow)) == (1, 1)
    for one in ledgers:
        one.engine.dispose()


def test_the_database_itself_refuses_a_second_open_request(ledger):
    request = ledger.submit(USER, KNOWN, now=NOW)
    with pytest.raises(IntegrityError), writing(ledger.engine) as session:
        session.add(
            RequestRow(
                id="r-2", kind="user", digest=request.digest, state="held", attempts=0, received_at=NOW, due_at=NOW
            )
        )


def test_a_key_returns_its_request_for_good_and_belongs_to_one_subject(ledger):
    request = ledger.submit(USER, KNOWN, now=NOW, idempotency_key="k")
    ledger.cancel(request.id, now=NOW, reason="x")
    assert ledger.submit(USER, KNOWN, now=NOW, idempotency_key="k").id == request.id
    assert ledger.submit(USER, KNOWN, now=NOW).id != request.id
    with pytest.raises(RequestError, match="another subject"):
        ledger.submit(CONCEPT, KNOWN, now=NOW, idempotency_key="k")


def test_an_open_request_is_returned_even_when_the_data_has_forgotten_the_user(ledger):
    request = queue(ledger)
    ledger.claim(now=NOW)
    gone = Known(set(), set(), {}, 1, lambda user, item: False)
    assert ledger.submit(USER, gone, now=NOW).id == request.id


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (lambda: Subject("user", user_id=""), "needs user_id"),
        (lambda: Subject("user", user_id=" "), "Unknown user"),
        (lambda: Subject("interaction", user_id="person-1"), "needs item_id"),
        (lambda: Subject("user", user_id="nobody-7"), "Unknown user"),
        (lambda: Subject("item", item_id="film-9"), "Unknown item 'film-9'"),
        (lambda: Subject("concept", concept="Horor"), "Known concepts near it: Horror. See genrec data concepts."),
        (lambda: Subject("concept", concept="Drama"), r"60.0% .*60 of 100 items.* 30.0% of requests.max_concept_share"),
        (lambda: Subject("interaction", user_id="person-1", item_id="film-2"), "no interaction with item 'film-2'"),
        (lambda: Subject("interaction", user_id="nobody-7", item_id="film-1"), "Unknown user"),
    ],
)
def test_refusals_say_why_and_store_nothing(ledger, subject, message):
    with pytest.raises(RequestError, match=message) as caught:
        ledger.submit(subject(), KNOWN, now=NOW)
    assert "person-" not in str(caught.value)
    assert "nobody-7" not in str(caught.value)
    assert rows(ledger, RequestRow) == rows(ledger, AuditRow) == 0


def test_items_are_denied_from_verification_until_a_cancellation(ledger):
    concept = queue(ledger, CONCEPT, deny_items=["film-1", "film-2"])
    item = queue(ledger, ITEM)
    assert (concept.label, item.label) == ("Horror", "film-2")
    assert ledger.deny_list() == {"film-1", "film-2"}
    ledger.hold(concept.id, now=NOW, reason="legal")
    assert ledger.deny_list() == {"film-1", "film-2"}
    ledger.cancel(concept.id, now=NOW, reason="x")
    assert ledger.deny_list() == {"film-2"}
    fulfil(ledger, ledger.claim(now=NOW))
    assert ledger.deny_list() == {"film-2"}
    assert ledger.get(item.id).label == "film-2"


@pytest.mark.parametrize(("subject", "deny_items"), [(CONCEPT, []), (USER, ["film-1"]), (INTERACTION, ["film-1"])])
def test_verification_refuses_the_wrong_deny_items_as_a_whole(ledger, subject, deny_items):
    request = ledger.submit(subject, KNOWN, now=NOW)
    with pytest.raises(RequestError, match="deny_items"):
        ledger.verify(request.id, now=NOW, verifier="desk", deny_items=deny_items)
    assert ledger.get(request.id) == request
    assert rows(ledger, AuditRow) == 1


def test_a_crash_between_claim_and_fulfil_resumes_the_same_batch(url, ledger):
    queue(ledger)
    first = ledger.claim(now=NOW)
    ledger.set_stage(first.id, "erased", {"data_version": "d2", "rows": 3}, now=NOW)
    ledger.set_stage(first.id, "climbed", {"rung": "ucan"}, now=NOW)
    queue(ledger, CONCEPT, deny_items=["film-1"])  # arrives too late: the next batch's
    events = rows(ledger, AuditRow)
    reopened = Ledger(url, KEY, RequestParams())
    again = reopened.claim(now=NOW + timedelta(hours=1))
    assert (again.id, again.subjects, again.claimed_at, again.stage) == (first.id, first.subjects, NOW, "climbed")
    for stage, details in (("erased", {"data_version": "d2", "rows": 3}), ("climbed", {"rung": "ucan"})):
        reopened.set_stage(first.id, stage, details, now=NOW)  # as the resumed run does, from the start
    assert reopened.stage(first.id).details == {"data_version": "d2", "rows": 3, "rung": "ucan"}
    assert rows(ledger, AuditRow) == events
    assert len(fulfil(reopened, again)) == 1
    assert reopened.stage(first.id).name == "climbed"
    assert reopened.claim(now=NOW).id != first.id


def test_fulfilling_twice_is_fulfilling_once(ledger):
    queue(ledger)
    batch = ledger.claim(now=NOW)
    done = fulfil(ledger, batch)
    events = rows(ledger, AuditRow)
    assert fulfil(ledger, batch, NOW + timedelta(days=1)) == done
    assert rows(ledger, AuditRow) == events
    assert ledger.claim(now=NOW) is None


def test_fulfil_needs_a_method_for_every_request(ledger):
    first, second = queue(ledger), queue(ledger, ITEM)
    batch = ledger.claim(now=NOW)
    with pytest.raises(RequestError, match=second.id):
        ledger.fulfil(batch.id, {first.id: "ucan"}, now=NOW, data_version="d", model_version="1")
    assert {request.state for request in ledger.requests()} == {"running"}


def test_a_failed_batch_is_tried_again_as_another_one(ledger):
    request = queue(ledger)
    first = ledger.claim(now=NOW)
    ledger.fail(first.id, "gates", now=NOW)
    ledger.fail(first.id, "gates", now=NOW)
    failed = ledger.get(request.id)
    assert (failed.state, failed.attempts, failed.reason) == ("failed", 1, "gates")
    with pytest.raises(RequestError, match="failed and cannot become fulfilled"):
        fulfil(ledger, first)
    second = ledger.claim(now=NOW)
    assert second.request_ids == first.request_ids
    assert second.id != first.id
    assert fulfil(ledger, second)[0].attempts == 1


def test_listing_by_state_and_due_date(ledger):
    early = ledger.submit(USER, KNOWN, now=NOW)
    late = queue(ledger, ITEM, now=NOW + timedelta(days=1))
    assert [request.id for request in ledger.requests()] == [early.id, late.id]
    assert [request.id for request in ledger.requests("queued")] == [late.id]
    assert ledger.requests(overdue_at=NOW + timedelta(days=29)) == []
    assert [request.id for request in ledger.requests(overdue_at=NOW + timedelta(days=30))] == [early.id]
    ledger.cancel(early.id, now=NOW, reason="x")
    assert ledger.requests(overdue_at=NOW + timedelta(days=30)) == []
    with pytest.raises(RequestError, match="Known states near it: queued"):
        ledger.requests("queud")


def test_unknown_ids_are_named(ledger):
    with pytest.raises(RequestError, match=r"Unknown request 'r-0'\. See genrec requests list"):
        ledger.get("r-0")
    with pytest.raises(RequestError, match="Unknown batch 'b-0'"):
        ledger.stage("b-0")


def test_raw_ids_show_in_no_repr_and_leave_the_disk_when_requests_close(sqlite_ledger, tmp_path):
    """Rows that grow while they close make SQLite split pages, which leaves copies that `secure_delete` misses."""
    ledger = sqlite_ledger
    people = [f"person-{i}-{'x' * (i * 37 % 40)}" for i in range(120)]
    known = dataclasses.replace(KNOWN, users=people)
    opened = []
    for person in people:
        request = ledger.submit(Subject("user", user_id=person), known, now=NOW, idempotency_key=f"{person}/form")
        assert person not in repr(request)
        opened.append(request.id)
    for request in opened[::40]:
        ledger.verify(request, now=NOW, verifier="desk")
        opened.remove(request)
    random.Random(1).shuffle(opened)  # an order that needs the VACUUM: without it this test fails
    queue(ledger, INTERACTION)
    queue(ledger, CONCEPT, deny_items=["film-1"])

    def on_disk():
        return b"".join(path.read_bytes() for path in sorted((tmp_path / "var").glob("ledger.db*")))

    assert all(person.encode() in on_disk() for person in people)
    batch = ledger.claim(now=NOW)
    assert "person-" not in repr(batch)
    fulfil(ledger, batch)
    for number, request in enumerate(opened):
        (ledger.cancel, ledger.reject)[number % 2](request, now=NOW, reason="a long story " * 100)
    left = on_disk()
    assert b"Horror" in left
    assert b"person-" not in left
    verify_chain(ledger.engine)
