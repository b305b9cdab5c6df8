"""What an operator may do with a request, and which texts the ledger takes: on SQLite and on PostgreSQL alike."""

import json
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from genrec.config import RequestParams
from genrec.data.subjects import FIELDS, LONGEST_ID, Subject
from genrec.errors import ConfigError, GenrecError, OutageError, RequestError
from genrec.requests.audit import verify_chain
from genrec.requests.database import connect, migrate, writing
from genrec.requests.ledger import Known, Ledger
from genrec.requests.schema import AuditRow, RequestRow

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KEY = b"a secret"
PERSON = "ann@example.org"


class Everything(dict):
    """Known concepts, users and items without a limit: what is refused is refused for its text."""

    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return 1


KNOWN = Known(Everything(), Everything(), Everything(), 100, lambda user, item: True)


@pytest.fixture
def ledger(new_ledger_url):
    ledger = Ledger(new_ledger_url(), KEY, RequestParams())
    yield ledger
    ledger.engine.dispose()


@pytest.fixture
def request_id(ledger):
    return ledger.submit(Subject("user", PERSON), KNOWN, now=NOW).id


def audited(ledger):
    with Session(ledger.engine) as session:
        return [
            (row.event, json.loads(row.payload)) for row in session.scalars(select(AuditRow).order_by(AuditRow.seq))
        ]


def counts(ledger):
    with Session(ledger.engine) as session:
        return [session.scalar(select(func.count()).select_from(table)) for table in (RequestRow, AuditRow)]


# --- due dates and identity ------------------------------------------------------------------------------------------


def test_one_extension_moves_the_due_date_and_is_in_the_chain(ledger, request_id):
    extended = ledger.extend(request_id, now=NOW + 30 * DAY, reason="hundreds came in at once")
    assert extended.due_at == NOW + 90 * DAY
    assert (extended.extended_at, extended.extension_reason) == (NOW + 30 * DAY, "hundreds came in at once")
    assert extended.state == "received"
    assert ledger.get(request_id) == extended
    assert ledger.requests(overdue_at=NOW + 89 * DAY) == []
    assert audited(ledger)[-1] == (
        "extended", {"reason": "hundreds came in at once", "due_at": (NOW + 90 * DAY).isoformat()}
    )  # fmt: skip
    with pytest.raises(RequestError, match=r"extended on 2031-06-03, to 2031-08-02\. There is one extension only"):
        ledger.extend(request_id, now=NOW + 31 * DAY, reason="again")
    assert ledger.get(request_id) == extended


def test_an_extension_comes_before_the_due_date_and_only_to_an_open_request(ledger, request_id):
    with pytest.raises(RequestError, match="was due on 2031-06-03"):
        ledger.extend(request_id, now=NOW + 30 * DAY + timedelta(seconds=1), reason="late")
    ledger.cancel(request_id, now=NOW, reason="withdrawn")
    with pytest.raises(RequestError, match="is cancelled: only an open one"):
        ledger.extend(request_id, now=NOW, reason="x")
    assert [event for event, _ in audited(ledger)] == ["received", "cancelled"]


def test_the_identity_check_is_on_record_for_good_and_names_nobody(ledger, request_id):
    verified = ledger.verify(request_id, now=NOW + DAY, verifier="desk 3", how="letter to the known address")
    assert (verified.verified_by, verified.verified_how) == ("desk 3", "letter to the known address")
    assert verified.verified_at == NOW + DAY
    assert audited(ledger)[1][1] == {"from": "received", "verifier": "desk 3", "how": "letter to the known address"}
    batch = ledger.claim(now=NOW + DAY)
    [done] = ledger.fulfil(batch.id, {request_id: "retrain"}, now=NOW + DAY, data_version="d", model_version="1")
    assert (done.verified_by, done.verified_how, done.verified_at) == ("desk 3", verified.verified_how, NOW + DAY)
    with ledger.engine.connect() as connection:
        stored = [str(tuple(row)) for table in (RequestRow, AuditRow) for row in connection.execute(select(table))]
    assert len(stored) > 5
    assert PERSON not in "".join(stored)


WORDS = {
    "verifier": lambda ledger, request, text: ledger.verify(request, now=NOW, verifier=text),
    "how": lambda ledger, request, text: ledger.verify(request, now=NOW, verifier="desk", how=text),
    "hold": lambda ledger, request, text: ledger.hold(request, now=NOW, reason=text),
    "cancel": lambda ledger, request, text: ledger.cancel(request, now=NOW, reason=text),
    "reject": lambda ledger, request, text: ledger.reject(request, now=NOW, reason=text),
    "extend": lambda ledger, request, text: ledger.extend(request, now=NOW, reason=text),
}


