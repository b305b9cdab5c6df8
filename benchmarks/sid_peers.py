"""Our semantic IDs of Amazon Beauty and the published ones on the same quality report, as a Markdown table.

    python benchmarks/sid_peers.py --from BEAUTY_DIR --peers PEERS_DIR [--home workspaces/sid-peers] [--json FILE]

BEAUTY_DIR holds the raw files of the source `amazon-beauty`; PEERS_DIR the files `*.index.json.gz`, whose item ids
count from 0 in the order of the source's, which count from 1. Purity is that of the leaf category: every item has one,
and all share the root. Embeddings are kept in the home by what they are of.
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from genrec.config import Params, SidParams
from genrec.data.files import write_json
from genrec.data.sources import fetch
from genrec.data.tables import read_tables
from genrec.pipeline import code_version
from genrec.sid.build import assign_table, fit_codebooks, quantisation
from genrec.sid.embed import embed_texts
from genrec.sid.published import read_published
from genrec.sid.quality import quality_report
from genrec.sid.table import SidTable

OURS = {
    "genrec RQ-KMeans, dedup digit": SidParams(),
    "genrec RQ-KMeans, repair": SidParams(collisions="repair"),
    "genrec RQ-KMeans, 4 levels, repair": SidParams(levels=4, collisions="repair"),
    "genrec RQ-VAE, dedup digit": SidParams(quantiser="rq_vae"),
    "genrec RQ-VAE, 4 levels, dedup digit": SidParams(quantiser="rq_vae", levels=4),
}
COLUMNS = (
    "SIDs", "levels", "colliding items", "codes used", "entropy ratio", "Gini", "items per prefix 1 / 2", "largest 2",
    "purity 1 / 2", "chance", "quantisation error", "extra by repair",
)  # fmt: skip


def cached_embeddings(texts: list[str], params: Params, home: Path) -> np.ndarray:
    """Embeddings [n, d] of `texts`, from the file named by their hash where there is one."""
    digest = hashlib.sha256("\0".join([params.embed.encoder, *texts]).encode()).hexdigest()
    path = home / f"embeddings-{digest[:16]}.safetensors"
    if not path.exists():
        save_file({"embeddings": embed_texts(texts, params.embed)}, path)
    return load_file(path)["embeddings"]


def report(table: SidTable, ids: Sequence[str], leaves: Sequence[str]) -> dict:
    """The quality report of `table`; `leaves` is the leaf category of each of `ids`, all of the catalogue."""
    leaf = dict(zip(ids, leaves, strict=True))
    tags = np.array([leaf[item] for item in table.item_ids])
    return quality_report(table, {name: np.flatnonzero(tags == name) for name in sorted(set(leaves))})


def numbered(table: SidTable) -> SidTable:
    """A published table, whose item ids count from 0, with those of the source, which count from 1."""
    return replace(table, item_ids=tuple(str(int(item) + 1) for item in table.item_ids))


def row(name: str, found: dict) -> list[str]:
    """One line of the table, of a report."""
    levels = found["levels"]

    def each(key: str, form: str = "{:.2f}", of: slice = slice(None)) -> str:
        return " / ".join(form.format(level[key]) for level in levels[of])

    two = slice(2)
    return [
        name, str(len(levels)), f"{found['collision_share']:.1%}", each("codes_used", "{}"), each("entropy_ratio"),
        each("gini"), each("items_per_prefix_mean", "{:.1f}", two), str(levels[1]["items_per_prefix_max"]),
        each("concept_purity", "{:.1%}", two), each("concept_purity_chance", "{:.1%}", two),
        *(f"{found[key]:.4f}" if key in found else "" for key in ("quantisation_error", "extra_quantisation_error")),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--home", type=Path, default=Path("workspaces/sid-peers"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    params = Params()
    options.home.mkdir(parents=True, exist_ok=True)
    fetch("amazon-beauty", options.home / "data", source_dir=options.source, params=params.data, seed=params.seed)
    items = read_tables(options.home / "data").items.sort_by("item_id")
    ids, leaves = items["item_id"].to_pylist(), [tags[0] for tags in items["concepts"].to_pylist()]
    embeddings = cached_embeddings(items["text"].to_pylist(), params, options.home)
    reports = {}
    for name, sid in OURS.items():
        codebooks = fit_codebooks(embeddings, params.model_copy(update={"sid": sid}))
        table = assign_table(ids, embeddings, codebooks, sid.collisions)
        reports[name] = report(table, ids, leaves) | quantisation(table, embeddings, codebooks)
    for path in sorted(options.peers.glob("*.index.json.gz")):
        name = path.name.removesuffix(".index.json.gz")
        reports[name] = report(numbered(read_published(path)), ids, leaves)
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for name, found in reports.items():
        print("| " + " | ".join(row(name, found)) + " |")
    if options.json:
        write_json(options.json, {"code_version": code_version(), "seed": params.seed, "sids": reports})


if __name__ == "__main__":
    main()
