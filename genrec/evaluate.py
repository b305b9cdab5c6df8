"""Utility of a registered version on the current data version."""

from genrec.config import Workspace
from genrec.data.sequences import load_dataset
from genrec.errors import BundleError, RegistryError
from genrec.evaluation import ranking
from genrec.evaluation.statistics import Bootstrap
from genrec.registry import open_registry


def evaluate_version(workspace: Workspace, alias: str, exact: bool = False) -> dict:
    """{version, utility: {metric: {value, low, high, n}}}. `exact` scores the whole catalogue: slow, and the oracle."""
    registry = open_registry(workspace)
    version = registry.version(alias)
    if version is None:
        raise RegistryError(f"No version {alias!r}. See genrec models list.")
    bundle, dataset, params = registry.bundle(version.number), load_dataset(workspace.prepared), workspace.params()
    if bundle.table.item_ids != dataset.item_ids:
        raise BundleError(f"Version {version.number} was built for another catalogue. Train on this one: genrec train.")
    plan = Bootstrap.of(params)
    ranked = ranking.rank(bundle, bundle.model(), ranking.held_out(dataset), exact=exact)
    figures = ranking.utility(ranked, len(dataset.item_ids), plan)
    return {"version": version.number, "utility": {name: m.as_dict() for name, m in figures.items()}}
