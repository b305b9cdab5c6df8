"""A PostgreSQL server for the tests: a folder and a port of its own on 127.0.0.1, gone at the end of the session."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine

from tests.programs import absent

INSTALLED = Path("/usr/lib/postgresql")
USER = "postgres"
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


@dataclass(frozen=True)
class Server:
    port: int
    programs: Path
    folder: Path

    def start(self) -> None:
        own = (f"port={self.port}", f"unix_socket_directories={self.folder}", "listen_addresses=127.0.0.1")
        options = " ".join(f"-c {one}" for one in (*FAST, *own))
        _run(self.programs / "pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self) -> None:
        """At once: every connection is cut, and the next start recovers from its log, as after a crash."""
        _run(self.programs / "pg_ctl", "-D", self.data, "-m", "immediate", "stop")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{database}"

    def database(self, options: str = "") -> str:
        """URL of a new database."""
        name = f"test_{secrets.token_hex(4)}"
        engine = create_engine(self.url(USER), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} {options}")
        engine.dispose()
        return self.url(name)


@contextmanager
def server() -> Iterator[Server]:
    """Start one, as the user `postgres` where the tests run as root. Ends the test where it is not installed."""
    found = sorted(INSTALLED.glob("*/bin/pg_ctl")) or [shutil.which("pg_ctl")]
    if not found[-1]:
        absent("PostgreSQL", "postgresql")
    programs = Path(found[-1]).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="genrec-postgres-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        running = Server(port, programs, Path(folder))
        _run(programs / "initdb", "-D", running.data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        running.start()
        try:
            yield running
        finally:
            running.stop()


def _run(*command: object) -> None:
    """Run one of its programs, which refuse to run as root; its output only matters when it fails."""
    as_postgres = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryFile() as output:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd="/", stdout=output, stderr=output, check=False, **as_postgres)
        output.seek(0)
        assert done.returncode == 0, output.read().decode()
