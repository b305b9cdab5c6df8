"""Where raw tables come from: the simulated shop, public data sets, or the user's own two files.

Every source writes `interactions.csv`, `items.csv` and `source.json`, and the same input gives the same bytes: no
dates, rows by user, time and item (or in the source's own order where that is the time order). Tombstones already in
the folder are kept, so data fetched again cannot bring back who was forgotten.
"""

import csv
import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import DataParams
from genrec.data.files import replaced_directory
from genrec.data.simulator import simulate
from genrec.data.subjects import TOMBSTONES
from genrec.data.tables import (
    SCHEMAS,
    Tables,
    read_tables,
    refuse_empty,
    repeated_rows,
    rows_text,
    table_file,
    unordered_rows,
    write_tables,
)
from genrec.errors import DataError, unknown
from genrec.plugins import Plugin, guarded, installed

OWN = ("simulated", "tables")
"""Sources without raw files of their own."""

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
HARPER = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM TiiS 5, 4: 19:1-19:19. https://doi.org/10.1145/2827872"
)
AMAZON = (
    "Amazon review data (McAuley et al., UCSD): no explicit open licence; offered for research,",
    "with a request to cite. Do not publish reviewer ids.",
)


@dataclass(frozen=True)
class FetchReport:
    """What was fetched; also the content of `source.json`.

    Attributes: licence - lines to show the user; sha256 - of each raw input file, by name; seed - simulated only;
    provider - distribution and version of the package a source is from, where that is not genrec; time_resolution -
    seconds within which the source does not tell times apart.
    """

    name: str
    licence: tuple[str, ...]
    citation: str
    url: str
    rows: int
    users: int
    items: int
    sha256: dict[str, str]
    seed: int | None = None
    provider: str | None = None
    time_resolution: int = 1


@dataclass(frozen=True)
class Source:
    """A kind of source. `build(raw)` makes the tables of the raw files, by name; `files` are their pinned SHA-256, None
    for any. The tables of a source of another package (`genrec.sources`) are checked as a user's own are.

    time_resolution: seconds within which the source does not tell times apart. `build` may still order such rows, as
    the source does; `prepare` counts them as tied.
    """

    licence: tuple[str, ...]
    citation: str
    url: str
    files: dict[str, str | None]
    build: Callable[[dict[str, bytes]], Tables]
    zip_md5: str | None = None
    time_resolution: int = 1


def fetch(name: str, data_dir: Path, *, source_dir: Path | None, params: DataParams, seed: int) -> FetchReport:
    """Write the raw tables of source `name` to `data_dir`, replacing what is there except tombstones.

    `source_dir` holds the raw files; without it the MovieLens sets are downloaded. `seed` is the simulator's.
    Raises DataError on an unknown name, a missing file, a checksum that does not match or a failed download.
    """
    if name == "simulated":
        if source_dir:
            raise DataError("The simulated shop has no raw files. Leave out --from.")
        licence = ("Simulated data: no rights reserved (CC0), and no real person is in it.",)
        return _store(data_dir, simulate(params.simulated, seed), name, licence, "", "", {}, seed)
    if name == "tables":
        return _own_tables(data_dir, source_dir)
    source, provider = _source(name)
    raw = _local(source, source_dir) if source_dir else _download(name, source)
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in raw.items()}
    for file, digest in digests.items():
        if source.files[file] not in (None, digest):
            raise DataError(
                f"{file} of {name} has SHA-256 {digest}, expected {source.files[file]}. "
                f"Fetch the original from {source.url}."
            )
    tables = source.build(raw)
    return _store(
        data_dir, tables, name, source.licence, source.citation, source.url, digests, provider=provider,
        time_resolution=source.time_resolution,
    )  # fmt: skip


def time_resolution(data_dir: Path) -> int:
    """Seconds within which the source of the tables in `data_dir` does not tell times apart."""
    told = data_dir / "source.json"
    return json.loads(told.read_text()).get("time_resolution", 1) if told.exists() else 1


def plugins() -> dict[str, Plugin]:
    """The sources of other installed packages (`genrec.sources`), none of them imported."""
    return installed("source", [*SOURCES, *OWN])


def _source(name: str) -> tuple[Source, str | None]:
    """The source of that name, and the package it is from where that is not genrec."""
    if name in SOURCES:
        return SOURCES[name], None
    others = plugins()
    if name not in others:
        raise DataError(unknown("source", name, [*SOURCES, *OWN, *others], "See `genrec data --help`."))
    plugin = others[name]
    found: Source = plugin.load(Source)

    def build(raw: dict[str, bytes]) -> Tables:
        with TemporaryDirectory() as folder:
            write_tables(found.build(raw), Path(folder), "parquet")
            return _checked(Path(folder))

    return replace(found, build=guarded(plugin, build, DataError)), plugin.provider


