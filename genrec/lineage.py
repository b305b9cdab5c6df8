"""Which requests a version has forgotten, both ways round: from a request to versions, from a version to requests.

A version is free of a request when it was trained from scratch on data without it (`base`, `retrain`), or was promoted
by the request's night, or was made from such a version. Whether data is without it follows from the nights that erased
it, in their order. What cannot be followed counts as knowing. Purged versions are read from the audit chain.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from genrec.config import Workspace
from genrec.errors import RegistryError
from genrec.models.bundle import TRAINED, read_lineage
from genrec.registry import open_registry
from genrec.requests import purges
from genrec.requests.ledger import Ledger
from genrec.requests.store import open_ledger


@dataclass(frozen=True)
class Forgetting:
    """A fulfilled batch: its requests, the version promoted, the champion before, the data before and after."""

    batch_id: str
    requests: frozenset[str]
    version: str
    champion_before: str
    data_before: str
    data_after: str
    at: datetime


@dataclass(frozen=True)
class Known:
    """What is kept of a version: `tags` as registered; `purged_at` (ISO 8601) once its bundle is gone."""

    number: str
    tags: Mapping[str, str]
    created_at: datetime
    aliases: tuple[str, ...] = ()
    purged_at: str | None = None

    def as_dict(self) -> dict:
        """JSON-ready, in short."""
        return {
            "version": self.number, "method": self.tags.get("method"), "batch_id": self.tags.get("batch_id") or None,
            "aliases": list(self.aliases), "purged_at": self.purged_at,
        }  # fmt: skip


@dataclass(frozen=True)
class History:
    """All versions by number, ascending, and all fulfilled nights, oldest first."""

    versions: Mapping[str, Known]
    nights: tuple[Forgetting, ...]

    @property
    def fulfilled(self) -> frozenset[str]:
        return frozenset().union(*(night.requests for night in self.nights))

    def erased(self, data_version: str, at: datetime | None = None) -> frozenset[str]:
        """Requests whose subjects this data version is without.

        A version no night began or ended with (data was fetched in between) is without what was erased `at` the time it
        was trained on: fetching keeps the tombstones, and registering a base model checks them. None: nothing.
        """
        gone: frozenset[str] = frozenset()
        for night in self.nights:
            if data_version == night.data_before:
                return gone
            gone |= night.requests
            if data_version == night.data_after:
                return gone
        if at is None:
            return frozenset()
        return frozenset().union(*(night.requests for night in self.nights if night.at <= at))

    def forgotten(self, number: str) -> frozenset[str]:
        """Fulfilled requests that version `number` is free of."""
        promoted, gone = {night.version: night for night in self.nights}, frozenset()
        for one in self._line(number):
            version = self.versions.get(one)
            gone |= promoted[one].requests if one in promoted else frozenset()
            if version is not None and version.tags.get("method") in TRAINED:
                return gone | self.erased(version.tags["data_version"], version.created_at)
        return gone

    def knows(self, number: str) -> frozenset[str]:
        """Fulfilled requests that version `number` may still know."""
        return self.fulfilled - self.forgotten(number)

    def _line(self, number: str) -> Iterator[str]:
        """A version, the one it was made from, and so on; the ledger knows the champion a night began with."""
        before = {night.version: night.champion_before for night in self.nights}
        while number:
            yield number
            version = self.versions.get(number)
            number = version.tags.get("parent", "") if version else before.get(number, "")

    def parents(self, number: str) -> list[dict]:
        """The line of `number` up to its base model, nearest first; what nothing is known of as its number alone."""
        return [
            self.versions[one].as_dict() if one in self.versions else {"version": one}
            for one in list(self._line(number))[1:]
        ]


def history(workspace: Workspace) -> History:
    """Everything the registry, the ledger and the audit chain know of versions and nights."""
    ledger = open_ledger(workspace)
    record = purges.read(ledger.engine)
    found = {
        name: Known(name, item.facts["tags"], datetime.fromisoformat(item.facts["created_at"]), (), record.purged[key])
        for key, item in record.listed.items()
        for kind, name in [key]
        if kind == "version" and key in record.purged
    }
    for version in open_registry(workspace).versions():
        found[version.number] = Known(version.number, version.tags, version.created_at, version.aliases)
    return History({number: found[number] for number in sorted(found, key=int)}, _nights(ledger))


def _nights(ledger: Ledger) -> tuple[Forgetting, ...]:
    batches: dict[str, list[str]] = {}
    for request in ledger.requests("fulfilled"):
        batches.setdefault(request.batch_id, []).append(request.id)
    nights = []
    for batch_id, requests in batches.items():
        told = ledger.stage(batch_id).details
        nights.append(
            Forgetting(
                batch_id, frozenset(requests), told["version"], told["champion_before"],
                told["data_version_before"], told["data_version"], datetime.fromisoformat(told["unlearned_at"]),
            )
        )  # fmt: skip
    return tuple(sorted(nights, key=lambda night: night.at))


def of_request(workspace: Workspace, request_id: str) -> dict:
    """Which versions may know what a request is about, and which are free of it. Raises RequestError when unknown.

    Before a request is fulfilled no version is free of it.
    """
    request, past = open_ledger(workspace).get(request_id), history(workspace)
    free = [number for number in past.versions if request_id in past.forgotten(number)]
    night = next((night for night in past.nights if request_id in night.requests), None)
    return {
        "request": request.id, "kind": request.kind, "label": request.label, "state": request.state,
        "method": request.method, "batch_id": request.batch_id,
        "data_version_before": night.data_before if night else None,
        "data_version_after": night.data_after if night else None,
        "forgotten_by": night.version if night else None,
        "knew": [known.as_dict() for number, known in past.versions.items() if number not in free],
        "free": [past.versions[number].as_dict() for number in free],
    }  # fmt: skip


def _asked(workspace: Workspace, known: Known) -> list[str]:
    """The requests a version was made for: its bundle says so, and once that is purged the ledger, by the batch."""
    if known.purged_at is None:
        return list(read_lineage(open_registry(workspace).bundle_path(known.number)).requests)
    fulfilled = open_ledger(workspace).requests("fulfilled")
    return [request.id for request in fulfilled if request.batch_id == known.tags["batch_id"]]


def of_version(workspace: Workspace, number: str) -> dict:
    """What made a version and what it is free of. Raises RegistryError when it never was."""
    past = history(workspace)
    if number not in past.versions:
        raise RegistryError(f"Unknown version {number!r}. See genrec models list.")
    known = past.versions[number]
    tags = known.tags
    return {
        **known.as_dict(), "created_at": known.created_at.isoformat(), "requests": _asked(workspace, known),
        "forgotten": sorted(past.forgotten(number)), "knows": sorted(past.knows(number)),
        "parents": past.parents(number), "verdict": tags.get("verdict"),
        "gates": {name.removeprefix("gate."): told for name, told in tags.items() if name.startswith("gate.")},
        "providers": {n.removeprefix("provider."): told for n, told in tags.items() if n.startswith("provider.")},
        **{name: tags.get(name) for name in ("data_version", "code_version", "backbone_hash", "bundle_hash")},
    }  # fmt: skip
