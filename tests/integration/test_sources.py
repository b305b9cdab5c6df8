import io
import json
import shutil
import zipfile
from pathlib import Path

import httpx
import pytest

from genrec.config import DataParams, Params, SimulatedParams
from genrec.data.prepare import prepare
from genrec.data.sources import fetch
from genrec.data.tables import read_tables, unordered_rows
from genrec.errors import DataError
from genrec.validation.run import validate_prepared, validate_raw

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
PARAMS = Params()


def source_folder(name):
    folder = SHARED / {"amazon-beauty": "beauty", "amazon-scientific": "scientific-2018"}.get(name, name)
    if not folder.exists():
        pytest.skip(f"no local copy of {name}: its licence does not let it be in the repository")
    return folder


def get(name, data, source_dir=None, seed=0, params=DataParams(simulated=SimulatedParams(users=50, items=40))):
    return fetch(name, data, source_dir=source_dir, params=params, seed=seed)


@pytest.mark.parametrize(
    ("name", "raw", "prepared"),
    [
        ("ml-100k", (100_000, 943, 1682), (99_287, 943, 1349)),
        ("ml-latest-small", (100_836, 610, 9742), (90_274, 610, 3650)),
        ("amazon-beauty", (198_502, 22_363, 12_101), (198_502, 22_363, 12_101)),
        ("amazon-scientific", (58_492, 8317, 4344), (58_492, 8317, 4344)),
    ],
)
def test_public_data_has_the_published_counts_and_passes_validation(tmp_path, name, raw, prepared):
    report = get(name, tmp_path / "data", source_folder(name))
    assert (report.rows, report.users, report.items) == raw
    tables = read_tables(tmp_path / "data")
    assert len(unordered_rows(tables.interactions)) == 0
    validate_raw(tables, PARAMS, b"key").raise_for_failure()
    counts = prepare(tmp_path / "data", tmp_path / "prepared", PARAMS, b"key")
    assert (counts.rows, counts.users, counts.items) == prepared
    validate_prepared(tmp_path / "prepared", PARAMS, b"key").raise_for_failure()


def test_movielens_items_have_text_and_genres_but_no_unknown_one(tmp_path):
    get("ml-100k", tmp_path, source_folder("ml-100k"))
    items = {row["item_id"]: row for row in read_tables(tmp_path).items.to_pylist()}
    assert items["1"]["text"] == "Toy Story (1995). Animation, Children's, Comedy"
    assert items["1"]["concepts"] == ["Animation", "Children's", "Comedy"]
    assert items["267"]["concepts"] == []
    assert len({genre for row in items.values() for genre in row["concepts"]}) == 18


def test_beauty_keeps_the_order_of_its_source(tmp_path):
    import pandas as pd

    folder = source_folder("amazon-beauty")
    get("amazon-beauty", tmp_path, folder)
    tables = read_tables(tmp_path)
    source = pd.read_parquet(folder / "interactions.parquet")
    assert tables.interactions["item_id"].to_pylist() == source["item_idx"].astype(str).tolist()
    frame = tables.interactions.to_pandas()
    gaps = frame.groupby("user_id", sort=False)["timestamp"].diff().dropna()
    assert gaps.min() >= 1
    assert tables.items["concepts"][0].as_py() == ["Nail Polish", "Beauty", "Makeup", "Nails"]
    assert tables.items["text"][0].as_py().endswith("OPI. Beauty > Makeup > Nails > Nail Polish")


