"""Typical mistakes: how each comes about, the exit code, and words of the one line that names the remedy.

`MISTAKES` is what `tests/integration/test_wrong_use.py` makes, one after another, with the real command line.
"""

import json
import socket
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.models.bundle import MANIFEST, SCHEMA
from genrec.requests.database import connect
from genrec.requests.lease import Lease
from tests.conftest import copied
from tests.servers import free_port


@dataclass(frozen=True)
class Place:
    """Where a mistake is made: a trained workspace (to look at), an empty one and a folder of its own, and the API of a
    Prefect server."""

    trained: Path
    empty: Path
    folder: Path
    prefect: str

    def copy(self) -> Path:
        """A trained workspace of its own."""
        copied(self.trained, home := self.folder / "copy")
        return home

    def tables(self) -> Path:
        """Two good tables in CSV."""
        (folder := self.folder / "my-tables").mkdir()
        rows = [(f"p{u}", f"i{(u + k) % 12}", 100 * k, 1 + k % 5) for u in range(12) for k in range(8)]
        pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating"]).to_csv(
            folder / "interactions.csv", index=False
        )
        items = [(f"i{k}", f"Café {k}", f"item number {k}", "Odd" if k % 2 else "Even") for k in range(12)]
        pd.DataFrame(items, columns=["item_id", "title", "text", "concepts"]).to_csv(folder / "items.csv", index=False)
        return folder

    def changed(self, name: str, change: Callable[[pd.DataFrame], pd.DataFrame | None], **options) -> Path:
        """The two tables, one of them changed, and written with `options` of `to_csv`."""
        file = (folder := self.tables()) / f"{name}.csv"
        frame = pd.read_csv(file)
        changed = change(frame)
        (frame if changed is None else changed).to_csv(file, index=False, **options)
        return folder


@dataclass(frozen=True)
class Attempt:
    """A command in a workspace (or any folder), with what the environment has on top."""

    home: Path
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def attempt(home: Path, *arguments, **environment) -> Attempt:
    return Attempt(home, tuple(map(str, arguments)), {name: str(value) for name, value in environment.items()})


@dataclass(frozen=True)
class Mistake:
    make: Callable[[Place], Attempt]
    says: tuple[str, ...]
    code: int = 1


MISTAKES: dict[str, Mistake] = {}


def mistake(what: str, *says: str, code: int = 1):
    def add(make):
        MISTAKES[what] = Mistake(make, says, code)
        return make

    return add


def fetched(place: Place, folder: Path) -> Attempt:
    return attempt(place.empty, "data", "fetch", "tables", "--from", folder)


# --- the place ------------------------------------------------------------------------------------------------------


@mistake("a folder that is no workspace", "No params.yaml", "genrec init DIR")
def _(place):
    return attempt(place.folder, "requests", "list")


@mistake("a folder that is a workspace already", "is a workspace already", "Choose another folder")
def _(place):
    return attempt(place.empty, "init", place.empty)


@mistake("a folder that nobody can write to", "/proc/genrec: ", "Correct its owner, its mode or the path")
def _(place):
    return attempt(place.folder, "init", "/proc/genrec")


@mistake("a file where a folder should be", "var", "Correct its owner, its mode or the path")
def _(place):
    (place.empty / "var").write_text("")
    return attempt(place.empty, "requests", "list")


@mistake("training before any data is there", "No data/ in this workspace", "genrec data fetch")
def _(place):
    return attempt(place.empty, "train", PREFECT_API_URL=place.prefect)


@mistake("preparing before any data is there", "No data/ in this workspace", "genrec data fetch")
def _(place):
    return attempt(place.empty, "data", "prepare")


@mistake("looking at concepts before any data is prepared", "genrec data prepare")
def _(place):
    return attempt(place.empty, "data", "concepts")


@mistake("a recommendation before any training", "no champion", "genrec train")
def _(place):
    return attempt(place.empty, "recommend", "--history", "i1")


@mistake("a night before any training", "no champion", "genrec train")
def _(place):
    return attempt(place.empty, "night", PREFECT_API_URL=place.prefect)


# --- parameters and settings ----------------------------------------------------------------------------------------


