"""deploy/roles.sql on a real PostgreSQL server: what each role can do, and what the server keeps it from."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from sqlalchemy import create_engine, func, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from genrec.config import RequestParams
from genrec.data.subjects import Subject
from genrec.errors import RequestError
from genrec.requests import audit
from genrec.requests.database import migrate
from genrec.requests.deny import current_deny
from genrec.requests.lease import Lease
from genrec.requests.ledger import Known, Ledger
from genrec.requests.schema import AuditRow, Base, RequestRow
from tests.postgres import USER

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLES = (DEPLOY / "roles.sql").read_text()
NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
KNOWN = Known({"ann", "bob", "eve"}, {"film"}, {}, 100, lambda user, item: True)
LOGINS = {"shop_a": "requester", "shop_b": "requester", "worker": "operator", "inspector": "auditor", "web": "serving"}


def execute(url, *statements):
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.connection.driver_connection.execute(statement)  # several statements in one, as psql sends them
    engine.dispose()


@pytest.fixture(scope="module")
def urls(postgres):
    """URL of the one ledger by login; `roles.sql` was run twice."""
    url = postgres.database()
    migrate(url).dispose()
    logins = [f"CREATE ROLE {login} LOGIN IN ROLE genrec_{role}" for login, role in LOGINS.items()]
    execute(url, ROLES, ROLES, *logins)
    yield {login: url.replace(f"{USER}@", f"{login}@") for login in LOGINS} | {"owner": url}
    execute(url, "DROP OWNED BY genrec_requester, genrec_operator, genrec_auditor, genrec_serving")


def ledger(urls, login):
    return Ledger(urls[login], b"key", RequestParams())


def denied(url, statement):
    engine = create_engine(url)
    with engine.begin() as connection, pytest.raises(ProgrammingError, match="permission denied"):
        connection.execute(statement) if not isinstance(statement, str) else connection.exec_driver_sql(statement)
    engine.dispose()


def test_a_requester_submits_and_reads_its_own_requests_alone(urls):
    mine, other = ledger(urls, "shop_a"), ledger(urls, "shop_b")
    request = mine.submit(Subject("user", "ann"), KNOWN, now=NOW, idempotency_key="letter 1")
    assert mine.submit(Subject("user", "ann"), KNOWN, now=NOW).id == request.id
    theirs = other.submit(Subject("user", "bob"), KNOWN, now=NOW)
    assert [found.id for found in mine.requests()] == [request.id]
    with pytest.raises(RequestError, match="Unknown request"):
        mine.get(theirs.id)
    with pytest.raises(RequestError, match="this role may not read"):
        other.submit(Subject("user", "ann"), KNOWN, now=NOW)
    for forbidden in (
        "SELECT user_id FROM requests", "DELETE FROM requests", "UPDATE requests SET state = 'queued'",
        "SELECT payload FROM audit", "SELECT * FROM deny_items", "SELECT * FROM leases", "CREATE TABLE mine (x int)",
    ):  # fmt: skip
        denied(urls["shop_a"], forbidden)
    with pytest.raises(ProgrammingError, match="permission denied"):
        mine.verify(request.id, now=NOW, verifier="myself")
    row = {"kind": "user", "digest": "d", "state": "queued", "attempts": 0, "received_at": NOW, "due_at": NOW}
    with mine.engine.begin() as connection, pytest.raises(ProgrammingError, match="row-level security"):
        connection.execute(insert(RequestRow).values(id="r-2", **row))
    assert {found.id for found in ledger(urls, "worker").requests()} == {request.id, theirs.id}


def test_the_operator_does_a_nights_writes(urls):
    operator = ledger(urls, "worker")
    request = operator.submit(Subject("item", item_id="film"), KNOWN, now=NOW)
    operator.verify(request.id, now=NOW, verifier="desk")
    with Lease.acquire(operator.engine, "unlearn", "worker", lambda: NOW, 60) as lease:
        held = Ledger(urls["worker"], b"key", RequestParams(), lease.fence)
        batch = held.claim(now=NOW)
        assert [subject.item_id for _, subject in batch.subjects] == ["film"]
        held.set_stage(batch.id, "started", {}, now=NOW)
        methods = dict.fromkeys(batch.request_ids, "ucan")
        held.fulfil(batch.id, methods, now=NOW, data_version="d", model_version="2")
    person = operator.submit(Subject("user", "eve"), KNOWN, now=NOW)
    operator.verify(person.id, now=NOW, verifier="desk")
    assert dict(operator.claim(now=NOW).subjects)[person.id].user_id == "eve"
    denied(urls["worker"], "DELETE FROM requests")


def test_the_auditor_reads_everything_but_people_and_writes_nothing(urls):
    auditor = ledger(urls, "inspector")
    assert len(auditor.requests()) == len(ledger(urls, "worker").requests()) > 0
    assert audit.verify_chain(auditor.engine) == links(urls) > 0
    denied(urls["inspector"], "SELECT user_id FROM requests")
    for table in Base.metadata.sorted_tables:
        column = next(column.name for column in table.columns if column.name != "user_id")
        denied(urls["inspector"], f"INSERT INTO {table.name} DEFAULT VALUES")
        denied(urls["inspector"], f"UPDATE {table.name} SET {column} = {column}")
        denied(urls["inspector"], f"DELETE FROM {table.name}")
    with pytest.raises(ProgrammingError, match="permission denied"):
        auditor.submit(Subject("item", item_id="film"), KNOWN, now=NOW)


def links(urls):
    engine = create_engine(urls["owner"])
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(AuditRow))


def test_nobody_but_the_owner_changes_or_removes_a_row_of_the_audit_chain(urls):
    before = links(urls)
    for login in LOGINS:
        denied(urls[login], update(AuditRow).values(event="nothing"))
        denied(urls[login], "DELETE FROM audit")
        denied(urls[login], "TRUNCATE audit")
    assert audit.verify_chain(ledger(urls, "worker").engine) == links(urls) == before


def test_a_server_reads_the_deny_list_and_nothing_else(urls):
    assert current_deny(urls["web"], 1).value() == ledger(urls, "worker").deny_list() == {"film"}
    for table in set(Base.metadata.tables) - {"deny_items"}:
        denied(urls["web"], f"SELECT 1 FROM {table}")
    denied(urls["web"], "DELETE FROM deny_items")


def test_the_command_of_the_compose_file_makes_its_logins_and_may_be_repeated(urls, postgres):
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["roles"]
    files = {f"/{name}": str(DEPLOY / name) for name in service["configs"]}
    _, *arguments = [files.get(word, word) for word in service["command"]]
    owner = make_url(urls["owner"])
    environment = {
        "PGHOST": owner.host, "PGPORT": str(owner.port), "PGUSER": owner.username, "PGDATABASE": owner.database,
        "WORKER_PASSWORD": "it's one", "SERVING_PASSWORD": "two",
    }  # fmt: skip
    for _ in range(2):
        subprocess.run(
            [postgres.programs / "psql", *arguments], env=os.environ | environment, check=True, capture_output=True
        )
    members = """SELECT member.rolname, granted.rolname, member.rolpassword LIKE 'SCRAM-SHA-256$%%'
        FROM pg_auth_members JOIN pg_authid member ON member.oid = member JOIN pg_authid granted ON granted.oid = roleid
        WHERE member.rolname LIKE 'genrec%%' AND member.rolcanlogin ORDER BY 1"""
    with create_engine(owner).connect() as connection:
        found = [tuple(row) for row in connection.exec_driver_sql(members)]
    assert found == [("genrec_serve", "genrec_serving", True), ("genrec_worker", "genrec_operator", True)]
    ledger({"worker": urls["owner"].replace(f"{USER}@", "genrec_worker@")}, "worker").requests()
