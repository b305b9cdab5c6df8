"""The DVC chain: `dvc repro` alone rebuilds the base model, a second run does nothing, the pin is reproducible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import genrec

ROOT = Path(__file__).parents[2]


def dvc(home, *arguments):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "GENREC_HOME": str(home)}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_second_repro_does_nothing(trained):
    dvc(trained, "repro")
    stamps = {p: p.stat().st_mtime_ns for p in (trained / "artefacts").rglob("*") if p.is_file()}
    assert "up to date" in dvc(trained, "repro")
    assert stamps == {p: p.stat().st_mtime_ns for p in (trained / "artefacts").rglob("*") if p.is_file()}


def test_only_what_depends_on_a_parameter_is_built_again(trained):
    params = yaml.safe_load((trained / "params.yaml").read_text())
    (trained / "params.yaml").write_text(yaml.safe_dump({**params, "train": {**params["train"], "epochs": 1}}))
    try:
        stale = json.loads(dvc(trained, "status", "--json"))
    finally:
        (trained / "params.yaml").write_text(yaml.safe_dump(params))
    assert set(stale) >= {"train"}
    assert not {"prepare", "validate", "embed", "sid", "backbone"} & set(stale)


def test_metrics_and_plots_are_known_to_dvc(trained):
    shown = json.loads(dvc(trained, "metrics", "show", "--json"))[""]["data"]
    metrics = {Path(path).stem: found["data"] for path, found in shown.items()}
    assert metrics["metrics"]["utility"]["ndcg@10"]["low"] > 0
    assert metrics["metrics"]["gate_values"]["integrity"] == 0
    assert metrics["metrics"]["gate_values"]["base"] > 0
    assert metrics["probes"]["non-finite weights"] == 0
    assert 0 <= metrics["quality"]["collision_share"] < 1
    drawn = json.loads(dvc(trained, "plots", "show", "--json"))["data"]
    points = {name: plot["content"]["data"]["values"] for name, (plot,) in drawn.items()}
    gates = {gate["name"]: gate for gate in points["Gates of the base model"]}
    assert gates["base"]["low"] <= metrics["metrics"]["gate_values"]["base"] <= gates["base"]["high"]
    assert [level["level"] for level in points["Use of the SID codes"]] == [1, 2, 3]
    for stage in ("backbone", "train"):
        losses = [float(point["loss"]) for point in points[f"artefacts/{stage}_curve.csv"]]
        assert losses[-1] < losses[0]


def test_the_pin_in_git_is_what_one_command_makes(tmp_path):
    """README: `genrec data fetch simulated` gives the data version that data.dvc pins."""
    home = tmp_path / "fresh"
    genrec(tmp_path, "init", str(home))
    (home / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    genrec(home, "data", "fetch", "simulated")
    committed = subprocess.run(
        ["git", "show", "HEAD:data.dvc"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (
        yaml.safe_load((home / "data.dvc").read_text())["outs"][0]["md5"] == yaml.safe_load(committed)["outs"][0]["md5"]
    )
