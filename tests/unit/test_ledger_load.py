"""Eight processes at one ledger, on SQLite and on PostgreSQL: one request per person, none lost, one whole chain."""

import json

import pytest
from sqlalchemy import inspect

from genrec.bench.ledger import KEY, at_once, run, scratch, submit
from genrec.config import RequestParams
from genrec.data.subjects import Subject
from genrec.errors import ConfigError
from genrec.requests.audit import verify_chain
from genrec.requests.database import connect
from genrec.requests.ledger import Ledger
from tests.conftest import genrec

PROCESSES = 8


def test_the_same_and_different_people_from_eight_processes_at_once(new_ledger_url):
    url = new_ledger_url()
    same, own = [f"same-{n}" for n in range(25)], [f"own-{n}" for n in range(25 * PROCESSES)]
    shares = [same + own[p::PROCESSES] for p in range(PROCESSES)]
    answers, _ = at_once(submit, url, shares)
    ledger = Ledger(url, KEY, RequestParams())
    stored = {request.digest: request.id for request in ledger.requests()}
    assert stored.keys() == {Subject("user", person).digest(KEY) for person in same + own}
    assert len(ledger.requests()) == len(same + own)
    for share, answer in zip(shares, answers, strict=True):
        assert answer == [stored[Subject("user", person).digest(KEY)] for person in share]
    assert verify_chain(ledger.engine) == len(same + own)
    ledger.engine.dispose()


def test_the_bench_counts_what_it_did():
    with scratch(None) as url:
        load = run(url, requests=100, processes=2)
    assert (load.duplicates, load.lost) == (0, 0)
    assert (load.requests, load.submissions, load.verified, load.claimed) == (100, 110, 100, 100)
    assert load.audit_rows == 100 + 2 * 100 + 1 + 100
    assert load.submissions_per_s == pytest.approx(110 / load.submit_s, rel=0.01)


def test_the_bench_leaves_nothing_in_the_database_and_writes_its_figures(postgres, tmp_path):
    url = postgres.database()
    command = (
        "bench",
        "ledger",
        "--requests",
        "40",
        "--processes",
        "2",
        "--url",
        url,
        "--json",
        str(tmp_path / "f.json"),
    )
    assert "duplicates: 0" in genrec(tmp_path, *command).stdout
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["engine"].startswith("postgresql 1")
    assert (figures["requests"], figures["claimed"], figures["lost"]) == (40, 40, 0)
    engine = connect(url)
    assert (inspect(engine).get_schema_names(), inspect(engine).get_table_names()) == (
        ["information_schema", "public"], []
    )  # fmt: skip
    engine.dispose()


def test_the_bench_never_runs_on_a_ledger_in_use(tmp_path):
    with pytest.raises(ConfigError, match="is not PostgreSQL"), scratch(f"sqlite:///{tmp_path / 'ledger.db'}"):
        pass
    assert list(tmp_path.iterdir()) == []
