"""Keys in files: read only where nobody but their owner could."""

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
