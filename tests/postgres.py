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

import pytest
from sqlalchemy import create_engine

USER = "postgres"
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


@dataclass(frozen=True)
class Server:
    port: int

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
    """Start one, as the user `postgres` where the tests run as root. Skips the test where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) or [shutil.which("pg_ctl")]
    if not found[-1]:
        pytest.skip("PostgreSQL is not installed. On Debian: apt-get install postgresql")
    programs = Path(found[-1]).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="genrec-postgres-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        data = Path(folder) / "data"
        _run(programs / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        options = " ".join(f"-c {one}" for one in (*FAST, f"port={port}", f"unix_socket_directories={folder}"))
        options += " -c listen_addresses=127.0.0.1"
        _run(programs / "pg_ctl", "-D", data, "-w", "-l", Path(folder) / "log", "-o", options, "start")
        try:
            yield Server(port)
        finally:
            _run(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")


def _run(*command: object) -> None:
    """Run one of its programs, which refuse to run as root; its output only matters when it fails."""
    as_postgres = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryFile() as output:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd="/", stdout=output, stderr=output, check=False, **as_postgres)
        output.seek(0)
        assert done.returncode == 0, output.read().decode()
