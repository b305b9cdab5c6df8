"""Histories as one types them: item ids, oldest first, separated by commas, or a JSON list."""

import json
from collections.abc import Iterable
from pathlib import Path

from genrec.errors import DataError


def from_options(texts: Iterable[str]) -> list[list[str]]:
    """A history per text. Raises DataError for one without items."""
    return [_items(text, f"History {number}") for number, text in enumerate(texts, 1)]


def from_file(path: Path) -> list[list[str]]:
    """A history per line: ids separated by commas, or a JSON list of ids, for ids that have commas in them.

    Raises DataError naming the line that is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8. Write it again with encoding UTF-8.") from error
    return [_items(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _items(text: str, where: str) -> list[str]:
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise DataError(f'{where} is no JSON list: {error}. Write ["ID", "ID"].') from error
        if not all(isinstance(item, str) for item in found):
            raise DataError(f'{where} has an id that is no string. Write ["ID", "ID"].')
    else:
        found = [item.strip() for item in text.split(",") if item.strip()]
    if not found:
        raise DataError(f"{where} is empty. Give item ids, as in --history ID,ID,ID (see data/items.csv).")
    return found
