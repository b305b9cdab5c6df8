"""A workspace with a past: real data, DVC, ledger and MLflow stores, nights without training (one bundle for all)."""

import shutil
from contextlib import chdir
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from genrec.candidates import register_candidate
from genrec.config import Settings
from genrec.data.erase import erase
from genrec.data.prepare import prepare
from genrec.data.sequences import load_dataset
from genrec.data.version import data_version
from genrec.models.bundle import save_bundle
from genrec.promotion import promote
from genrec.registry import CHAMPION, open_registry
from genrec.requests.intake import known_of
from genrec.requests.store import open_ledger
from genrec.workspace import params_yaml

STAGES = """
stages:
  prepare: {cmd: "true", deps: [data], outs: [prepared]}
  train: {cmd: "true", deps: [prepared], outs: [artefacts/bundle]}
"""


@cache
def migrated() -> Path:
    """An MLflow database with its schema and nothing in it: making one takes seconds."""
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    path = Path(mkdtemp(prefix="genrec-test-")) / "mlflow.db"
    engine = create_engine(f"sqlite:///{path}")
    _initialize_tables(engine)
    engine.dispose()
    return path


class Past:
    """`shop`: the folder of raw and prepared tables. Times of nights are arguments; each `night` erases for real."""

    def __init__(self, home: Path, shop: Path, bundle, params, **settings):
        from dvc.repo import Repo

        self.bundle, self.params = bundle, params
        (home / "mlruns").mkdir(parents=True)
        shutil.copy(migrated(), home / "mlruns" / "mlflow.db")
        for name in ("data", "prepared"):
            shutil.copytree(shop / name, home / name)
        (home / "params.yaml").write_text(params_yaml(params))
        (home / "dvc.yaml").write_text(STAGES)
        self.workspace = Settings(**{"home": home, "pseudonym_key": "key"} | settings).workspace
        Repo.init(str(home), no_scm=True).close()
        self.registry, self.ledger = open_registry(self.workspace), open_ledger(self.workspace)
        self.pin()

    def dvc(self, command: str, *arguments, **options):
        """Run one method of DVC's API, in the workspace."""
        from dvc.repo import Repo

        with chdir(self.workspace.root), Repo() as repo:
            return getattr(repo, command)(*arguments, **options)

    def remote(self, url: str, **options: str) -> None:
        """Make `url` DVC's default remote."""
        said = "\n".join(f"    {name} = {value}" for name, value in {"url": url, **options}.items())
        config = self.workspace.root / ".dvc" / "config"
        config.write_text(f"[core]\n    no_scm = True\n    remote = store\n['remote \"store\"']\n{said}\n")

    def pin(self) -> str:
        """Pin data/ and prepared/ as they are; the data version."""
        self.dvc("add", str(self.workspace.data))
        self.dvc("commit", "prepare", force=True)
        return self.data_version

    @property
    def data_version(self) -> str:
        return data_version(self.workspace.data_pin)

    @property
    def champion(self) -> str:
        return self.registry.champion().number

    def register(
        self, method: str, batch: str, requests=(), parent: str = "", verdict: str = "PASS", data: str | None = None
    ) -> str:
        """A version of the one bundle, with a lineage of its own; `data`: its data version, default the current."""
        data = data or self.data_version
        lineage = {"method": method, "batch_id": batch, "requests": tuple(requests), "parent": parent}
        lineage["retrain_s"] = float(len(self.registry.versions()))  # else the same bundle is the same version
        directory = self.workspace.var / "candidate"
        bundle = self.bundle.with_lineage(data_version=data, code_version="c0", **lineage)
        save_bundle(bundle, directory)
        result = {"number": 1, "verdict": verdict, "gates": [{"name": "utility", "verdict": verdict}]}
        number = register_candidate(self.registry, directory, bundle.lineage, result, {"ndcg@10": 0.1}, 0)
        shutil.rmtree(directory)
        return number

    def train(self, now: datetime) -> str:
        """A new base model of the current data, in artefacts/bundle as DVC has it, and the champion."""
        lineage = {"data_version": self.data_version, "code_version": "c0"}
        save_bundle(self.bundle.with_lineage(**lineage), self.workspace.artefacts / "bundle")
        self.dvc("commit", "train", force=True)
        number = self.register("base", "")
        before = self.registry.version(CHAMPION)
        promote(self.workspace, number, before.number if before else None, now=now)
        return number

    def night(self, *subjects, now: datetime, method: str = "ucan") -> tuple[str, ...]:
        """Erase, register, promote and fulfil; the request ids."""
        workspace, ledger, key = self.workspace, self.ledger, self.workspace.pseudonym_key()
        data = load_dataset(workspace.prepared)
        for subject in subjects:
            request = ledger.submit(subject, known_of(data), now=now)
            denied = [data.item_ids[i] for i in data.concepts[subject.concept]] if subject.concept else []
            ledger.verify(request.id, now=now, verifier="desk", deny_items=denied)
        batch = ledger.claim(now=now)
        before = {"champion_before": self.champion, "data_version_before": self.data_version}
        ledger.set_stage(batch.id, "started", before, now=now)
        erase(workspace.data, workspace.prepared, [s for _, s in batch.subjects], workspace.var / "sealed.parquet", key)
        (workspace.var / "sealed.parquet").unlink()
        prepare(workspace.data, workspace.prepared, self.params, key)
        after = self.pin()
        number = self.register(method, batch.id, batch.request_ids, before["champion_before"])
        told = {"data_version": after, "version": number, "unlearned_at": now.isoformat(), "attempts": []}
        ledger.set_stage(batch.id, "promoting", told, now=now)
        promote(workspace, number, before["champion_before"], now=now)
        methods = dict.fromkeys(batch.request_ids, method)
        ledger.fulfil(batch.id, methods, now=now, data_version=after, model_version=number)
        return batch.request_ids
