"""Capacity-aware collision repair: every item gets codes of its own, at the least distance, without a dedup digit.

Items that share all levels but the last are placed on different last codes so that the sum of their squared distances
is smallest: an assignment problem per prefix. A prefix with more items than free codes first gives the excess to other
codes of the level before, those items and codes that lose the least.
"""

from collections import defaultdict

import numpy as np
from scipy.optimize import linear_sum_assignment

from genrec.errors import DataError
from genrec.sid.quantise import Codebooks, residuals_along, squared_distances


def repair(
    embeddings: np.ndarray, codes: np.ndarray, codebooks: Codebooks, taken: np.ndarray | None = None
) -> np.ndarray:
    """`codes` int [n, L] with as many of them changed as it takes for no two rows to be equal: int32 [n, L].

    `taken` int [m, L] are codes of other items, which stay. Raises DataError when there is no room below the codes that
    items share above the last two levels.
    """
    codes = codes.astype(np.int32)
    occupied: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for *prefix, last in taken.tolist() if taken is not None else ():
        occupied[tuple(prefix)].append(last)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, prefix in enumerate(codes[:, :-1].tolist()):
        groups[tuple(prefix)].append(row)
    room = {prefix: codebooks.codes - len(occupied[prefix]) - len(rows) for prefix, rows in groups.items()}
    for prefix in [prefix for prefix, free in sorted(room.items()) if free < 0]:
        for row, code in _spilled(embeddings, codes, codebooks, prefix, groups[prefix], room, occupied):
            groups[prefix].remove(row)
            codes[row, -2:] = code, -1  # the last code comes below
            groups[*prefix[:-1], code].append(row)
    for prefix, rows in groups.items():
        chosen = {*codes[rows, -1].tolist()}
        if len(chosen) < len(rows) or -1 in chosen or chosen & {*occupied[prefix]}:
            free = np.setdiff1d(np.arange(codebooks.codes), occupied[prefix])
            residuals = residuals_along(embeddings[rows], codes[rows], codebooks)[:, -1]
            distances = squared_distances(residuals, codebooks.centroids[-1][free])
            codes[rows, -1] = free[linear_sum_assignment(distances)[1]]
    return codes


def _spilled(embeddings, codes, codebooks, prefix, rows, room, occupied) -> list[tuple[int, int]]:
    """Rows of an overfull prefix and the code each gets on the level before the last; takes it from `room`."""
    residuals = residuals_along(embeddings[rows], codes[rows], codebooks)[:, -2]
    distances = squared_distances(residuals, codebooks.centroids[-2])
    loss = distances - distances[:, prefix[-1], None]
    excess, moved = -room[prefix], {}
    for place in np.argsort(loss, axis=None, kind="stable"):
        if len(moved) == excess:
            break
        row, code = rows[place // codebooks.codes], int(place % codebooks.codes)
        to = (*prefix[:-1], code)
        free = room.setdefault(to, codebooks.codes - len(occupied[to]))
        if row not in moved and free > 0:
            moved[row], room[to] = code, free - 1
    if len(moved) < excess:
        raise DataError(
            f"{len(rows)} items have the SID prefix {prefix}, and nothing near it has room for all of them. "
            "Raise sid.codes, or set sid.collisions to dedup."
        )
    room[prefix] = 0
    return list(moved.items())