def _store(
    data_dir, tables, name, licence, citation, url, digests, seed=None, provider=None, time_resolution=1
) -> FetchReport:
    users = len(tables.interactions["user_id"].unique())
    report = FetchReport(
        name, licence, citation, url, len(tables.interactions), users, len(tables.items), digests, seed, provider,
        time_resolution,
    )  # fmt: skip
    told = asdict(report)
    for key, usual in (("provider", None), ("time_resolution", 1)):
        if told[key] == usual:
            del told[key]  # files of most sources are what they were before there were others
    stones = data_dir / TOMBSTONES
    with replaced_directory(data_dir) as folder:
        write_tables(tables, folder)
        (folder / "source.json").write_text(json.dumps(told, indent=2) + "\n")
        if stones.exists():
            (folder / TOMBSTONES).write_bytes(stones.read_bytes())
    return report


def _own_tables(data_dir: Path, source_dir: Path | None) -> FetchReport:
    if source_dir is None:
        raise DataError("The source 'tables' needs --from DIR with interactions and items, as .csv or .parquet.")
    if source_dir.resolve() == data_dir.resolve():
        raise DataError(f"{source_dir} is the data folder itself. Keep your files elsewhere and give that with --from.")
    tables = _checked(source_dir)
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in _files(source_dir)}
    return _store(data_dir, tables, "tables", ("Your own data, under your own terms.",), "", "", digests)


def _files(source_dir: Path) -> list[Path]:
    return [table_file(source_dir, name) for name in SCHEMAS]


def _checked(source_dir: Path) -> Tables:
    """The two tables in a folder. Raises DataError where something is wrong with them that would go unseen later."""
    tables, files = read_tables(source_dir), _files(source_dir)
    refuse_empty(tables)
    if len(late := unordered_rows(tables.interactions)):
        raise DataError(
            f"{files[0].name}: {rows_text(late)}: older than an earlier row of the same user. "
            "Sort the file by user_id and timestamp."
        )
    if len(again := repeated_rows(tables.interactions)):
        raise DataError(
            f"{files[0].name}: {rows_text(again)}: same user and item as an earlier row. Keep the first of each."
        )
    if len(tables.items["item_id"].unique()) < len(tables.items):
        raise DataError(f"{files[1].name} has an item_id twice. Keep one row per item.")
    return tables


def _local(source: Source, source_dir: Path) -> dict[str, bytes]:
    raw = {}
    for file in source.files:
        path, packed = source_dir / file, source_dir / f"{file}.gz"
        if path.exists():
            raw[file] = path.read_bytes()
        elif packed.exists():
            raw[file] = gzip.decompress(packed.read_bytes())
        else:
            raise DataError(f"{source_dir} has no {file} (nor {file}.gz). It needs {', '.join(source.files)}.")
    return raw


