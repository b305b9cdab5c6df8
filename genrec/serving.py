"""Recommending from a bundle: the one function the CLI, the MLflow model and a server call."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from genrec.errors import BundleError
from genrec.models.beam import beam_search, by_length, encode_histories
from genrec.models.bundle import Bundle


def recommend(
    bundle: Bundle, model: nn.Module, histories: Sequence[Sequence[str]], k: int, deny: Iterable[str] = ()
) -> list[list[dict]]:
    """Top `k` items for each history of item ids: `[{item_id, title, score}]`, score being log p of the SID.

    Items of the history, the bundle's deny list and `deny` are not recommended. Unknown items are passed over.
    Searches on the model's device, `decoding.batch_size` histories of like length at a time.
    Raises BundleError when nothing is known of a history, or when every item is denied.
    """
    table = bundle.table
    known = [[table.index[item] for item in history if item in table.index] for history in histories]
    for number, (history, rows) in enumerate(zip(histories, known, strict=True), 1):
        if not rows:
            raise BundleError(
                f"None of the {len(history)} items of history {number} of {len(known)} is known. Give at least one "
                "known item id."
            )
    denied = bundle.deny_mask(deny)
    if bool(denied.all()):
        raise BundleError("Every item of the catalogue is denied. Shorten the deny list.")
    decoding, window, device = bundle.params.decoding, bundle.params.architecture.window, model.device
    index, denied = bundle.index_on(device), denied.to(device)
    lists: list[list[dict]] = [[]] * len(known)
    for part in by_length(known, window, decoding.batch_size):
        rows = [known[i] for i in part]
        seen = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1).to(device)
        prompts = encode_histories(rows, table, window).to(device)
        items, scores = beam_search(model, prompts, index, max(decoding.beam, k), denied, seen)
        for place, best, score in zip(part, items[:, :k].tolist(), scores[:, :k].tolist(), strict=True):
            lists[place] = [
                {"item_id": table.item_ids[i], "title": bundle.titles[i], "score": s}
                for i, s in zip(best, score, strict=True)
                if i >= 0
            ]
    return lists
