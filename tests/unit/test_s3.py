"""DVC's remote and MLflow's artefacts on S3, against moto's server over HTTP."""

import shutil
from datetime import UTC, datetime, timedelta

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from genrec import purge
from genrec.data.subjects import Subject
from genrec.doctor import look_at
from genrec.models.bundle import read_manifest
from tasks.objects import dvc_objects
from tests.servers import mlflow_server, wait_for
from tests.unit.past import Past, migrated

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
BUCKET = "genrec"


@pytest.fixture
def url(monkeypatch):
    """The server's address; credentials and MLflow's endpoint are in the environment, as in production."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "MLFLOW_S3_ENDPOINT_URL": address,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield address
    server.stop()


@pytest.fixture
def keys(url):
    """The bucket's keys that begin with a prefix."""
    s3 = boto3.client("s3", endpoint_url=url)
    s3.create_bucket(Bucket=BUCKET)

    def under(prefix: str) -> set[str]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {entry["Key"] for page in pages for entry in page.get("Contents", [])}

    return under


def test_versions_and_data_on_s3_are_served_from_it_and_purged_there(
    url, keys, tmp_path, shop, bundle, params, dataset, monkeypatch
):  # fmt: skip
    home = tmp_path / "shop"
    past = Past(home, shop.root, bundle, params, mlflow_artefacts=f"s3://{BUCKET}/mlflow")
    past.remote(f"s3://{BUCKET}/dvc", endpointurl=url)
    past.train(NOW)
    past.dvc("push")
    old = keys("dvc/")
    assert f"dvc/files/md5/{past.data_version[:2]}/{past.data_version[2:]}" in old
    first, base = past.data_version, keys("mlflow/")
    assert [key for key in base if key.endswith("adapter_model.safetensors")]
    kept = past.registry.bundle_path("1")
    assert past.registry.bundle_path("1") == kept  # downloaded once
    s3 = boto3.client("s3", endpoint_url=url)
    adapter = next(key for key in base if key.endswith("adapter_model.safetensors"))
    whole = s3.get_object(Bucket=BUCKET, Key=adapter)["Body"].read()
    found = []
    for change in (
        lambda: None,
        lambda: s3.put_object(Bucket=BUCKET, Key=adapter, Body=whole[:-1]),
        lambda: s3.delete_object(Bucket=BUCKET, Key=adapter),
    ):
        change()
        found += look_at("champion", past.workspace, NOW)
    s3.put_object(Bucket=BUCKET, Key=adapter, Body=whole)
    assert [one.state for one in found] == ["ok", "broken", "broken"]
    assert all("lacks adapter/adapter_model.safetensors of version 1" in one.says for one in found[1:])
    assert str(kept) in found[1].remedy
    (request,) = past.night(Subject("user", dataset.user_ids[dataset.trained_users[5]]), now=NOW)
    past.dvc("push", ["data.dvc", "prepare"])

    with dvc_objects(past.workspace) as objects:
        told = purge.run(past.workspace, objects, NOW + timedelta(days=29))
        assert told["removed"] == []
        assert {item["kind"] for item in told["waiting"]} == {"version", "objects"}
        assert keys("dvc/") > old
    with dvc_objects(past.workspace) as objects:
        told = purge.run(past.workspace, objects, NOW + timedelta(days=30))
    assert all(item["holds"] == [request] for item in told["removed"])
    left = keys("dvc/")
    assert f"dvc/files/md5/{first[:2]}/{first[2:]}" not in left
    assert f"dvc/files/md5/{past.data_version[:2]}/{past.data_version[2:]}" in left
    assert not keys("mlflow/") & base
    assert not kept.exists()
    assert read_manifest(past.registry.bundle_path("2"))["backbone_hash"] == bundle.backbone.hash
    assert past.registry.bundle("2").lineage.batch_id

    rows = (home / "data" / "interactions.csv").read_bytes()
    for folder in (home / "data", home / "prepared", home / ".dvc" / "cache"):
        shutil.rmtree(folder)
    past.dvc("pull", ["data.dvc", "prepare"])
    assert (home / "data" / "interactions.csv").read_bytes() == rows
    assert past.dvc("status", targets=["data.dvc", "prepare"]) == {}

    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (found,) = look_at("champion", past.workspace, NOW)
    assert (found.state, found.says) == (
        "broken",
        "the artefact store of version 2 does not answer (EndpointConnectionError)",
    )


def test_an_mlflow_server_keeps_the_artefacts_where_it_decides(keys, tmp_path, shop, bundle, params, monkeypatch):
    """As deploy/compose.yaml runs it: the client knows the server's address alone, and nothing of the store."""
    database = shutil.copy(migrated(), tmp_path / "mlflow.db")
    with mlflow_server(database, "--serve-artifacts", "--artifacts-destination", f"s3://{BUCKET}/mlflow") as (uri, _):
        wait_for(lambda: httpx.get(f"{uri}/health").is_success, 240)
        monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        past = Past(tmp_path / "shop", shop.root, bundle, params, mlflow_uri=uri)
        past.train(NOW)
        first = keys("mlflow/")
        assert [key for key in first if key.endswith("adapter_model.safetensors")]
        assert not [path for path in past.workspace.mlruns.rglob("*") if path.is_file() and path.name != "mlflow.db"]
        assert past.champion == "1"
        assert past.registry.bundle("1").backbone.hash == bundle.backbone.hash  # fetched through the server
        second = past.register("ucan", "b-1")
        past.registry.log_file(past.registry.version(second).run_id, past.workspace.params_file)
        run_id = past.registry.version(second).run_id
        assert [key for key in keys("mlflow/") - first if key.endswith("params.yaml") and run_id in key]
        past.registry.remove(second)
        assert keys("mlflow/") == first
        assert past.registry.version(second) is None
        past.registry.remove_run(run_id)  # what a removal cut short repeats
        assert keys("mlflow/") == first
