"""MLflow: log a bundle as a model version, register it, read and move aliases. The only module that imports mlflow.

Aliases: `champion` is served, `challenger` is the last candidate, `previous` is for rollback. Two alias moves are no
transaction, so `promote` sets `previous` first and can be repeated after a crash at any point. MLflow does not guard
them either: only `genrec.promotion` calls `promote`, under the ledger's lock.
"""

import json
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from io import StringIO
from pathlib import Path
from urllib.parse import urlparse

from genrec.config import Workspace
from genrec.errors import OutageError, RegistryError
from genrec.models.bundle import TRAINED, Bundle, Lineage, load_bundle, read_lineage, read_manifest

EXPERIMENT, BENCH_EXPERIMENT = "genrec", "genrec bench"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
EXAMPLE = 3
"""Items of the input example."""
SERVED_BY = (
    "accelerate", "alembic", "mlflow", "numpy", "pandas", "peft", "pyarrow", "pydantic", "pydantic-settings", "pyyaml",
    "safetensors", "sqlalchemy", "torch", "transformers",
)  # fmt: skip
"""What the served model imports besides genrec, which no index has."""
SILENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
"""MLflow's codes for a server that does not answer, or whose database does not."""


@contextmanager
def answering() -> Iterator[None]:
    """Raises OutageError where MLflow does not answer; its other errors pass."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in SILENT:
            raise
        cause = re.sub(r"//[^/@\s]+@", "//", str(error).splitlines()[0])  # the URL may hold a password
        raise OutageError(
            f"MLflow does not answer: {cause}. Start its server, or correct GENREC_MLFLOW_URI. See genrec doctor."
        ) from error


@dataclass(frozen=True)
class Version:
    """A registered version: its number (as MLflow writes it), aliases, tags, metrics and MLflow run."""

    number: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    metrics: dict[str, float]
    run_id: str
    created_at: datetime

    def as_dict(self) -> dict:
        return {"version": self.number, "aliases": list(self.aliases), "tags": self.tags, "metrics": self.metrics}


@dataclass(frozen=True)
class Unregistered:
    """A run that logged a bundle which never became a version: its night was killed in between."""

    run_id: str
    created_at: datetime


class Registry:
    """The registered model `name` at the tracking URI; `artefacts` is the URL that new experiments write to, None where
    the MLflow server decides.

    Bundles of a remote artefact store are kept in `mlruns`/downloads once they are read.
    """

    def __init__(self, uri: str, mlruns: Path, name: str, artefacts: str | None):
        import logging

        import mlflow
        from mlflow import MlflowClient

        for logger in ("alembic", "mlflow"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)  # what goes wrong is an exception too
        mlruns.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        self._mlflow, self._client, self.name = mlflow, MlflowClient(uri), name
        self._artefacts, self._downloads = artefacts, mlruns / "downloads"
        with answering():
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(EXPERIMENT, artifact_location=self._artefacts)
            )

    def register(
        self, directory: Path, *, metrics: Mapping[str, float], params: Mapping[str, str], tags: Mapping[str, str],
        artefacts: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        """Log the bundle in `directory` with its metrics and lineage tags; returns the new version, now `challenger`.

        A bundle with the same tags `batch_id` and `attempt` that is already registered is returned, not logged again.
        `artefacts` are texts to keep with the run, by file name. The version also says which data version it read, as
        an MLflow dataset, and has an input example of the catalogue's first items, nobody's history.
        """
        import pandas as pd
        from mlflow.models import Model, ModelSignature
        from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

        manifest = read_manifest(directory)
        tags = {**tags, "bundle_hash": manifest["bundle_hash"], "backbone_hash": manifest["backbone_hash"]}
        for version in self.versions():
            same = all(version.tags.get(key) == tags.get(key) for key in ("batch_id", "attempt", "bundle_hash"))
            if same:
                return self._challenge(version.number)
        signature = ModelSignature(
            Schema([ColSpec(Array(DataType.string), "history")]),
            Schema([ColSpec(Array(DataType.string), "item_ids"), ColSpec(Array(DataType.double), "scores")]),
            ParamSchema([ParamSpec("k", DataType.long, 10)]),
        )
        mlflow = self._mlflow
        with (
            redirect_stderr(StringIO()),  # MLflow prints what it does; failures are exceptions
            warnings.catch_warnings(action="ignore"),
            mlflow.start_run(
                experiment_id=self._experiment,
                run_name=f"{tags.get('method', 'base')} {tags.get('batch_id', '')}".strip(),
            ) as run,
        ):
            mlflow.set_tags(tags)
            mlflow.log_params(params)
            mlflow.log_metrics({_metric_name(k): float(v) for k, v in metrics.items() if math.isfinite(v)})
            for name, text in (artefacts or {}).items():
                mlflow.log_text(text, name)
            info = Model.log(
                artifact_path=None,
                name="bundle",
                flavor=_Unasked,
                flavor_name="pyfunc",
                validate_serving_input=False,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"bundle": str(directory)},
                pip_requirements=requirements(),
                signature=signature,
                input_example=(pd.DataFrame({"history": [_first_items(directory)]}), {"k": 10}),
            )
            self._client.log_inputs(run.info.run_id, [_data_read(read_lineage(directory))])
            # The tags come with the version in one call: a version without them cannot be recognised after a crash.
            number = str(mlflow.register_model(info.model_uri, self.name, tags=tags).version)
        return self._challenge(number)

    def _challenge(self, number: str) -> str:
        self._client.set_registered_model_alias(self.name, CHALLENGER, number)
        return number

    def log_run(
        self, name: str, *, metrics: Mapping[str, float], tags: Mapping[str, str], artefacts: Mapping[str, str]
    ) -> str:
        """Log a run that makes no model version; returns its id. `artefacts` are texts by file name."""
        mlflow = self._mlflow
        with redirect_stderr(StringIO()), mlflow.start_run(experiment_id=self._experiment, run_name=name) as run:
            mlflow.set_tags(tags)
            mlflow.log_metrics({_metric_name(k): float(v) for k, v in metrics.items() if math.isfinite(v)})
            for file, text in artefacts.items():
                mlflow.log_text(text, file)
        return run.info.run_id

    def version(self, alias_or_number: str) -> Version | None:
        """The version an alias or a number names, or None."""
        from mlflow.exceptions import MlflowException

        try:
            with answering():
                if alias_or_number.isdigit():
                    found = self._client.get_model_version(self.name, alias_or_number)
                else:
                    found = self._client.get_model_version_by_alias(self.name, alias_or_number)
        except MlflowException:
            return None
        return self._view(found)

    def champion(self) -> Version:
        """The served version. Raises RegistryError when there is none."""
        found = self.version(CHAMPION)
        if found is None:
            raise RegistryError(f"The registry has no champion of {self.name!r} yet. Train one: genrec train.")
        return found

    def versions(self) -> list[Version]:
        """All versions, newest first."""
        found = self._client.search_model_versions(f"name = '{self.name}'")
        return [self._view(self._client.get_model_version(self.name, v.version)) for v in sorted(
            found, key=lambda v: -int(v.version)
        )]  # fmt: skip

    def _view(self, version) -> Version:
        metrics = self._client.get_run(version.run_id).data.metrics if version.run_id else {}
        return Version(
            str(version.version), tuple(version.aliases), dict(version.tags), metrics, version.run_id,
            _moment(version.creation_timestamp),
        )  # fmt: skip

    def bundle(self, number: str) -> Bundle:
        """Load a version's bundle, hashes checked."""
        return load_bundle(self.bundle_path(number))

    def bundle_path(self, number: str) -> Path:
        """A local folder with a version's bundle; downloaded, once, where the artefact store is remote."""
        uri, kept = f"models:/{self.name}/{number}", self._downloads / number
        if urlparse(self._client.get_model_version_download_uri(self.name, number)).scheme in ("", "file"):
            kept = Path(self._mlflow.artifacts.download_artifacts(uri))
        elif not kept.exists():
            temporary = kept.with_name(f".{number}.{os.getpid()}")
            temporary.mkdir(parents=True)
            self._mlflow.artifacts.download_artifacts(uri, dst_path=str(temporary))
            os.replace(temporary, kept)
        return next((kept / "artifacts").iterdir())

    def stored(self, number: str) -> dict[str, int]:
        """Files of a version's bundle in the artefact store itself, with their sizes in bytes.

        Raises OutageError where the store does not answer.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        try:
            store = get_artifact_repository(self._client.get_model_version_download_uri(self.name, number))
            folders, found = ["artifacts"], {}
            for folder in folders:
                for entry in store.list_artifacts(folder):
                    if entry.is_dir:
                        folders.append(entry.path)
                    else:
                        found[entry.path.split("/", 2)[2]] = entry.file_size  # artifacts/<name of the bundle>/...
        except Exception as error:  # every store has its own
            raise OutageError(
                f"the artefact store of version {number} does not answer ({type(error).__name__})"
            ) from error
        return found

    def promote(self, number: str, expected: str | None) -> bool:
        """Make `number` the champion and `expected`, the champion so far, `previous`; False when it was done before.

        Safe to repeat. Raises RegistryError when `number` is no version, or the champion is neither of the two.
        """
        if self.version(number) is None:
            raise RegistryError(f"No version {number} of {self.name!r} to promote. See genrec models list.")
        found = self.version(CHAMPION)
        current = found.number if found else None
        if current == number:
            return False
        if current != expected:
            raise RegistryError(
                f"Version {number} was to follow champion {expected}, and the champion is {current} by now: nothing "
                "was moved. Look at genrec models list, then start again from the new champion."
            )
        if current is not None:
            self._client.set_registered_model_alias(self.name, PREVIOUS, current)
        self._client.set_registered_model_alias(self.name, CHAMPION, number)
        return True

    def unregistered(self) -> list[Unregistered]:
        """Runs with a bundle and without a version."""
        known = {version.run_id for version in self.versions()}
        models = [model for model in self._models() if model.source_run_id not in known]
        return [Unregistered(model.source_run_id, _moment(model.creation_timestamp)) for model in models]

    def remove(self, number: str) -> None:
        """Delete a version with its bundle, its run and the aliases on it; nothing when it is gone already.

        The version goes last, so that a removal cut short can be repeated.
        """
        version = self.version(number)
        if version is None:
            return
        self.remove_run(version.run_id)
        shutil.rmtree(self._downloads / number, ignore_errors=True)
        self._client.delete_model_version(self.name, number)

    def remove_run(self, run_id: str) -> None:
        """Delete a run with its bundle, files first; what is gone already is passed over.

        The files are gone at once; MLflow keeps the figures of a deleted run until `mlflow gc`.
        """
        from mlflow.entities import LifecycleStage
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        for model in self._models(f"source_run_id = '{run_id}'"):
            get_artifact_repository(model.artifact_location).delete_artifacts()
            self._client.delete_logged_model(model.model_id)
        run = self._client.get_run(run_id)
        get_artifact_repository(run.info.artifact_uri).delete_artifacts()
        if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
            self._client.delete_run(run_id)

    def _models(self, filter_string: str | None = None) -> Iterator:
        token = None
        while True:
            page = self._client.search_logged_models([self._experiment], filter_string, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def log_bench(self, name: str, tags: Mapping[str, str], children: Sequence[Mapping], files: Sequence[Path]) -> str:
        """One parent run with `files`, and a child run per item of `children` ({name, tags, metrics}); its id."""
        from mlflow.entities import Metric, RunTag

        client, now = self._client, int(time.time() * 1000)
        experiment = self._client.get_experiment_by_name(BENCH_EXPERIMENT)
        place = experiment.experiment_id if experiment else client.create_experiment(BENCH_EXPERIMENT, self._artefacts)
        parent = client.create_run(place, run_name=name, tags=dict(tags)).info.run_id
        for child in children:
            run = client.create_run(place, run_name=child["name"], tags={"mlflow.parentRunId": parent}).info.run_id
            metrics = [Metric(_metric_name(k), float(v), now, 0) for k, v in child["metrics"].items()]
            client.log_batch(run, metrics, tags=[RunTag(k, str(v)) for k, v in child["tags"].items()])
            client.set_terminated(run)
        for path in files:
            client.log_artifact(parent, str(path))
        client.set_terminated(parent)
        return parent

    def log_file(self, run_id: str, path: Path) -> None:
        """Keep a file with a run."""
        self._client.log_artifact(run_id, str(path))

    def tag(self, number: str, key: str, value: str) -> None:
        self._client.set_model_version_tag(self.name, number, key, value)


def requirements() -> list[str]:
    """SERVED_BY as installed here, for pip: `torch==2.13.0`, without the build (`+cpu`) that only some index has.

    genrec is not among them: whoever takes that name on a public index would be installed and run.
    """
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in SERVED_BY]


class _Unasked:
    """MLflow's pyfunc flavour without what `log_model` does where there is an input example: it loads the bundle and
    asks it, which takes longer than all the rest and a whole backbone's memory."""

    @staticmethod
    def save_model(path: str, mlflow_model, validate_serving_input: bool, **told) -> None:
        import mlflow

        mlflow.pyfunc.save_model(path, mlflow_model=mlflow_model, **told)


def _first_items(directory: Path) -> list[str]:
    """A few item ids of a bundle's catalogue."""
    import pyarrow.parquet as pq

    return pq.read_table(directory / "sid_table.parquet", columns=["item_id"])["item_id"][:EXAMPLE].to_pylist()


def _data_read(lineage: Lineage):
    """The data version as a dataset input: what DVC's pin data.dvc names, read for `training` or for `forgetting`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    context = "training" if lineage.method in TRAINED else "forgetting"
    data = Dataset(name="data", digest=lineage.data_version, source_type="dvc", source=json.dumps({"pin": "data.dvc"}))
    return DatasetInput(data, [InputTag(MLFLOW_DATASET_CONTEXT, context)])


def open_registry(workspace: Workspace) -> Registry:
    """The registry that the workspace's settings name."""
    name = workspace.settings.model_name
    return Registry(workspace.mlflow_uri, workspace.mlruns, name, workspace.mlflow_artefacts)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _metric_name(name: str) -> str:
    """MLflow allows 250 letters, digits and _ - . : and space, and paths, of which a concept's name may be no good one:
    `sh@10 Sci/Fi` becomes `sh_10 Sci_Fi`."""
    return "".join(c if c.isalnum() or c in "_-.: " else "_" for c in name)[:250]
