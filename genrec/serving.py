"""Recommending from a bundle: the one function the CLI, the MLflow model and a server call."""

from collections.abc import Iterable, Sequence

from torch import nn

from genrec.errors import BundleError
from genrec.models.beam import beam_search, encode_histories
from genrec.models.bundle import Bundle


def recommend(
    bundle: Bundle, model: nn.Module, histories: Sequence[Sequence[str]], k: int, deny: Iterable[str] = ()
) -> list[list[dict]]:
    """Top `k` items for each history of item ids: `[{item_id, title, score}]`, score being log p of the SID.

    Items of the history, the bundle's deny list and `deny` are not recommended. Unknown items are passed over.
    Raises BundleError when nothing is known of a history, or when every item is denied.
    """
    index = bundle.table.index
    known = [[index[item] for item in history if item in index] for history in histories]
    for history, rows in zip(histories, known, strict=True):
        if not rows:
            raise BundleError(
                f"None of the {len(history)} items of a history is known. Give at least one known item id."
            )
    blocked = bundle.deny_mask(deny).repeat(len(known), 1)
    if bool(blocked[0].all()):
        raise BundleError("Every item of the catalogue is denied. Shorten the deny list.")
    for row, history in enumerate(known):
        blocked[row, history] = True
    beam = max(bundle.params.decoding.beam, k)
    prompts = encode_histories(known, bundle.table, bundle.params.architecture.window)
    items, scores = beam_search(model, prompts, bundle.index, beam, blocked)
    return [
        [
            {"item_id": bundle.table.item_ids[i], "title": bundle.titles[i], "score": float(s)}
            for i, s in zip(row[:k].tolist(), score[:k].tolist(), strict=True)
            if i >= 0
        ]
        for row, score in zip(items.numpy(), scores.numpy(), strict=True)
    ]
