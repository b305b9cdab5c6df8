"""What `genrec doctor` asks a Prefect server: is what `genrec deploy` made there, and does somebody work on it?"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx

from genrec.deployed import AUTOMATIONS, DEPLOYMENTS, PENDING_S, POOLS, QUEUE, TAG, TELLING
from genrec.errors import OutageError

TIMEOUT_S = 5
LEASE_S = 300  # a flow of the queue takes the lease as soon as its libraries are imported
CANCEL = "prefect flow-run cancel {0}; if it stays: prefect flow-run delete {0}"

Said = Iterator[tuple[str, ...]]


class _MissingError(Exception):
    """The server has nothing under this path."""


@dataclass(frozen=True)
class Server:
    """A Prefect server by the URL of its API, and what this workspace has of it.

    gpu: whether it sends steps to a GPU worker. webhook: whether it has one for alerts. leased: whether somebody holds
    the lease of nights.
    """

    url: str
    gpu: bool
    webhook: bool
    leased: bool

    def look(self, now: datetime) -> Said:
        """One line per part that is wrong, as `genrec.doctor` has them; "ok" lines for what is right.

        Raises OutageError where the server does not answer.
        """
        yield from self._made()
        for pool in POOLS if self.gpu else POOLS[:1]:
            yield from self._workers(pool)
        with suppress(_MissingError):  # its pool, as was told above
            yield from self._queue(now)

    def _made(self) -> Said:
        deployments = {d["name"]: d for d in self._ask("deployments", deployments={"tags": {"all_": [TAG]}})}
        automations = {a["name"]: a for a in self._ask("automations")}
        wanted = AUTOMATIONS + (TELLING if self.webhook else ())
        missing = [name for name in DEPLOYMENTS if name not in deployments]
        missing += [repr(name) for name in wanted if name not in automations]
        if missing:
            yield "broken", f"the server has no {', '.join(missing)}", "Make them: genrec deploy"
        paused = [name for name in DEPLOYMENTS if deployments.get(name, {}).get("paused")]
        paused += [repr(name) for name in wanted if not automations.get(name, {"enabled": True})["enabled"]]
        if paused:
            yield "warning", f"switched off: {', '.join(paused)}", "Switch them on in Prefect, or: genrec deploy"
        if not missing and not paused:
            yield "ok", f"the server answers, with {len(DEPLOYMENTS)} deployments and {len(wanted)} automations"

    def _workers(self, pool: str) -> Said:
        start = f"prefect worker start --pool {pool}"
        try:
            paused = self._get(f"work_pools/{pool}")["is_paused"]
            online = self._ask(f"work_pools/{pool}/workers", workers={"status": {"any_": ["ONLINE"]}})
        except _MissingError:
            yield "broken", f"the server has no pool {pool}", "Make it: genrec deploy"
            return
        if paused:
            yield "broken", f"the pool {pool} is paused", f"prefect work-pool resume {pool}"
        elif not online:
            yield "broken", f"no worker of the pool {pool} is online", f"Start one: {start}"
        else:
            yield "ok", f"{len(online)} worker{'s' * (len(online) > 1)} of the pool {pool} online"

    def _queue(self, now: datetime) -> Said:
        queues = {queue["name"]: queue for queue in self._ask("work_pools/cpu/queues")}
        if queues.get(QUEUE, {}).get("is_paused"):
            yield "broken", f"the queue {QUEUE} is paused", f"prefect work-queue resume {QUEUE} --pool cpu"
        states = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}
        own = {"work_pool_queues": {"name": {"any_": [QUEUE]}}, "work_pools": {"name": {"any_": ["cpu"]}}}
        for run in self._ask("flow_runs", flow_runs={"state": states}, **own):
            name, state = f"run {run['name']} of the queue {QUEUE}", run["state"]["type"]
            age = now - datetime.fromisoformat(run["state"]["timestamp"])
            if state == "PENDING" and age > timedelta(seconds=PENDING_S):
                why = f"was taken by a worker {age.total_seconds() / 60:.0f} minutes ago and has not begun"
            elif state == "RUNNING" and age > timedelta(seconds=LEASE_S) and not self.leased:
                why = "says that it runs, and nobody holds the lease"
            elif state == "CANCELLING" and age > timedelta(seconds=LEASE_S):
                why = "was to be cancelled and has not ended"
            else:
                continue
            yield "broken", f"{name} {why}: it keeps the only place", CANCEL.format(run["id"])

    def _get(self, path: str) -> dict:
        return self._answer("GET", path)

    def _ask(self, what: str, **filters: dict) -> list[dict]:
        return self._answer("POST", f"{what}/filter", json=filters)

    def _answer(self, method: str, path: str, **body):
        try:
            answer = httpx.request(method, f"{self.url}/{path}", timeout=TIMEOUT_S, **body)
        except httpx.HTTPError as error:
            raise OutageError(f"the Prefect server does not answer ({type(error).__name__})") from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise _MissingError(path)
        if not answer.is_success:
            raise OutageError(f"the Prefect server answers {answer.status_code} to {path}")
        return answer.json()