def test_a_source_that_was_changed_is_refused(tmp_path):
    folder = tmp_path / "from"
    shutil.copytree(source_folder("ml-100k"), folder)
    (folder / "u.item").chmod(0o644)
    with (folder / "u.item").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"u\.item of ml-100k has SHA-256"):
        get("ml-100k", tmp_path / "data", folder)
    (folder / "u.item").unlink()
    with pytest.raises(DataError, match=r"has no u\.item"):
        get("ml-100k", tmp_path / "data", folder)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(httpx, "get", refuse)
    with pytest.raises(DataError, match="--from DIR"):
        get("ml-100k", tmp_path / "data")
    archive = io.BytesIO()
    zipfile.ZipFile(archive, "w").close()
    answer = httpx.Response(200, content=archive.getvalue(), request=httpx.Request("GET", "http://x"))
    monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)
    with pytest.raises(DataError, match="MD5"):
        get("ml-100k", tmp_path / "data")
    with pytest.raises(DataError, match=r"does not hold ratings\.csv"):
        get("ml-latest-small", tmp_path / "data")
    with pytest.raises(DataError, match="cannot be downloaded"):
        get("amazon-beauty", tmp_path / "data")
    for name in ("interactions", "items"):
        (tmp_path / f"{name}.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="not Parquet with the columns user_idx"):
        get("amazon-beauty", tmp_path / "data", tmp_path)
    assert not (tmp_path / "data").exists()


def test_a_download_gives_what_the_local_copy_gives(tmp_path, monkeypatch):
    import gzip

    folder = source_folder("ml-latest-small")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("ratings.csv", "movies.csv"):
            file.writestr(f"ml-latest-small/{name}", gzip.decompress((folder / f"{name}.gz").read_bytes()))
    answer = httpx.Response(200, content=archive.getvalue(), request=httpx.Request("GET", "http://x"))
    monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)
    get("ml-latest-small", tmp_path / "a")
    get("ml-latest-small", tmp_path / "b", folder)
    assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "b").iterdir())
    ]


def test_the_simulated_shop_is_byte_deterministic_and_says_its_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        get("simulated", tmp_path / name, seed=seed)
    contents = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "abc"]
    assert set(contents[0]) == {"interactions.csv", "items.csv", "source.json"}
    assert contents[0] == contents[1]
    assert contents[0]["interactions.csv"] != contents[2]["interactions.csv"]
    source = json.loads(contents[0]["source.json"])
    assert (source["name"], source["seed"]) == ("simulated", 1)
    assert source["licence"]


def test_fetching_again_keeps_tombstones(tmp_path):
    get("simulated", tmp_path)
    stones = f"digest,kind\n{'0' * 64},user\n"
    (tmp_path / "tombstones.csv").write_text(stones)
    get("simulated", tmp_path, seed=5)
    assert (tmp_path / "tombstones.csv").read_text() == stones


ITEMS = "item_id,title,text,concepts\ni,T,x,\nj,T,x,\n"
HEADER = "user_id,item_id,timestamp,rating\n"


@pytest.mark.parametrize(
    ("rows", "items", "message"),
    [
        ("secret,i,5,\nb,i,1,\nsecret,j,4,\n", ITEMS, r"interactions\.csv: row 3: older .* Sort the file"),
        ("secret,i,5,\nsecret,i,6,\n", ITEMS, r"interactions\.csv: row 2: same user and item .* Keep the first"),
        ("secret,i,5,\n", ITEMS + "i,T,x,\n", r"items\.csv has an item_id twice"),
    ],
)
def test_own_tables_are_refused_with_the_row_and_without_the_user(tmp_path, rows, items, message):
    (tmp_path / "interactions.csv").write_text(HEADER + rows)
    (tmp_path / "items.csv").write_text(items)
    with pytest.raises(DataError, match=message) as error:
        get("tables", tmp_path / "data", tmp_path)
    assert "secret" not in str(error.value)


def test_own_tables_are_taken_in_their_own_order(tmp_path):
    (tmp_path / "interactions.csv").write_text(HEADER + "b,j,1,\na,i,3,2\nb,i,1,\n")
    (tmp_path / "items.csv").write_text(ITEMS)
    report = get("tables", tmp_path / "data", tmp_path)
    assert read_tables(tmp_path / "data").interactions["user_id"].to_pylist() == ["b", "a", "b"]
    assert set(report.sha256) == {"interactions.csv", "items.csv"}


def test_unknown_sources_are_named(tmp_path):
    with pytest.raises(DataError, match="Known sources near it: ml-100k"):
        get("ml-100", tmp_path)