def _download(name: str, source: Source) -> dict[str, bytes]:
    import httpx

    if not source.url.endswith(".zip"):
        raise DataError(f"{name} cannot be downloaded. Give the folder with {', '.join(source.files)} by --from DIR.")
    remedy = f"Unpack {source.url} yourself and give its folder with --from DIR."
    try:
        content = httpx.get(source.url, follow_redirects=True, timeout=60).raise_for_status().content
    except httpx.HTTPError as error:
        raise DataError(f"{source.url} could not be downloaded ({type(error).__name__}). {remedy}") from error
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if source.zip_md5 not in (None, md5):
        raise DataError(f"{source.url} has MD5 {md5}, expected {source.zip_md5}. {remedy}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {file: archive.read(f"{name}/{file}") for file in source.files}
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{source.url} does not hold {', '.join(source.files)}. {remedy}") from error


def _table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


def _ratings(rows: Iterable[tuple[str, str, str, str]]) -> pa.Table:
    """Interactions of (user, item, rating, time) texts, by user, time and item."""
    parsed = sorted(((u, i, int(time), float(rating)) for u, i, rating, time in rows), key=lambda r: (r[0], r[2], r[1]))
    return _table(parsed, SCHEMAS["interactions"])


def _movie(item: str, title: str, genres: list[str]) -> tuple:
    return item, title, f"{title}. {', '.join(genres)}" if genres else title, genres


ML_100K_GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def _ml_100k(raw: dict[str, bytes]) -> Tables:
    ratings = (line.split("\t") for line in raw["u.data"].decode().splitlines())
    items = []
    for line in raw["u.item"].decode("latin-1").split("\n"):
        if line:
            item, title, *_ = fields = line.split("|")
            # The first of the 19 flags at the end stands for "unknown", which is no concept.
            genres = [g for g, flag in zip(ML_100K_GENRES, fields[-18:], strict=True) if flag == "1"]
            items.append(_movie(item, title, genres))
    return Tables(_ratings(ratings), _table(sorted(items), SCHEMAS["items"]))


def _ml_latest_small(raw: dict[str, bytes]) -> Tables:
    ratings, movies = (
        list(csv.reader(io.StringIO(raw[file].decode(), newline="")))[1:] for file in ("ratings.csv", "movies.csv")
    )
    items = [_movie(i, title, [] if g == "(no genres listed)" else g.split("|")) for i, title, g in movies]
    return Tables(_ratings(ratings), _table(sorted(items), SCHEMAS["items"]))


def _amazon_beauty(raw: dict[str, bytes]) -> Tables:
    """Amazon Beauty has days between purchases, not times: the timestamp is days since the user's first one, in
    seconds, plus the place within the day. That keeps the published order, on which the literature's figures are, but
    the order within a day is by product code, not by time, and for 44 % of users the last item is one of such a day:
    treat the last item as approximate.
    """
    rows = _frame(raw, "interactions.parquet", ["user_idx", "pos", "item_idx", "gap_days"])
    rows = rows.sort_values(["user_idx", "pos"])
    day = rows.groupby("user_idx")["gap_days"].cumsum()
    time = day * 86_400 + rows.groupby(["user_idx", day]).cumcount()
    interactions = pa.table(
        [
            pa.array(rows["user_idx"].astype(str)),
            pa.array(rows["item_idx"].astype(str)),
            pa.array(time.to_numpy("int64")),
            pa.nulls(len(rows), pa.float64()),
        ],
        schema=SCHEMAS["interactions"],
    )
    catalogue = _frame(raw, "items.parquet", ["item_idx", "title", "category_paths", "leaf_category", "brand"])
    items = []
    for row in catalogue.sort_values("item_idx").itertuples():
        paths = json.loads(row.category_paths)
        brand = row.brand if isinstance(row.brand, str) else ""
        parts = [row.title, brand, *(" > ".join(path) for path in paths)]
        tags = [row.leaf_category, *(part for path in paths for part in path)]
        concepts = list(dict.fromkeys(tag.replace("|", "/") for tag in tags if isinstance(tag, str) and tag))
        items.append((str(row.item_idx), row.title, ". ".join(part for part in parts if part), concepts))
    return Tables(interactions, _table(items, SCHEMAS["items"]))


def _amazon_scientific(raw: dict[str, bytes]) -> Tables:
    """Amazon Industrial & Scientific, 2018 release, in LC-Rec's format: item ids per user in order, without times; the
    timestamp is the place in the history. Every copy of a repeated pair is kept here, `prepare` keeps the first.
    """
    histories = json.loads(raw["Scientific.inter.json"])
    catalogue = json.loads(raw["Scientific.item.json"])
    rows = [(user, str(item), place, None) for user in sorted(histories) for place, item in enumerate(histories[user])]
    items = []
    for item, facts in sorted(catalogue.items()):
        tags = [tag.strip().replace("|", "/") for tag in facts["categories"].split(",")]
        concepts = [tag for tag in dict.fromkeys(tags) if tag and tag != "Industrial & Scientific"]
        parts = [facts["title"], facts["brand"], " > ".join(concepts)]
        items.append((item, facts["title"], ". ".join(part for part in parts if part), concepts))
    return Tables(_table(rows, SCHEMAS["interactions"]), _table(items, SCHEMAS["items"]))


def _frame(raw: dict[str, bytes], file: str, columns: list[str]):
    try:
        return pq.read_table(io.BytesIO(raw[file])).select(columns).to_pandas()
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{file} is not Parquet with the columns {', '.join(columns)}. Give its folder.") from error


SOURCES = {
    "ml-100k": Source(
        licence=(
            "MovieLens 100k (GroupLens): research use only, no commercial use, acknowledge it in publications,",
            "and do not redistribute the data without separate permission.",
        ),
        citation=HARPER,
        url=f"{GROUPLENS}/ml-100k.zip",
        files={
            "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
            "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
        },
        build=_ml_100k,
        zip_md5="0e33842e24a9c977be4e0107933c0723",
    ),
    "ml-latest-small": Source(
        licence=(
            "MovieLens latest-small (GroupLens): research use, no commercial use, acknowledge it in publications;",
            "redistribution, also of transformations, only under these same conditions.",
        ),
        citation=HARPER,
        url=f"{GROUPLENS}/ml-latest-small.zip",
        files={
            "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
            "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
        },
        build=_ml_latest_small,
    ),
    "amazon-beauty": Source(
        licence=AMAZON,
        citation="R. He and J. McAuley. 2016. Ups and Downs. WWW; J. McAuley et al. 2015. SIGIR.",
        url="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        files={"interactions.parquet": None, "items.parquet": None},
        build=_amazon_beauty,
        time_resolution=86_400,
    ),
    "amazon-scientific": Source(
        licence=AMAZON,
        citation="J. Ni, J. Li and J. McAuley. 2019. Justifying Recommendations. EMNLP-IJCNLP.",
        url="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        files={"Scientific.inter.json": None, "Scientific.item.json": None},
        build=_amazon_scientific,
    ),
}