@pytest.mark.parametrize("call", WORDS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"mail from {PERSON.upper()}, 3 May", "person's id"),
        (" ", "is empty"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
    ],
)
def test_words_for_the_chain_are_refused_as_a_whole(ledger, request_id, call, text, message):
    before = ledger.get(request_id)
    with pytest.raises(RequestError, match=message) as caught:
        WORDS[call](ledger, request_id, text)
    assert PERSON not in str(caught.value).lower()
    assert ledger.get(request_id) == before
    assert counts(ledger) == [1, 1]


# --- claiming --------------------------------------------------------------------------------------------------------


def test_a_claim_passes_over_a_row_that_somebody_else_has_locked(new_ledger_url):
    ledger = Ledger(new_ledger_url(), KEY, RequestParams())
    if ledger.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer and no row locks")
    requests = [ledger.submit(Subject("item", item_id=name), KNOWN, now=NOW).id for name in "abc"]
    for request in requests:
        ledger.verify(request, now=NOW, verifier="desk")
    with ledger.engine.begin() as other:
        other.execute(select(RequestRow.id).where(RequestRow.id == requests[1]).with_for_update())
        batch = ledger.claim(now=NOW)
    assert set(batch.request_ids) == {requests[0], requests[2]}
    assert ledger.get(requests[1]).state == "queued"
    ledger.fail(batch.id, "gates", now=NOW)
    assert set(ledger.claim(now=NOW).request_ids) == set(requests)
    assert verify_chain(ledger.engine) == 3 * 3 + 3 + 3 + 4
    ledger.engine.dispose()


# --- texts -----------------------------------------------------------------------------------------------------------

NASTY = ["", " ", "\0", "a\0", "\ud800", "x\udfff", "'; DROP TABLE requests; --", "' OR '1'='1", "../../etc/passwd",
         "%s%n{0}", "\\", "\u202e\ufeff\U0010ffff", "a\r\nb", "e\u0301", "x" * LONGEST_ID, "\U0001f600" * LONGEST_ID,
         "x" * (LONGEST_ID + 1), "x" * 100_000]  # fmt: skip
ANY = st.one_of(st.sampled_from(NASTY), st.text(st.characters(codec=None), max_size=40))


@pytest.fixture(scope="module")
def shared(new_ledger_url):
    ledger = Ledger(new_ledger_url(), KEY, RequestParams())
    yield ledger
    stored, links = counts(ledger)
    assert stored > 10
    assert verify_chain(ledger.engine) == links
    ledger.engine.dispose()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(FIELDS)), texts=st.tuples(ANY, ANY), key=st.none() | ANY)
@example(kind="item", texts=("\U0001f600" * LONGEST_ID,) * 2, key=None)
def test_any_text_is_stored_exactly_or_refused_with_nothing_stored(shared, kind, texts, key):
    ledger, before, refusal = shared, counts(shared), None
    try:
        subject = Subject(kind, **dict(zip(FIELDS[kind], texts, strict=False)))
        request = ledger.submit(subject, KNOWN, now=NOW, idempotency_key=key)
        ledger.verify(request.id, now=NOW, verifier="desk", deny_items=["film-1"] if kind == "concept" else [])
    except GenrecError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert len(refusal.encode()) < 300
        assert counts(ledger) == before
        return
    with Session(ledger.engine) as session:
        row = session.get(RequestRow, request.id)
        assert Subject(kind, row.user_id, row.item_id, row.concept) == subject
    assert counts(ledger) == [before[0] + 1, before[1] + 3]
    if kind == "item":
        assert subject.item_id in ledger.deny_list()
    assert ledger.submit(subject, KNOWN, now=NOW, idempotency_key=key).id == request.id
    with writing(ledger.engine) as session:  # so that the next example may ask the same
        row = session.get(RequestRow, request.id)
        row.state, row.idempotency = "cancelled", None


@pytest.mark.parametrize("text", NASTY)
def test_an_id_that_never_was_is_unknown_and_not_an_error_of_the_database(shared, text):
    for call in (shared.get, shared.stage):
        with pytest.raises(RequestError, match=r"Unknown|holds"):
            call(text)


# --- the database ----------------------------------------------------------------------------------------------------


def test_a_database_that_could_not_hold_every_id_is_refused(postgres):
    url = postgres.database("ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(ConfigError, match=r"is LATIN1 .* ENCODING 'UTF8'"):
        migrate(url)


def test_a_server_that_is_not_there_is_named_without_its_password():
    with pytest.raises(OutageError, match=r"127\.0\.0\.1:1/ledger .*does not answer.* Start it") as caught:
        migrate("postgresql://genrec:hidden@127.0.0.1:1/ledger")
    assert "hidden" not in str(caught.value)


def test_the_plain_name_of_postgresql_finds_the_driver_or_says_how_to_install_it(monkeypatch):
    assert connect("postgresql://127.0.0.1/ledger").dialect.driver == "psycopg"
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"needs psycopg\. In your clone: pip install -c constraints.txt"):
        connect("postgresql://127.0.0.1/ledger")
