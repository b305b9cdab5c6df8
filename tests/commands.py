"""The command line in processes of their own that need not import torch, MLflow and the others again.

A server imports them once and forks for every command; the fork gets folder, environment and output of the command,
and runs `genrec.cli.main` to its end. Prefect is left to the commands: it reads its settings when it is imported.

    python -m tests.commands SOCKET

`program` makes a `genrec` of it that shells and DVC find in their PATH.
"""

import atexit
import fcntl
import gc
import importlib
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    "accelerate", "alembic.command", "duckdb", "great_expectations", "ibis", "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store", "pandas", "peft", "rich.table", "sqlalchemy.orm", "torch", "transformers",
    "genrec.cli", "genrec.night",
)  # fmt: skip
ROOT = Path(__file__).parents[1]


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """What `genrec *arguments` returned and printed, run in `folder`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = call(arguments, folder, environment, out.fileno(), err.fileno())
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(["genrec", *arguments], code, *printed)


def on_terminal(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code of `genrec *arguments` on a terminal of 100 columns, and all that appeared there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the end of a terminal that nobody writes to any more
            while part := os.read(ours, 65536):
                shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    code = call(arguments, folder, environment | {"TERM": "xterm-256color"}, theirs, theirs)
    os.close(theirs)
    reader.join()
    os.close(ours)
    return code, b"".join(shown).decode()


def call(arguments: list[str], folder: Path, environment: dict[str, str], out: int, err: int) -> int:
    """The exit code of `genrec *arguments`, which reads nothing and prints to two open files."""
    with open(os.devnull) as nothing:
        return ask(_server(), arguments, folder, environment, [nothing.fileno(), out, err])


def ask(path: str, arguments: list[str], folder: Path, environment: dict[str, str], files: list[int]) -> int:
    """The exit code of `genrec *arguments`, run by the server at `path` with these three standard files."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        asked = json.dumps({"arguments": arguments, "folder": str(folder), "environment": environment}).encode()
        socket.send_fds(connection, [len(asked).to_bytes(4)], files)
        connection.sendall(asked)
        return int(b"".join(iter(lambda: connection.recv(64), b"")))


def program(folder: Path) -> Path:
    """An executable `genrec` in `folder` that asks this process's server. Ended, it leaves its command running."""
    text = f"""#!{sys.executable} -S
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.commands import ask
sys.exit(ask({_server()!r}, sys.argv[1:], os.getcwd(), dict(os.environ), [0, 1, 2]))
"""
    (made := folder / "genrec").write_text(text)
    made.chmod(0o755)
    return made


@cache
def _server() -> str:
    """Starts the server of this process; its socket."""
    path = Path(tempfile.mkdtemp(prefix="genrec-commands-")) / "socket"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.commands", str(path)], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(shutil.rmtree, path.parent)
    atexit.register(process.kill)
    assert process.stdout.readline() == b"ready\n"
    return str(path)


def serve(path: str) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a fork that collects garbage would copy every page of what is imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what answers a caller waits for its own child
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        while listening in select.select([listening, sys.stdin], [], [])[0]:  # until the caller's end closes it
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, *_ = socket.recv_fds(connection, 4, 3)
    text = b""
    while len(text) < int.from_bytes(size):
        text += connection.recv(65536)
    child = os.fork()
    if child == 0:
        connection.close()
        _command(files, **json.loads(text))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(code).encode())
    os._exit(0)


def _command(files: list[int], arguments: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """In the process of the command: as if it had been started in `folder`."""
    from genrec.cli import main  # not at the top: who asks the server need not import it

    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [one for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one and one not in sys.path]
    importlib.invalidate_caches()
    sys.argv = ["genrec", *arguments]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    # What an interpreter does at its end, but for freeing the modules one by one, which takes seconds.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
