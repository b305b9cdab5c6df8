"""New items of a grown catalogue into the champion, without training and without moving a SID.

Between two trainings: a new item is recommended by the codes it shares with others, `genrec train` later learns it. The
weights are the champion's, so what it has forgotten stays forgotten.
"""

from dataclasses import replace
from datetime import datetime

import numpy as np

from genrec.candidates import register_judged
from genrec.config import Workspace
from genrec.data.sequences import load_dataset
from genrec.data.version import data_version
from genrec.errors import DataError, RegistryError
from genrec.evaluation import gates, ranking
from genrec.evaluation.statistics import Bootstrap
from genrec.pipeline import code_version, load_embeddings
from genrec.promotion import promote, refuse_open_night
from genrec.registry import open_registry
from genrec.requests.store import open_ledger
from genrec.sid.build import append


def append_catalogue(workspace: Workspace, now: datetime) -> dict:
    """Register the champion with the prepared catalogue's new items, and promote it: {champion, previous, appended}.

    The lease must be held. Without new items nothing is done. Raises DataError when the catalogue has lost items, or
    was embedded otherwise; RegistryError while a night is open and when a gate of base models does not pass.
    """
    registry, ledger, params = open_registry(workspace), open_ledger(workspace), workspace.params()
    refuse_open_night(ledger)
    champion = registry.champion().number
    bundle, dataset = registry.bundle(champion), load_dataset(workspace.prepared)
    embeddings, known = load_embeddings(workspace), set(dataset.item_ids)
    lost = [item for item in bundle.table.item_ids if item not in known]
    if lost:
        raise DataError(f"{len(lost)} items of the champion are not in the catalogue, first {lost[0]!r}: genrec train.")
    recipe = bundle.table.lineage
    if len(embeddings) != len(dataset.item_ids) or (recipe and recipe.encoder != params.embed.encoder):
        raise DataError("The embeddings are not of this catalogue and the SIDs' encoder. Run dvc repro embed.")
    table = append(bundle.table, bundle.codebooks, dataset.item_ids, embeddings)
    appended = len(table.item_ids) - len(bundle.table.item_ids)
    if not appended:
        return {"champion": champion, "previous": None, "appended": 0}
    deny = tuple(sorted({*bundle.deny, *ledger.deny_list()}))
    candidate = replace(bundle, table=table, titles=dataset.titles, deny=deny).with_lineage(
        data_version=data_version(workspace.data_pin), code_version=code_version(), parent=champion, method="append",
        batch_id=f"append {now:%Y-%m-%dT%H:%M:%S}", requests=(),
    )  # fmt: skip
    plan, cases = Bootstrap.of(params), ranking.held_out(dataset)
    ranked = ranking.rank(candidate, candidate.model(), cases)
    found = [
        gates.integrity(candidate, candidate, dataset, None, np.empty(0, np.int64)),
        gates.beats_popularity(ranked, ranking.popularity_ranks(dataset, cases), plan),
    ]
    verdict, taken = gates.decide(found, exact=False), ranking.utility(ranked, len(dataset.item_ids), plan)
    number = register_judged(workspace, "append", candidate, found, verdict, taken)
    if verdict != "PASS":
        raise RegistryError(
            f"Version {number}, {champion} with {appended} new items, is {verdict}. The champion stays; see "
            "its gates.json in MLflow, or train anew: genrec train."
        )
    promote(workspace, number, champion, now=now, appended=appended)
    return {"champion": number, "previous": champion, "appended": appended}
