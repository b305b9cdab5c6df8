"""The ledger under load: many processes submit at once, one claims. Counts what must never be: duplicates and losses.

Every so manieth person is sent by a second process too, and must end as one request all the same. Bench runs leave
nothing behind: they work in a new SQLite file or in a new PostgreSQL schema.
"""

import multiprocessing
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import TypeVar

from sqlalchemy import make_url
from sqlalchemy.schema import CreateSchema, DropSchema

from genrec.config import RequestParams
from genrec.data.subjects import Subject
from genrec.errors import ConfigError
from genrec.requests.audit import verify_chain
from genrec.requests.database import connect, reaching
from genrec.requests.ledger import Ledger
from genrec.requests.refusal import Known

KEY = b"bench"
BATCH = 10_000
SENT_TWICE = 10

T = TypeVar("T")


@dataclass(frozen=True)
class LedgerLoad:
    """One run: counts, seconds and submissions per second.

    duplicates: stored requests beyond one per person. lost: answers that name no stored request about their person.
    """

    engine: str
    processes: int
    requests: int
    submissions: int
    duplicates: int
    lost: int
    submit_s: float
    submissions_per_s: float
    verified: int
    verify_s: float
    claimed: int
    claim_s: float
    audit_rows: int
    audit_s: float

    def as_dict(self) -> dict:
        return asdict(self)


def run(url: str, requests: int, processes: int) -> LedgerLoad:
    """Submit `requests` people from `processes` into the empty ledger at `url`, verify and claim up to BATCH of them.

    Raises RequestError when the audit chain is broken afterwards.
    """
    people = [f"person-{number}" for number in range(requests)]
    shares = [people[p::processes] + people[(p + 1) % processes :: processes * SENT_TWICE] for p in range(processes)]
    sent = [person for share in shares for person in share]
    answers, submit_s = at_once(submit, url, shares)
    ledger = Ledger(url, KEY, RequestParams())
    stored = {request.id: request.digest for request in ledger.requests()}
    answered = zip(sent, (answer for share in answers for answer in share), strict=True)
    queue = list(stored)[:BATCH]
    _, verify_s = at_once(verify, url, [queue[p::processes] for p in range(processes)])
    batch, claim_s = _timed(lambda: ledger.claim(now=datetime.now(UTC)))
    audit_rows, audit_s = _timed(lambda: verify_chain(ledger.engine))
    with ledger.engine.connect() as connection:
        version = ".".join(map(str, connection.dialect.server_version_info))
    ledger.engine.dispose()
    return LedgerLoad(
        engine=f"{ledger.engine.dialect.name} {version}", processes=processes, requests=requests,
        submissions=len(sent), duplicates=len(stored) - len(set(stored.values())),
        lost=sum(stored.get(answer) != Subject("user", person).digest(KEY) for person, answer in answered),
        submit_s=round(submit_s, 3), submissions_per_s=round(len(sent) / submit_s, 1),
        verified=len(queue), verify_s=round(verify_s, 3), claimed=len(batch.request_ids), claim_s=round(claim_s, 3),
        audit_rows=audit_rows, audit_s=round(audit_s, 3),
    )  # fmt: skip


@contextmanager
def scratch(url: str | None) -> Iterator[str]:
    """URL of an empty ledger: a schema of its own in the PostgreSQL database `url`, or a new SQLite file (None).

    Gone at the end. Raises ConfigError for a URL of anything else.
    """
    if url is None:
        with tempfile.TemporaryDirectory(prefix="genrec-") as folder:
            yield f"sqlite:///{Path(folder) / 'ledger.db'}"
        return
    if make_url(url).get_backend_name() != "postgresql":
        raise ConfigError(f"--url {make_url(url)!r} is not PostgreSQL. Leave it out to measure SQLite in a new file.")
    engine, schema = connect(url), f"genrec_bench_{secrets.token_hex(4)}"
    with reaching(engine), engine.begin() as connection:
        connection.execute(CreateSchema(schema))
    try:
        place = make_url(url).update_query_dict({"options": f"-csearch_path={schema}"})
        yield place.render_as_string(hide_password=False)
    finally:
        with engine.begin() as connection:
            connection.execute(DropSchema(schema, cascade=True))
        engine.dispose()


def at_once(
    work: Callable[[Ledger, Sequence[str]], T], url: str, shares: Sequence[Sequence[str]]
) -> tuple[list[T], float]:
    """`work(ledger, share)` in one process per share, all from one start: the answers and the seconds till the last."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Manager() as manager, ProcessPoolExecutor(len(shares), context) as pool:
        start = manager.Barrier(len(shares))
        done = [pool.submit(_process, work, url, share, start) for share in shares]
        answers, begun, ended = zip(*(one.result() for one in done), strict=True)
    return list(answers), max(ended) - min(begun)


def submit(ledger: Ledger, people: Sequence[str]) -> list[str]:
    """A request for each of `people`; their ids."""
    known = Known(frozenset(people), (), {}, 0, lambda user, item: False)
    return [ledger.submit(Subject("user", one), known, now=datetime.now(UTC)).id for one in people]


def verify(ledger: Ledger, request_ids: Sequence[str]) -> None:
    """Verify each request."""
    for request in request_ids:
        ledger.verify(request, now=datetime.now(UTC), verifier="bench")


def _process(
    work: Callable[[Ledger, Sequence[str]], T], url: str, share: Sequence[str], start: Barrier
) -> tuple[T, float, float]:
    ledger = Ledger(url, KEY, RequestParams())
    start.wait()
    begun = time.monotonic()
    return work(ledger, share), begun, time.monotonic()


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started
