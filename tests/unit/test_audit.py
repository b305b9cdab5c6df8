"""The audit chain: any change of any field of any row is found and named."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update
from typer.testing import CliRunner

from genrec.cli import app
from genrec.config import Settings
from genrec.doctor import look_at
from genrec.errors import RequestError
from genrec.report.summary import Summary, write_summary
from genrec.requests.audit import append, canonical_json, head, newest, verify_chain
from genrec.requests.database import migrate, writing
from genrec.requests.schema import AuditRow

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
ROWS = 4


@pytest.fixture
def engine(tmp_path):
    engine = migrate(f"sqlite:///{tmp_path / 'ledger.db'}")
    for number in range(ROWS):
        with writing(engine) as session:
            append(session.connection(), "received", f"r-{number}", {"é": number, "a": None}, now=NOW)
    return engine


def test_a_sound_chain_counts_its_rows(engine):
    assert verify_chain(engine) == ROWS
    with engine.connect() as connection:
        payload = connection.scalar(select(AuditRow.payload).where(AuditRow.seq == 2))
    assert payload == '{"a":null,"é":1}'
    assert json.loads(payload) == {"é": 1, "a": None}


def test_an_empty_chain_is_sound(tmp_path):
    engine = migrate(f"sqlite:///{tmp_path / 'empty.db'}")
    assert verify_chain(engine, head(engine)) == 0


@pytest.mark.parametrize("field", ["seq", "at", "event", "subject", "payload", "previous", "hash"])
@pytest.mark.parametrize("seq", range(1, ROWS + 1))
def test_a_change_of_any_field_names_the_row(engine, seq, field):
    with engine.begin() as connection:
        value = 99 if field == "seq" else "0" * 63 + "1"
        connection.execute(update(AuditRow).where(AuditRow.seq == seq).values({field: value}))
    with pytest.raises(RequestError, match=f"Audit row {seq} is broken"):
        verify_chain(engine)


@pytest.mark.parametrize("seq", range(1, ROWS))
def test_a_deleted_row_is_named(engine, seq):
    with engine.begin() as connection:
        connection.execute(delete(AuditRow).where(AuditRow.seq == seq))
    with pytest.raises(RequestError, match=f"Audit row {seq} is broken: it is missing"):
        verify_chain(engine)


def test_rows_cut_off_at_the_end_are_found_with_a_kept_head(engine):
    kept = head(engine)
    with writing(engine) as session:
        append(session.connection(), "queued", "r-1", {}, now=NOW)
    assert verify_chain(engine, kept) == ROWS + 1
    with engine.begin() as connection:
        connection.execute(delete(AuditRow).where(AuditRow.seq >= ROWS))
    assert verify_chain(engine) == ROWS - 1
    with pytest.raises(RequestError, match=f"Audit row {ROWS} is broken: the chain ends before"):
        verify_chain(engine, kept)


def test_rows_cut_off_at_the_end_are_found_by_the_head_that_the_last_night_kept(engine, tmp_path):
    environment = {"GENREC_LEDGER_URL": str(engine.url), "GENREC_HOME": str(tmp_path)}
    seq, kept = newest(engine)
    assert (seq, kept) == (ROWS, head(engine))
    summary = Summary(outcome="nothing to do", started_at=NOW, finished_at=NOW, audit_head={"seq": seq, "hash": kept})
    write_summary(summary, tmp_path / "reports" / "latest")
    assert CliRunner().invoke(app, ["audit", "verify"], env=environment).exit_code == 0
    with engine.begin() as connection:
        connection.execute(delete(AuditRow).where(AuditRow.seq == ROWS))
    asked = CliRunner().invoke(app, ["audit", "verify"], env=environment)
    assert f"Audit row {ROWS} is broken: the chain ends before the kept head {kept}" in str(asked.exception)
    workspace = Settings(home=tmp_path, ledger_url=str(engine.url)).workspace
    (found,) = look_at("audit", workspace, NOW)
    assert (found.state, "ends before the kept head" in found.says) == ("broken", True)
    write_summary(
        summary.model_copy(update={"audit_head": None}), tmp_path / "reports" / "latest"
    )  # an earlier version's
    assert CliRunner().invoke(app, ["audit", "verify"], env=environment).exit_code == 0


def test_writers_at_the_same_time_make_one_chain(engine):
    def write(number):
        with writing(engine) as session:
            append(session.connection(), "stage", f"b-{number}", {}, now=NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert verify_chain(engine) == ROWS + 24


def test_a_transaction_that_fails_leaves_no_row(engine):
    def write_two():
        with writing(engine) as session:
            append(session.connection(), "queued", "r-1", {}, now=NOW)
            append(session.connection(), "queued", "r-1", {"share": float("nan")}, now=NOW)

    with pytest.raises(ValueError, match="JSON"):
        write_two()
    assert verify_chain(engine) == ROWS


def test_canonical_json_has_one_text_per_value():
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_through_the_command_line(engine):
    def run(*arguments):
        environment = {"GENREC_LEDGER_URL": str(engine.url), "GENREC_HOME": str(Path(engine.url.database).parent)}
        return CliRunner().invoke(app, ["audit", *arguments, "--json"], env=environment)

    assert json.loads(run("verify").stdout) == {
        "rows": ROWS, "head": head(engine), "certificates": 0, "unnamed": []
    }  # fmt: skip
    assert [row["seq"] for row in json.loads(run("list").stdout)] == [1, 2, 3, 4]
    assert [row["payload"] for row in json.loads(run("list", "--about", "r-1").stdout)] == ['{"a":null,"é":1}']
    assert "ends before the kept head" in str(run("verify", "--head", "f" * 64).exception)
    with engine.begin() as connection:
        connection.execute(update(AuditRow).where(AuditRow.seq == 3).values(payload="{}"))
    failed = run("verify")
    assert failed.exit_code == 1
    assert "Audit row 3 is broken" in str(failed.exception)


def test_where_there_is_no_ledger_none_is_made(tmp_path):
    failed = CliRunner().invoke(app, ["audit", "verify"], env={"GENREC_HOME": str(tmp_path)})
    assert "There is no ledger here" in str(failed.exception)
    assert list(tmp_path.iterdir()) == []
