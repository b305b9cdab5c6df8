"""Full training: `dvc repro` builds and evaluates the base model, which becomes the champion when its gates pass."""

from prefect import flow

from flows.unlearn import lease
from genrec.config import Settings
from genrec.environment import prepare_environment
from genrec.pipeline import require_data
from tasks import data, registry, training


@flow(name="train", validate_parameters=False)
def train(home: str | None = None, force: bool = False) -> dict:
    """Rebuild what is out of date in the workspace `home` and promote the result: {version, verdict, utility, ...}.

    Raises RegistryError when its gates do not pass; the champion stays then. Raises RequestError when a night, a
    calibration or a purge holds the lease: no night may change the data meanwhile. Raises DataError without any data.
    """
    workspace = (Settings(home=home) if home else Settings()).workspace
    prepare_environment(workspace)
    require_data(workspace)
    with lease(workspace, "training") as held:
        version = data.reproduce_base(held, force)
        base = training.register_base(held)
        previous = registry.promote_base(held, base["version"])
    return {**base, "data_version": version, "previous": previous}
