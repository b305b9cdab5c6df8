"""The MLflow model in this process: it follows the champion, and a version that knows the forgotten is not served."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import packages_distributions
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch

from genrec.data.subjects import Subject
from genrec.errors import ConfigError, RegistryError, ServingError
from genrec.models.device import best_device
from genrec.registry import SERVED_BY, requirements
from genrec.served import Served, served_model
from genrec.serving import recommend
from tests.unit.past import Past

ROOT = Path(__file__).parents[2]
NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
VARIABLES = ("GENREC_HOME", "GENREC_LEDGER_URL", "GENREC_MLFLOW_URI", "GENREC_PSEUDONYM_KEY")


@pytest.fixture
def elsewhere(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def past(tmp_path_factory, shop, bundle, params, small, damaged):
    """1 the champion, 2 a candidate with other weights; as it is before the night."""
    own = small(params, "serving", refresh_seconds=1e-6)
    past = Past(tmp_path_factory.mktemp("served") / "shop", shop.root, replace(bundle, params=own), own)
    past.train(NOW)
    past.bundle = replace(damaged(3.0), params=own)
    past.register("ucan", "b-1", parent="1")
    return past


@pytest.fixture
def history(bundle):
    return list(bundle.table.item_ids[3:6])


def answer(model, history):
    (items,) = model.predict(pd.DataFrame({"history": [history]}), params={"k": 5}).item_ids
    return list(items)


def expected(bundle, history):
    return [item["item_id"] for item in recommend(bundle, bundle.model(), [history], 5)[0]]


def load(past, name):
    return mlflow.pyfunc.load_model(f"models:/genrec{name}")


def test_the_champion_is_followed_and_a_pinned_version_stays_until_it_knows_somebody(
    past, bundle, dataset, damaged, history, elsewhere, monkeypatch
):
    first, second = expected(bundle, history), expected(past.bundle, history)
    assert first != second
    apart = [load(past, "@champion"), load(past, "/2")]
    monkeypatch.setenv("GENREC_HOME", str(past.workspace.root))
    monkeypatch.setenv("GENREC_PSEUDONYM_KEY", "key")
    followed, pinned = load(past, "@champion"), load(past, "/2")
    assert (answer(followed, history), answer(pinned, history)) == (first, second)

    past.bundle = replace(damaged(-3.0), params=past.bundle.params)
    third = expected(past.bundle, history)
    assert third not in (first, second)
    past.night(Subject("user", dataset.user_ids[dataset.trained_users[5]]), now=NOW + timedelta(days=1))
    assert answer(followed, history) == third
    with pytest.raises(RegistryError, match=r"Version 2 is older than 1 fulfilled requests .* not served"):
        answer(pinned, history)
    with pytest.raises(RegistryError, match="Version 1 is older than 1 fulfilled requests"):
        load(past, "/1")  # as a worker that starts anew from the files of the first champion
    assert answer(load(past, "/3"), history) == third
    assert [answer(model, history) for model in apart] == [first, second]  # a file, where no ledger is named
    monkeypatch.setenv("GENREC_LEDGER_URL", f"sqlite:///{past.workspace.root / 'none.db'}")
    with pytest.raises(ServingError, match=r"requests cannot be read .*models:/NAME@champion"):
        load(past, "/1")


def test_a_workspace_that_does_not_have_the_version_is_refused(
    past, tmp_path, shop, bundle, params, elsewhere, monkeypatch
):
    directory = past.registry.bundle_path("2")
    monkeypatch.setenv("GENREC_LEDGER_URL", past.workspace.ledger_url)
    with pytest.raises(ConfigError, match="set GENREC_HOME or GENREC_MLFLOW_URI"):
        served_model(directory)
    other = Past(tmp_path / "shop", shop.root, bundle, params)
    other.train(NOW)
    monkeypatch.setenv("GENREC_HOME", str(other.workspace.root))
    with pytest.raises(RegistryError, match="is no version of 'genrec' in the registry of GENREC_HOME"):
        served_model(directory)


def test_the_logged_requirements_are_published_packages_as_installed_here(past):
    model = Path(mlflow.artifacts.download_artifacts("models:/genrec/1"))
    logged = (model / "requirements.txt").read_text().split()
    assert sorted(logged) == sorted(requirements())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = " ".join(project["dependencies"])
    assert [name for name in SERVED_BY if name not in declared] == []
    pinned = (ROOT / "constraints.txt").read_text().lower().splitlines()
    assert [line for line in logged if not any(one.startswith(f"{line.partition('==')[0]}==") for one in pinned)] == []
    for file in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        assert "genrec" not in (model / file).read_text()


ASK = """
import json, sys, mlflow, pandas
model = mlflow.pyfunc.load_model("models:/genrec@champion")
model.predict(pandas.DataFrame({"history": [[sys.argv[1]]]}))
print(json.dumps([m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] == "genrec"]))
"""


def test_the_requirements_name_all_that_the_served_model_imports(past, history, elsewhere):
    environment = {"GENREC_HOME": str(past.workspace.root), "MLFLOW_TRACKING_URI": past.workspace.mlflow_uri}
    done = subprocess.run([sys.executable, "-c", ASK, history[0]], env={**os.environ, **environment}, cwd=ROOT,
                          capture_output=True, text=True, check=True)  # fmt: skip
    files = json.loads(done.stdout.splitlines()[-1])
    assert len(files) > 20
    imported = set()
    for file in filter(None, files):
        for node in ast.parse(Path(file).read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    known = packages_distributions()
    outside = {known[name][0].lower() for name in imported if name in known} - {"genrec"}
    assert outside <= set(SERVED_BY), outside - set(SERVED_BY)


def test_without_genrec_the_model_says_where_it_runs(past, elsewhere):
    blocked = "import sys; sys.modules['genrec'] = None\nimport mlflow\nmlflow.pyfunc.load_model(sys.argv[1])"
    model = mlflow.artifacts.download_artifacts("models:/genrec/1")
    done = subprocess.run([sys.executable, "-c", blocked, model], capture_output=True, text=True)
    assert done.returncode == 1
    assert "runs where genrec is installed: serve it from there with --env-manager local" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_serves_the_lists_of_the_cpu(bundle):
    ids = bundle.table.item_ids
    histories, denied = [list(ids[3:6]), [ids[20]], list(ids[30:44])], ids[7:12]
    served = Served.of(bundle)
    assert served.model.device.type == "cuda"
    here, there = (recommend(bundle, model, histories, 10, denied) for model in (bundle.model(), served.model))
    for ours, theirs in zip(here, there, strict=True):
        assert [item["score"] for item in theirs] == pytest.approx([item["score"] for item in ours], abs=1e-3)
        assert len({item["item_id"] for item in ours} ^ {item["item_id"] for item in theirs}) <= 2


def test_a_served_model_is_on_the_best_device(bundle):
    assert {parameter.device.type for parameter in Served.of(bundle).model.parameters()} == {best_device().type}