@mistake("a key of params.yaml that does not exist", "'trian'", "near it: train")
def _(place):
    with (place.empty / "params.yaml").open("a") as file:
        file.write("trian: {epochs: 3}\n")
    return attempt(place.empty, "data", "concepts")


@mistake("a parameter of the wrong type", "train.epochs = 'ten'", "valid integer")
def _(place):
    (place.empty / "params.yaml").write_text("train: {epochs: ten}\n")
    return attempt(place.empty, "data", "concepts")


@mistake("a params.yaml that is no YAML", "is not valid YAML")
def _(place):
    (place.empty / "params.yaml").write_text("train: {epochs: 3\n")
    return attempt(place.empty, "data", "concepts")


@mistake("a ledger URL of a database that is not supported", "GENREC_LEDGER_URL", "sqlite:///PATH or postgresql://")
def _(place):
    return attempt(place.trained, "requests", "list", GENREC_LEDGER_URL="mysql://desk:secret@host/ledger")


@mistake("a ledger URL of a server that is not there", "does not answer", "Start it, or give another URL", code=4)
def _(place):
    url = f"postgresql://desk:secret@127.0.0.1:{free_port()}/ledger"
    return attempt(place.trained, "requests", "list", GENREC_LEDGER_URL=url)


@mistake("a ledger that a newer genrec wrote", "schema 0099", "newer", "Install")
def _(place):
    with sqlite3.connect((home := place.copy()) / "var" / "ledger.db") as ledger:
        ledger.execute("UPDATE alembic_version SET version_num = '0099'")
    return attempt(home, "requests", "list")


@mistake("an MLflow server that is not there", "MLflow does not answer", "GENREC_MLFLOW_URI", code=4)
def _(place):
    uri = f"http://127.0.0.1:{free_port()}"
    return attempt(place.trained, "models", "list", GENREC_MLFLOW_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES=0)


@mistake("a Prefect server that is not there", "Prefect", "PREFECT_API_URL", "prefect server start", code=4)
def _(place):
    url = f"http://127.0.0.1:{free_port()}/api"
    return attempt(place.trained, "night", PREFECT_API_URL=url)


@mistake("deploying without a Prefect server", "PREFECT_API_URL", "prefect server start")
def _(place):
    return attempt(place.trained, "deploy")


@mistake("a signing key that is not there", "Signing key", "openssl genpkey", "GENREC_SIGNING_KEY")
def _(place):
    return attempt(
        place.trained, "night", GENREC_SIGNING_KEY=place.folder / "signing.pem", PREFECT_API_URL=place.prefect
    )


@mistake("a signing key that everybody can read", "mode 644", "chmod 600")
def _(place):
    (key := place.folder / "signing.pem").write_text("a key\n")
    key.chmod(0o644)
    return attempt(place.trained, "night", GENREC_SIGNING_KEY=key, PREFECT_API_URL=place.prefect)


@mistake("a port that is taken", "Address already in use", "--port")
def _(place):
    (listening := socket.create_server(("127.0.0.1", 0))).listen()
    LISTENING.append(listening)
    return attempt(place.trained, "serve", "--port", listening.getsockname()[1])


LISTENING: list[socket.socket] = []
"""Sockets of mistakes, open until the tests end."""


# --- sources and tables ---------------------------------------------------------------------------------------------


@mistake("a source that does not exist", "'ml-10k'", "near it: ml-100k")
def _(place):
    return attempt(place.empty, "data", "fetch", "ml-10k")


@mistake("own tables without their folder", "--from DIR")
def _(place):
    return attempt(place.empty, "data", "fetch", "tables")


@mistake("a folder without the tables", "no interactions.csv", "Both tables are needed")
def _(place):
    return attempt(place.empty, "data", "check", place.folder)


@mistake("one of two tables", "no items.csv", "Both tables are needed")
def _(place):
    ((folder := place.tables()) / "items.csv").unlink()
    return fetched(place, folder)


@mistake("other column names", "product", "item_id", "expected exactly")
def _(place):
    return fetched(place, place.changed("interactions", lambda f: f.rename(columns={"item_id": "product"})))


