"""DVC's remote and MLflow's artefacts on S3, against moto's server over HTTP."""

import shutil
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from moto.server import ThreadedMotoServer

from genrec import purge
from genrec.data.subjects import Subject
from genrec.models.bundle import read_manifest
from tasks.objects import dvc_objects
from tests.unit.past import Past

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


def test_versions_and_data_on_s3_are_served_from_it_and_purged_there(url, tmp_path, shop, bundle, params, dataset):
    s3 = boto3.client("s3", endpoint_url=url)
    s3.create_bucket(Bucket=BUCKET)

    def keys(prefix):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {entry["Key"] for page in pages for entry in page.get("Contents", [])}

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
