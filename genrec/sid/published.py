"""SID files as others publish them: JSON, gzipped or not, `{item id: ["<a_12>", "<b_3>", ...]}`."""

import gzip
import json
from pathlib import Path

import numpy as np

from genrec.errors import DataError
from genrec.sid.table import SidTable, build_table


def read_published(path: Path) -> SidTable:
    """The published codes, told apart by a dedup digit of ours; a level has as many codes as the largest code asks for.

    Raises DataError for a file of another form.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            published = json.load(file)
        ids = sorted(published)
        codes = np.array([[int(token.strip("<>").split("_")[1]) for token in published[item]] for item in ids])
        return build_table(ids, codes.reshape(len(ids), -1), int(codes.max()) + 1)
    except (OSError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path} is no SID file ({error}). It must be JSON of the form {{"item id": ["<a_12>", "<b_3>"]}}.'
        ) from error