@mistake("semicolons between columns", "';'", "commas")
def _(place):
    return fetched(place, place.changed("interactions", lambda f: None, sep=";"))


@mistake("another encoding", "items.csv", "UTF-8", "iconv")
def _(place):
    return fetched(place, place.changed("items", lambda f: None, encoding="cp1252"))


@mistake("dates instead of seconds", "timestamp", "2024-03-01", "since 1970")
def _(place):
    return fetched(place, place.changed("interactions", lambda f: f.assign(timestamp="2024-03-01 10:00:00")))


@mistake("milliseconds with a fraction", "timestamp", "0.5", "whole number")
def _(place):
    return fetched(place, place.changed("interactions", lambda f: f.assign(timestamp=0.5)))


@mistake("words for ratings", "rating", "'good'", "is not double")
def _(place):
    return fetched(place, place.changed("interactions", lambda f: f.assign(rating="good")))


@mistake("rows that are not in the order of time", "row 4", "Sort the file")
def _(place):
    def swap(frame):
        frame.iloc[[2, 3]] = frame.iloc[[3, 2]].to_numpy()

    return fetched(place, place.changed("interactions", swap))


@mistake("a row twice", "same user and item", "Keep the first of each")
def _(place):
    return fetched(place, place.changed("interactions", lambda f: pd.concat([f, f.tail(1)])))


@mistake("an item twice", "item_id twice", "Keep one row per item")
def _(place):
    return fetched(place, place.changed("items", lambda f: pd.concat([f, f.tail(1)])))


@mistake("an empty table", "interactions", "no rows")
def _(place):
    return fetched(place, place.changed("interactions", lambda f: f.head(0)))


@mistake("ids that are numbers in Parquet", "user_id has type int64", "expected string")
def _(place):
    (folder := place.tables()).joinpath("interactions.csv").unlink()
    columns = {"user_id": [1, 1], "item_id": ["i1", "i2"], "timestamp": [1, 2], "rating": [1.0, 2.0]}
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    return fetched(place, folder)


@mistake("items without a text", "items", "text", "data.max_items_without_text")
def _(place):
    return attempt(place.empty, "data", "check", place.changed("items", lambda f: f.assign(text="")))


@mistake("ratings outside of the range", "rating", "data.rating_min", "data.rating_max")
def _(place):
    return attempt(place.empty, "data", "check", place.changed("interactions", lambda f: f.assign(rating=f.rating * 2)))


@mistake("interactions with items that the catalogue lacks", "item_id", "row 1", "items table")
def _(place):
    return attempt(place.empty, "data", "check", place.changed("items", lambda f: f.tail(11)))


@mistake("a workspace for tables that are none", "no interactions.csv")
def _(place):
    return attempt(place.folder, "init", place.folder / "shop", "--from", place.folder)


# --- requests and models --------------------------------------------------------------------------------------------


@mistake("a user nobody knows", "Unknown user", "Check how the source writes its ids")
def _(place):
    return attempt(place.trained, "forget", "user", "nobody-at-all")


@mistake("an empty id", "non-empty user_id")
def _(place):
    return attempt(place.trained, "forget", "user", "")


@mistake("a concept with a slip of the pen", "'Gamblin'", "Gambling", "genrec data concepts")
def _(place):
    return attempt(place.trained, "forget", "concept", "Gamblin")


@mistake("an item nobody knows", "Unknown item 'no-such-item'")
def _(place):
    return attempt(place.trained, "forget", "item", "no-such-item")


@mistake("a concept that covers too much of the catalogue", "requests.max_concept_share")
def _(place):
    home = place.copy()
    text = (home / "params.yaml").read_text()
    (home / "params.yaml").write_text(text.replace("max_concept_share: 0.3", "max_concept_share: 0.02"))
    return attempt(home, "forget", "concept", "Gambling")


@mistake("a request nobody made", "r-none", "requests list")
def _(place):
    return attempt(place.trained, "requests", "show", "r-none")


@mistake("an empty history", "empty", "--history ID,ID,ID")
def _(place):
    return attempt(place.trained, "recommend", "--history", "")


@mistake("no history at all", "There is no history", "--history ID,ID,ID")
def _(place):
    return attempt(place.trained, "recommend")


