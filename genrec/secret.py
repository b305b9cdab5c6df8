"""Keys in files: read only where nobody but their owner could, and made once where there is none yet."""

import os
from pathlib import Path

from genrec.errors import ConfigError


def read_secret(path: Path) -> bytes:
    """The content of a key file. Raises ConfigError where others than its owner could read it, OSError for no file."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(
                f"The key {path.name} has mode {mode:o}: others can read it. Run chmod 600 {path.name}, and think of a "
                "new key."
            )
        return file.read()


def kept_secret(path: Path) -> bytes:
    """The key in `path`; a random one (64 hex digits), readable by its owner, is made where there is none.

    Raises ConfigError where others could read it.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return read_secret(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(32).hex().encode())
    return read_secret(path)
