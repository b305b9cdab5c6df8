"""Base model and one night on MovieLens 100k: 20 users and the concept Horror.

    python benchmarks/ml100k_night.py --from DIR [--home workspaces/ml-100k] [--seed 0] [--json FILE]

Makes the workspace when it is not there, trains the base model (or reuses it), submits the requests, runs the night and
prints the figures README and RESULTS.md quote. DIR is a local copy of ml-100k; without --from it is downloaded.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

USERS = 20
CONCEPT = "Horror"


def genrec(home: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "GENREC_HOME": str(home), "PATH": path}
    command = [sys.executable, "-m", "genrec.cli", *arguments]
    return subprocess.run(command, cwd=home, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--home", type=Path, default=Path("workspaces/ml-100k"))
    parser.add_argument("--seed", type=int, default=0, help="which users are forgotten")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    home = options.home.resolve()
    if not (home / "params.yaml").exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        genrec(home.parent, "init", str(home))
    if not (home / "data").exists():
        local = ["--from", str(options.source.resolve())] if options.source else []
        genrec(home, "data", "fetch", "ml-100k", *local)
    started = time.perf_counter()
    genrec(home, "train", "--json")
    train_s = time.perf_counter() - started

    metrics = json.loads((home / "artefacts" / "metrics.json").read_text())
    rows = pd.read_parquet(home / "prepared" / "interactions.parquet")
    trained = sorted(rows[rows.split == "train"].user_id.unique())
    for user in np.random.default_rng(options.seed).choice(trained, USERS, replace=False):
        genrec(home, "forget", "user", str(user), "--json")
    genrec(home, "forget", "concept", CONCEPT, "--json")
    started = time.perf_counter()
    summary = json.loads(genrec(home, "night", "--json"))
    night_s = time.perf_counter() - started
    result = {
        "base": {name: metrics["utility"][name] for name in ("recall@10", "ndcg@10")},
        "tied_targets": metrics["tied_targets"],
        "train_s": round(train_s, 1),
        "night_s": round(night_s, 1),
        "outcome": summary["outcome"],
        "champion": [summary["champion_before"], summary["champion_after"]],
        "attempts": [
            {
                "group": a["group"],
                "method": a["method"],
                "verdict": a["verdict"],
                "wall_s": a["wall_s"],
                "gates": {g["name"]: [g["verdict"], g["value"], g["low"], g["high"]] for g in a["gates"]},
            }
            for a in summary["attempts"]
        ],
        "utility": summary["utility"],
        "forgetting": summary["forgetting"],
        "seed": options.seed,
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
