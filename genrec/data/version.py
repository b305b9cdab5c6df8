"""The data version: the pin DVC keeps of the raw tables."""

from pathlib import Path

import yaml

from genrec.errors import DataError


def data_version(data_pin: Path) -> str:
    """`outs[0].md5` of a .dvc file. Raises DataError when the file or the entry is missing."""
    if not data_pin.exists():
        raise DataError(f"No {data_pin}: the data is not tracked. Run `dvc add data` first.")
    try:
        return str(yaml.safe_load(data_pin.read_text())["outs"][0]["md5"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{data_pin} holds no outs[0].md5. Run `dvc add data` again to rewrite it.") from error
