"""From embeddings to a SID table as `sid` of params.yaml says, and new items into a table that stays as it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from genrec.config import Params
from genrec.sid import quantise, rq_vae
from genrec.sid.embed import TEMPLATE
from genrec.sid.quantise import Codebooks, assign, quantisation_error
from genrec.sid.repair import repair
from genrec.sid.table import SidLineage, SidTable, Vocabulary, build_table, free_digits


def fit_codebooks(embeddings: np.ndarray, params: Params) -> Codebooks:
    """Codebooks of the quantiser `params.sid` names, for `embeddings` [n, d]. Raises DataError as the quantisers do."""
    sid = params.sid
    shape = sid.levels, sid.codes_for(len(embeddings)), sid.iterations
    if sid.quantiser == "rq_vae":
        return rq_vae.fit(embeddings, *shape, sid.rq_vae, params.seed)
    return quantise.fit(embeddings, *shape, params.seed)


def assign_table(item_ids: Sequence[str], embeddings: np.ndarray, codebooks: Codebooks, collisions: str) -> SidTable:
    """The nearest codes of all items; `collisions` are told apart by dedup digits ("dedup") or moved ("repair")."""
    codes = assign(embeddings, codebooks)
    if collisions == "dedup":
        return build_table(item_ids, codes, codebooks.codes)
    codes = repair(embeddings, codes, codebooks)
    sizes = (*[codebooks.codes] * codebooks.levels, 1)
    return SidTable(tuple(item_ids), np.pad(codes, ((0, 0), (0, 1))), Vocabulary(sizes))


def append(table: SidTable, codebooks: Codebooks, item_ids: Sequence[str], embeddings: np.ndarray) -> SidTable:
    """`table` with those of `item_ids` it lacks; no SID that is there moves, and the vocabulary stays.

    embeddings [n, d] of `item_ids`; those of items it has are not looked at. New items get what `assign` gives and the
    next free dedup digit, in a repaired table the nearest free codes. Raises DataError when there is no room left.
    """
    new = [row for row, item in enumerate(item_ids) if item not in table.index]
    quantise.check(embeddings[new], codes=0)
    codes = assign(embeddings[new], codebooks)
    if table.repaired:
        codes = repair(embeddings[new], codes, codebooks, taken=table.sids[:, :-1])
    digits = free_digits(codes, table.sids, table.vocabulary.sizes[-1])
    ids = (*table.item_ids, *(item_ids[row] for row in new))
    sids = np.concatenate([table.sids, np.column_stack([codes, digits])])
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return replace(table, item_ids=tuple(ids[i] for i in order), sids=sids[order])


def lineage(texts: Sequence[str], embeddings: np.ndarray, codebooks: Codebooks, params: Params) -> SidLineage:
    """What codebooks were fitted on: the catalogue's `texts` and `embeddings`, in item order."""
    parts = (codebooks.centroids, *(array for layer in codebooks.encoder for array in layer))
    return SidLineage(
        params.embed.encoder, TEMPLATE, params.sid.quantiser, params.sid.collisions, codebooks.seed,
        _sha256("\0".join(texts).encode()), _sha256(embeddings), _sha256(*parts),
    )  # fmt: skip


def _sha256(*parts: np.ndarray | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part))
    return digest.hexdigest()


def quantisation(table: SidTable, embeddings: np.ndarray, codebooks: Codebooks) -> dict:
    """How well the table's codes describe `embeddings` [n, d], and what repair or reassignment cost.

    raw_collision_share: of items whose nearest codes another item has too. moved_items: that have other than their
    nearest codes. quantisation_error: share of the squared length left over; extra: what of it the moves add.
    """
    nearest, codes = assign(embeddings, codebooks), table.sids[:, :-1]
    _, inverse, count = np.unique(nearest, axis=0, return_inverse=True, return_counts=True)
    error = quantisation_error(embeddings, codes, codebooks)
    return {
        "raw_collision_share": float((count[inverse] > 1).mean()),
        "moved_items": int((nearest != codes).any(1).sum()),
        "quantisation_error": error,
        "extra_quantisation_error": error - quantisation_error(embeddings, nearest, codebooks),
    }