@mistake("a history of unknown items", "None of the 1 items of history 2 of 2", "known item id")
def _(place):
    return attempt(place.trained, "recommend", "--history", "i0001", "--history", "no-such-item")


@mistake("an empty line in a file of histories", "histories.txt, line 2 is empty", "--history ID,ID,ID")
def _(place):
    (file := place.folder / "histories.txt").write_text("i0001,i0002\n\ni0003\n")
    return attempt(place.trained, "recommend", "--file", file)


@mistake("more recommendations than items", "64 items", "--k")
def _(place):
    return attempt(place.trained, "recommend", "--history", "i0001", "--k", "1000")


@mistake("a version that does not exist", "999", "models list")
def _(place):
    return attempt(place.trained, "models", "rollback", "999")


@mistake("a night while another one runs", "is held by 'nightly elsewhere 1'", "Wait for it to finish")
def _(place):
    home = place.copy()
    lease = Lease.acquire(connect(f"sqlite:///{home / 'var' / 'ledger.db'}"), "unlearn", "nightly elsewhere 1",
                          lambda: datetime.now(UTC), 600)  # fmt: skip
    lease._stop.set()
    return attempt(home, "night", PREFECT_API_URL=place.prefect)


@mistake("a bundle that a newer genrec wrote", "has schema 2", "Install the version that wrote it")
def _(place):
    home = place.copy()
    (adapter,) = (home / "mlruns").rglob("adapter_model.safetensors")
    newer(adapter.parents[1])
    return attempt(home, "recommend", "--history", "i0001")


def newer(bundle: Path) -> None:
    """Make a bundle one of the next schema, its hashes whole."""
    manifest = json.loads((bundle / MANIFEST).read_text()) | {"schema": SCHEMA + 1}
    del manifest["bundle_hash"]
    parts = [path for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST]
    manifest["files"] = {p.relative_to(bundle).as_posix(): sha256(p.read_bytes()).hexdigest() for p in parts}
    digest = sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"bundle_hash": digest}))


# --- certificates and the bench -------------------------------------------------------------------------------------


@mistake("a certificate that is not there", "is no certificate", "Get the file anew")
def _(place):
    return attempt(place.folder, "certificate", "verify", place.folder / "r-1.json")


@mistake("a certificate that is not JSON", "is no certificate", "Get the file anew")
def _(place):
    (file := place.folder / "r-1.json").write_bytes(b"%PDF-1.7\n")
    return attempt(place.folder, "certificate", "verify", file)


@mistake("a certificate that a newer genrec wrote", "of version 3", "Install the version that wrote it")
def _(place):
    (file := place.folder / "r-1.json").write_text('{"schema_version": 3, "proof": "of tomorrow"}\n')
    return attempt(place.folder, "certificate", "verify", file)


@mistake("a scenario of the bench that does not exist", "Known scenarios")
def _(place):
    return attempt(place.empty, "bench", "unlearn", "--scenario", "user")


@mistake("a method that does not exist", "'trcer'", "tracer")
def _(place):
    return attempt(place.empty, "bench", "unlearn", "--methods", "ucan,trcer")


@mistake("a bench on a folder that holds no data", "neither two canonical tables", "ml-100k")
def _(place):
    return attempt(place.empty, "bench", "unlearn", "--data", place.folder)


# --- usage: the parser says what it expects ---------------------------------------------------------------------------


@mistake("a command with a slip of the pen", "No such command 'nigth'", "'night'", "See genrec --help", code=2)
def _(place):
    return attempt(place.trained, "nigth")


@mistake("an option that does not exist", "No such option: --jsno", "--json). Example: genrec night --json", code=2)
def _(place):
    return attempt(place.trained, "night", "--jsno")


@mistake("no argument where one is needed", "Missing argument 'user_id'. Example: genrec forget user 4711", code=2)
def _(place):
    return attempt(place.trained, "forget", "user")


@mistake("a number where none is", "'--k'", "valid integer", "Example: genrec recommend --history", code=2)
def _(place):
    return attempt(place.trained, "recommend", "--history", "i0001", "--k", "ten")
