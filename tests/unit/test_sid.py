"""Semantic IDs: quantiser, table, diff and quality figures, against brute force in float64."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.config import EmbedParams, SidParams
from genrec.errors import DataError
from genrec.sid.embed import embed_texts
from genrec.sid.quality import gini, purity, quality_report
from genrec.sid.quantise import assign, fit, load_codebooks, residuals_along, save_codebooks, squared_distances
from genrec.sid.table import (
    SidLineage,
    SidTable,
    Vocabulary,
    build_table,
    dedup_digits,
    load_table,
    reassign,
    save_table,
    sid_diff,
)


def slow_path(z, centroids):
    """Codes and residuals of one embedding, in plain float64 loops over the equations of methods.md."""
    r = z.astype(np.float64)
    r = r / np.sqrt(sum(x * x for x in r))
    codes, path = [], []
    for level in centroids.astype(np.float64):
        path.append(r)
        distances = [sum((a - b) ** 2 for a, b in zip(r, c, strict=True)) for c in level]
        codes.append(int(np.argmin(distances)))
        r = r - level[codes[-1]]
        r = r / np.sqrt(sum(x * x for x in r))
    return codes, path


def table_of(sids, sizes):
    return SidTable(tuple(f"i{i:02d}" for i in range(len(sids))), np.array(sids, np.int32), Vocabulary(sizes))


def test_assignment_and_residuals_follow_the_recipe(embeddings, codebooks):
    codes = assign(embeddings, codebooks)
    residuals = residuals_along(embeddings, codes, codebooks)
    for i, z in enumerate(embeddings):
        slow_codes, slow_residuals = slow_path(z, codebooks.centroids)
        assert codes[i].tolist() == slow_codes
        np.testing.assert_allclose(residuals[i], slow_residuals, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(residuals, axis=2), 1, atol=1e-12)


def test_distances_are_exact_also_between_near_points():
    rng = np.random.default_rng(0)
    c = rng.normal(size=(5, 16)).astype(np.float32)
    r = c[[0, 3, 3]] + 1e-4 * rng.normal(size=(3, 16))
    slow = [[sum((a - float(b)) ** 2 for a, b in zip(x, y, strict=True)) for y in c] for x in r]
    np.testing.assert_allclose(squared_distances(r, c), slow, atol=1e-13)


def test_an_item_has_the_same_codes_whatever_its_neighbours_and_its_length(embeddings, codebooks):
    codes = assign(embeddings, codebooks)
    order = np.random.default_rng(2).permutation(len(embeddings))
    np.testing.assert_array_equal(assign(embeddings[order], codebooks), codes[order])
    np.testing.assert_array_equal(assign(embeddings[7:8], codebooks), codes[7:8])
    np.testing.assert_array_equal(assign(4 * embeddings, codebooks), codes)


def test_residuals_along_other_codes_subtract_those(embeddings, codebooks):
    codes = np.random.default_rng(0).integers(8, size=(len(embeddings), 3))
    residuals = residuals_along(embeddings, codes, codebooks)
    r = residuals[:, 0] - codebooks.centroids[0].astype(np.float64)[codes[:, 0]]
    np.testing.assert_allclose(residuals[:, 1], r / np.linalg.norm(r, axis=1, keepdims=True), atol=1e-12)


def test_an_item_that_is_its_own_centroid_gets_finite_codes():
    eye = np.eye(4, dtype=np.float32)
    codebooks = fit(eye, levels=2, codes=4, iterations=5, seed=0)
    codes = assign(eye, codebooks)
    assert sorted(codes[:, 0]) == [0, 1, 2, 3]
    assert np.isfinite(residuals_along(eye, codes, codebooks)).all()


def test_fit_is_seeded_and_serves_every_code(embeddings, codebooks):
    again = fit(embeddings, levels=3, codes=8, iterations=10, seed=0)
    np.testing.assert_array_equal(again.centroids, codebooks.centroids)
    assert not np.array_equal(fit(embeddings, 3, 8, 10, seed=1).centroids, codebooks.centroids)
    codes = assign(embeddings, codebooks)
    assert all(len(np.unique(codes[:, level])) == 8 for level in range(3))


def test_refusals_name_the_value(embeddings):
    with pytest.raises(DataError, match=r"sid.codes = 60 is larger than the catalogue \(59 items\)"):
        fit(embeddings, levels=2, codes=60, iterations=2, seed=0)
    for bad in (np.nan, np.inf):
        broken = embeddings.copy()
        broken[3, 2] = bad
        with pytest.raises(DataError, match="NaN or infinity"):
            fit(broken, levels=2, codes=8, iterations=2, seed=0)


def test_codebooks_round_trip(codebooks, tmp_path):
    save_codebooks(replace(codebooks, seed=41), tmp_path / "c.safetensors")
    loaded = load_codebooks(tmp_path / "c.safetensors")
    assert loaded.seed == 41
    np.testing.assert_array_equal(loaded.centroids, codebooks.centroids)
    assert (loaded.levels, loaded.codes) == (3, 8)


@pytest.mark.parametrize(
    ("items", "codes"),
    [(1, 1), (5, 5), (16, 16), (320, 16), (1_349, 32), (3_883, 128), (9_999, 256), (10_000, 256), (500_000, 256)],
)
def test_automatic_code_count(items, codes):
    assert SidParams().codes_for(items) == codes
    assert SidParams(codes=24).codes_for(items) == 24


def test_token_blocks_of_the_levels_do_not_overlap():
    vocabulary = Vocabulary((8, 5, 3))
    assert vocabulary.offsets.tolist() == [2, 10, 15]
    assert vocabulary.size == 18
    table = table_of([[0, 0, 0], [7, 4, 2]], (8, 5, 3))
    assert table.tokens.tolist() == [[2, 10, 15], [9, 14, 17]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40), st.data())
def test_dedup_digits_are_the_smallest_free_ones(codes, data):
    codes = np.array(codes, np.int32)
    split = data.draw(st.integers(0, len(codes)))
    taken = np.column_stack([codes[:split], data.draw(st.permutations(range(split)))]).astype(np.int32)
    digits = dedup_digits(codes[split:], taken)
    used = {tuple(row) for row in taken.tolist()}
    for row, digit in zip(codes[split:].tolist(), digits.tolist(), strict=True):
        assert digit == next(d for d in range(len(codes) + 1) if (*row, d) not in used)
        used.add((*row, digit))
    assert len(used) == len(codes)


def test_tables_have_room_for_as_many_collisions_again(table, embeddings, codebooks):
    np.testing.assert_array_equal(table.sids[:, :-1], assign(embeddings, codebooks))
    crowded = build_table([f"i{i}" for i in range(7)], np.zeros((7, 2), np.int32), 4)
    assert crowded.sids[:, -1].tolist() == list(range(7))
    assert crowded.vocabulary.sizes == (4, 4, 14)


@pytest.mark.parametrize(
    ("sids", "message"),
    [
        ([[0, 0], [0, 0]], "same SID"),
        ([[0, 4], [0, 0]], "outside its vocabulary"),
        ([[0, -1], [0, 0]], "outside its vocabulary"),
        ([[0, 0, 0], [0, 1, 0]], "codes for 2 items"),
    ],
)
def test_impossible_tables_are_refused(sids, message):
    with pytest.raises(DataError, match=message):
        table_of(sids, (2, 4))


def test_reassign_moves_the_given_rows_only():
    before = table_of([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0], [1, 1, 3]], (2, 2, 4))
    after = reassign(before, np.array([0, 2, 4]), np.array([[1, 1], [0, 1], [1, 0]], np.int32))
    assert after.sids.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert before.sids.tolist()[0] == [0, 0, 0]
    changes = sid_diff(before, after)
    assert [(c["item_id"], c["level"]) for c in changes] == [("i00", 1), ("i04", 2)]
    assert changes[0]["before"] == [0, 0, 0]
    assert changes[0]["after"] == [1, 1, 1]
    assert sid_diff(before, before) == []


def test_a_row_reassigned_to_its_own_codes_keeps_its_digit():
    before = table_of([[0, 0, 0], [0, 0, 1], [0, 0, 3]], (2, 2, 4))
    same = reassign(before, np.array([2, 1]), np.zeros((2, 2), np.int32))
    np.testing.assert_array_equal(same.sids, before.sids)


def test_a_row_that_moves_in_makes_room_for_one_that_is_given_and_stays():
    before = table_of([[1, 1, 0], [0, 0, 0]], (2, 2, 4))
    after = reassign(before, np.array([0, 1]), np.zeros((2, 2), np.int32))
    assert after.sids.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_a_move_within_the_dedup_level_is_found_at_the_last_level():
    before, after = table_of([[0, 0, 0]], (2, 2, 4)), table_of([[0, 0, 2]], (2, 2, 4))
    assert [c["level"] for c in sid_diff(before, after)] == [3]
    with pytest.raises(DataError, match="SIDs of 3 and of 2 tokens"):
        sid_diff(before, table_of([[0, 0]], (2, 4)))


def test_items_that_only_one_catalogue_has_did_not_move():
    before = SidTable(("a", "b"), np.array([[0, 0], [1, 0]], np.int32), Vocabulary((2, 4)))
    after = SidTable(("b", "c"), np.array([[1, 1], [0, 0]], np.int32), Vocabulary((2, 4)))
    assert [(c["item_id"], c["level"]) for c in sid_diff(before, after)] == [("b", 2)]


def test_reassign_refuses_a_full_prefix():
    before = table_of([[0, 0, 0], [0, 0, 1], [1, 0, 0]], (2, 2, 2))
    with pytest.raises(DataError, match="no dedup digit left"):
        reassign(before, np.array([2]), np.zeros((1, 2), np.int32))
    freed = reassign(before, np.array([0, 2]), np.array([[1, 1], [0, 0]], np.int32))
    assert freed.sids.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("lineage", [None, SidLineage("e", "{text}", "rq_vae", "repair", 4, "t", "m", "c")])
def test_table_round_trip(table, lineage, tmp_path):
    save_table(replace(table, lineage=lineage), tmp_path / "t.parquet")
    loaded = load_table(tmp_path / "t.parquet")
    assert loaded.lineage == lineage
    assert loaded.item_ids == table.item_ids
    assert loaded.vocabulary == table.vocabulary
    np.testing.assert_array_equal(loaded.sids, table.sids)
    assert loaded.sids.dtype == np.int32
    assert pq.read_table(tmp_path / "t.parquet")["sid"].to_pylist() == table.sids.tolist()


def test_gini_against_the_mean_absolute_difference():
    rng = np.random.default_rng(0)
    for counts in (np.array([5, 5, 5, 5]), np.array([0, 0, 0, 9]), rng.integers(0, 50, 31)):
        x = counts.astype(float)
        slow = sum(abs(a - b) for a in x for b in x) / (2 * len(x) ** 2 * x.mean())
        assert gini(counts) == pytest.approx(slow, abs=1e-12)
    assert gini(np.zeros(4, int)) == 0


def test_purity_against_pairs():
    rng = np.random.default_rng(4)
    groups, member = rng.integers(0, 6, 40), rng.random((40, 3)) < 0.4
    shares = []
    for i in range(40):
        others = [j for j in range(40) if j != i and groups[j] == groups[i] and member[j].any()]
        if member[i].any() and others:
            shares.append(np.mean([(member[i] & member[j]).any() for j in others]))
    assert purity(groups, member) == pytest.approx(np.mean(shares))
    assert np.isnan(purity(np.arange(3), np.ones((3, 1), bool)))


def test_quality_report_of_a_hand_made_table():
    sids = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    concepts = {"a": np.array([0, 1, 2]), "b": np.array([3]), "everything": np.arange(4)}
    report = quality_report(table_of(sids, (4, 2, 8)), concepts)
    assert report["items"] == 4
    assert report["distinct_before_dedup"] == 3
    assert report["collision_share"] == 0.5
    assert report["max_dedup_digit"] == 1
    first, second = report["levels"]
    assert (first["codes"], first["codes_used"], first["prefixes"]) == (4, 2, 2)
    assert (first["items_per_prefix_mean"], first["items_per_prefix_max"]) == (2.0, 3)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert first["entropy_ratio"] == pytest.approx(entropy / np.log(4))
    assert first["gini"] == pytest.approx(gini(np.array([3, 1, 0, 0])))
    assert first["concept_purity"] == 1.0
    assert second["prefixes"] == 3
    assert second["items_per_prefix_max"] == 2


def test_codes_of_one_concept_share_prefixes_more_than_chance(table, dataset):
    level = quality_report(table, dataset.concepts)["levels"][0]
    assert level["concept_purity"] > 2 * level["concept_purity_chance"]


@pytest.fixture
def encoder(monkeypatch):
    """A stand-in for sentence-transformers that knows one encoder; texts are embedded by their letters."""

    class SentenceTransformer:
        def __init__(self, name, device):
            if name == "silent":
                raise RuntimeError
            if name != "letters":
                raise OSError(f"{name} is not here\nand a second line")

        def __getitem__(self, module):
            return torch.nn.Identity()

        def encode(self, texts, batch_size, show_progress_bar):
            letters = [[text.count(c) / max(len(text), 1) for c in "abc"] for text in texts]
            return np.where(np.array([["!" in t] for t in texts]), np.nan, letters)

    module = SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return EmbedParams(encoder="letters")


def test_an_item_without_text_gets_the_mean_of_the_others(encoder):
    found = embed_texts(["ab", "", "cc", " "], encoder)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [0.25, 0.25, 0.5], [0, 0, 1], [0.25, 0.25, 0.5]])


def test_embedding_refusals_name_the_encoder_and_the_row(encoder):
    with pytest.raises(DataError, match="No item has any text"):
        embed_texts(["", "  "], encoder)
    with pytest.raises(DataError, match="'letters' gave 1 embeddings that are not finite, first row 2"):
        embed_texts(["a", "b", "!"], encoder)
    with pytest.raises(DataError, match=r"'words' cannot be loaded \(OSError: words is not here\)"):
        embed_texts(["a"], EmbedParams(encoder="words"))
    with pytest.raises(DataError, match=r"'silent' cannot be loaded \(RuntimeError\)\. Set embed\.encoder"):
        embed_texts(["a"], EmbedParams(encoder="silent"))
