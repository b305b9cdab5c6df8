"""Quality report of a SID table: are the codes used, balanced, distinct, and do they mean something?"""

import numpy as np

from genrec.sid.table import SidTable


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of non-negative `counts` [n]: 0 when all are equal, towards 1 when one holds everything."""
    x = np.sort(counts.astype(np.float64))
    n, total = len(x), x.sum()
    return float(2 * (np.arange(1, n + 1) * x).sum() / (n * total) - (n + 1) / n) if total else 0.0


def purity(groups: np.ndarray, member: np.ndarray) -> float:
    """Mean over items of the share of items in the same group that share a concept with it.

    groups int [n], member bool [n, concepts]. Items alone in their group, or without a concept, do not count.
    """
    shares = []
    tagged = member.any(1)
    for group in np.unique(groups):
        rows = np.flatnonzero((groups == group) & tagged)
        if len(rows) > 1:
            same = (member[rows].astype(np.int32) @ member[rows].T.astype(np.int32)) > 0
            shares.extend((same.sum(1) - 1) / (len(rows) - 1))
    return float(np.mean(shares)) if shares else float("nan")


def quality_report(table: SidTable, concepts: dict[str, np.ndarray], seed: int = 0) -> dict:
    """Figures of methods.md. `concepts` maps a tag to item indices; chance purity comes from shuffled groups.

    A tag that every item has tells nothing and does not count.
    """
    codes = table.sids[:, :-1]
    n = len(codes)
    telling = [rows for rows in concepts.values() if len(rows) < n]
    _, inverse = np.unique(codes, axis=0, return_inverse=True)
    sharing = np.bincount(inverse)[inverse] > 1
    member = np.zeros((n, len(telling)), bool)
    for column, rows in enumerate(telling):
        member[rows, column] = True
    levels = []
    for level in range(codes.shape[1]):
        counts = np.bincount(codes[:, level], minlength=table.vocabulary.sizes[level])
        share = counts[counts > 0] / n
        _, prefix = np.unique(codes[:, : level + 1], axis=0, return_inverse=True)
        per_prefix = np.bincount(prefix)
        entry = {
            "level": level + 1,
            "codes": table.vocabulary.sizes[level],
            "codes_used": int((counts > 0).sum()),
            "entropy_ratio": float(-(share * np.log(share)).sum() / np.log(len(counts))),
            "gini": gini(counts),
            "prefixes": len(per_prefix),
            "items_per_prefix_mean": float(per_prefix.mean()),
            "items_per_prefix_max": int(per_prefix.max()),
        }
        if level < 2 and telling:
            entry["concept_purity"] = purity(prefix, member)
            entry["concept_purity_chance"] = purity(np.random.default_rng(seed).permutation(prefix), member)
        levels.append(entry)
    return {
        "items": n,
        "distinct_before_dedup": int(inverse.max()) + 1,
        "collision_share": float(sharing.mean()),
        "max_dedup_digit": int(table.sids[:, -1].max()),
        "levels": levels,
    }
