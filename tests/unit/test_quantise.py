"""Codes that are those of float64, speed, the RQ-VAE, collision repair, append and lineage."""

import gzip
import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from genrec.bench import sid as bench
from genrec.config import Params, RqVaeParams, SidParams
from genrec.errors import DataError
from genrec.sid import rq_vae
from genrec.sid.build import append, assign_table, fit_codebooks, lineage, quantisation
from genrec.sid.index import build_index
from genrec.sid.published import read_published
from genrec.sid.quantise import (
    Codebooks,
    assign,
    fit,
    load_codebooks,
    nearest,
    norm,
    quantisation_error,
    residuals_along,
    save_codebooks,
    squared_distances,
)
from genrec.sid.repair import repair
from genrec.unlearning.tracer import soft_sids

SMALL = RqVaeParams(hidden=32, latent=8, steps=300, batch_size=128, learning_rate=3e-3)


def clustered(items, dim=24, clusters=40, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, dim))
    return (centres[rng.integers(clusters, size=items)] + 0.4 * rng.normal(size=(items, dim))).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return clustered(1000)


@pytest.fixture(scope="module")
def vae(vectors):
    return rq_vae.fit(vectors, 3, 16, 10, SMALL, seed=0)


# --- exact codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [3, 48, 384])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_nearest_codes_are_those_of_float64_also_where_float32_cannot_tell(dim, scale):
    """Half of the points lie so near to the middle between two centroids that float32 distances are a coin flip."""
    rng = np.random.default_rng(dim)
    centroids = (scale * rng.normal(size=(32, dim))).astype(np.float32)
    points = scale * rng.normal(size=(400, dim))
    a, b = rng.integers(32, size=(2, 200))
    tilt = rng.choice([-1e-6, -1e-9, 1e-9, 1e-6], size=(200, 1))
    a64, b64 = centroids.astype(np.float64)[a], centroids.astype(np.float64)[b]
    points[:200] = (a64 + b64) / 2 + tilt * (a64 - b64)
    exact = ((points[:, None] - centroids.astype(np.float64)) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest(points, centroids), exact)
    in_float32 = squared_distances(points, centroids).astype(np.float32).argmin(1)
    assert (in_float32 != exact).any()


@pytest.mark.parametrize("dim", [16, 384])
def test_codes_of_all_levels_equal_brute_force(dim):
    vectors = clustered(3000, dim)
    codebooks = fit(vectors, 3, 32, 5, seed=0)
    np.testing.assert_array_equal(assign(vectors, codebooks), bench.brute_force(vectors, codebooks))


def test_equal_centroids_are_a_tie_that_goes_to_the_first():
    centroids = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    assert nearest(np.eye(3), centroids).tolist() == [0, 2, 4]
    assert nearest(np.eye(3), centroids[:1]).tolist() == [0, 0, 0]


def test_a_large_catalogue_is_fitted_on_a_sample_of_it(monkeypatch):
    vectors = clustered(3000)
    monkeypatch.setattr("genrec.sid.quantise.POINTS_PER_CODE", 64)
    small = fit(vectors, 2, 8, 10, seed=0)
    drawn = np.sort(np.random.default_rng(0).choice(3000, 512, replace=False))
    np.testing.assert_array_equal(small.centroids, fit(vectors[drawn], 2, 8, 10, seed=0).centroids)


def test_the_benchmark_compares_the_same_work_and_checks_the_codes():
    found = bench.run(items=600, dim=16, seed=0).as_dict()
    assert found["ratio"] == pytest.approx((found["fit_s"] + found["assign_s"]) / found["plain_s"], rel=0.02)
    assert found["equal_codes"] == 1
    assert "plain faiss k-means" in found["compares"]


def test_what_normalised_levels_leave_over_is_the_embedding_less_its_reconstruction(vectors):
    codebooks = fit(vectors, 3, 16, 5, seed=0)
    codes = assign(vectors, codebooks)
    left = 0.0
    for z, own in zip(vectors[:50].astype(np.float64), codes, strict=False):
        x = z / np.linalg.norm(z)
        rest, length = x, 1.0
        reconstruction = np.zeros_like(x)
        for level, code in zip(codebooks.centroids.astype(np.float64), own, strict=True):
            reconstruction = reconstruction + length * level[code]
            length = np.linalg.norm(x - reconstruction)
            rest = (x - reconstruction) / length
        assert np.linalg.norm(rest) == pytest.approx(1)
        left += ((x - reconstruction) ** 2).sum()
    assert quantisation_error(vectors[:50], codes[:50], codebooks) == pytest.approx(left / 50, rel=1e-9)


# --- RQ-VAE ----------------------------------------------------------------------------------------------------------


def test_every_level_of_the_rq_vae_keeps_its_codes_in_use(vectors, vae):
    codes = assign(vectors, vae)
    assert all(len(np.unique(codes[:, level])) >= 0.9 * 16 for level in range(3))


def test_the_rq_vae_is_seeded(vectors, vae):
    again = rq_vae.fit(vectors, 3, 16, 10, SMALL, seed=0)
    np.testing.assert_array_equal(again.centroids, vae.centroids)
    short = SMALL.model_copy(update={"steps": 2})
    one, other = (rq_vae.fit(vectors, 3, 16, 2, short, seed).centroids for seed in (0, 1))
    assert not np.array_equal(one, other)


def unit(vectors):
    return torch.from_numpy(norm(vectors.astype(np.float64)).astype(np.float32))


@pytest.fixture(scope="module")
def collapsed(vectors):
    """A model whose codes are all one, and which one stays out of it."""
    torch.manual_seed(0)
    model = rq_vae.RqVae(vectors.shape[1], 3, 16, SMALL)
    model.codebooks.data[:, 1:] = 100.0
    assert all(len(level.unique()) == 1 for level in used_codes(model, vectors))
    return model


def used_codes(model, vectors):
    return model.quantise(model.encoder(unit(vectors)))[0].T


def test_a_collapsed_start_recovers_by_dead_code_reset_and_only_by_it(vectors, collapsed, monkeypatch):
    start = {name: value.clone() for name, value in collapsed.state_dict().items()}
    monkeypatch.setattr(rq_vae, "reset_dead", lambda *_: None)
    rq_vae.train(collapsed, unit(vectors), SMALL, seed=0)
    assert all(len(level.unique()) == 1 for level in used_codes(collapsed, vectors))
    monkeypatch.undo()
    collapsed.load_state_dict(start)
    rq_vae.train(collapsed, unit(vectors), SMALL, seed=0)
    assert all(len(level.unique()) >= 0.9 * 16 for level in used_codes(collapsed, vectors))


def test_an_rq_vae_that_diverged_is_refused(vectors):
    wild = SMALL.model_copy(update={"steps": 20, "learning_rate": 1e9})
    with pytest.raises(DataError, match=r"RQ-VAE diverged.*Lower sid\.rq_vae\.learning_rate \(1000000000\.0\)"):
        rq_vae.fit(vectors, 3, 16, 2, wild, seed=0)


def test_the_rq_vae_draws_nothing_from_the_process(vectors):
    short = SMALL.model_copy(update={"steps": 2})
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    rq_vae.fit(vectors, 3, 16, 2, short, seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_the_rq_vae_reconstructs_better_from_its_codes_than_from_random_ones(vectors):
    torch.manual_seed(0)
    model, x = rq_vae.RqVae(vectors.shape[1], 3, 16, SMALL), unit(vectors)
    rq_vae.start_codebooks(model, x, 10, seed=0)
    rq_vae.train(model, x, SMALL, seed=0)
    random = torch.randint(16, (len(x), 3), generator=torch.Generator().manual_seed(0))
    from_random = model.decoder(torch.stack([b[random[:, k]] for k, b in enumerate(model.codebooks)], 1).sum(1))
    own, other, mean = (((x - y) ** 2).sum(1).mean().item() for y in (model.reconstruct(x), from_random, x.mean(0)))
    assert own < 0.5 * mean < mean < other


def test_residuals_of_the_rq_vae_are_not_normalised_and_start_at_the_latent(vectors, vae):
    codes = assign(vectors, vae)
    path = residuals_along(vectors, codes, vae)
    (w0, b0), (w1, b1) = vae.encoder
    latent = np.maximum(norm(vectors.astype(np.float64)) @ w0.T + b0, 0) @ w1.T + b1
    np.testing.assert_allclose(path[:, 0], latent, atol=1e-6)
    for level in range(2):
        rest = path[:, level] - vae.centroids[level][codes[:, level]]
        np.testing.assert_allclose(path[:, level + 1], rest, atol=1e-6)
    left = path[:, 2] - vae.centroids[2][codes[:, 2]]
    assert quantisation_error(vectors, codes, vae) == pytest.approx((left**2).sum() / (latent**2).sum(), rel=1e-5)
    np.testing.assert_array_equal(codes, bench.brute_force(vectors, vae))


def test_codebooks_with_an_encoder_round_trip(vectors, vae, tmp_path):
    save_codebooks(vae, tmp_path / "c.safetensors")
    loaded = load_codebooks(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(assign(vectors, loaded), assign(vectors, vae))
    assert [[part.shape for part in layer] for layer in loaded.encoder] == [[(32, 24), (32,)], [(8, 32), (8,)]]


def test_tracer_finds_stored_codes_at_phi_zero_for_any_quantiser_and_repair(vectors, vae):
    items = np.arange(0, 1000, 7)
    for codebooks in (vae, fit(vectors, 3, 16, 5, seed=0)):
        for collisions in ("dedup", "repair"):
            table = assign_table([f"i{i:04d}" for i in range(1000)], vectors, codebooks, collisions)
            soft = soft_sids(table, items, vectors, codebooks)
            q = soft.q(torch.zeros_like(soft.logits0))
            np.testing.assert_array_equal(q.argmax(-1).numpy(), table.sids[items, :-1])


@pytest.mark.parametrize("quantiser", ["rq_kmeans", "rq_vae"])
def test_the_parameters_name_the_quantiser(vectors, quantiser):
    section = SidParams(quantiser=quantiser, codes=16, iterations=3, rq_vae=SMALL.model_copy(update={"steps": 5}))
    codebooks = fit_codebooks(vectors, Params(sid=section))
    assert len(codebooks.encoder) == (2 if quantiser == "rq_vae" else 0)
    with pytest.raises(DataError, match=r"sid.codes = 16 is larger than the catalogue \(7 items\)"):
        fit_codebooks(vectors[:7], Params(sid=section))


# --- collision repair ------------------------------------------------------------------------------------------------


def grid(levels=2, codes=4):
    """Codebooks on a line, without normalisation: distances can be read off."""
    points = np.arange(codes, dtype=np.float32)[:, None] * np.array([[[1.0]], [[0.1]], [[0.01]]], np.float32)[:levels]
    identity = (np.array([[1.0]], np.float32), np.zeros(1, np.float32))
    return Codebooks(points, 0, (identity,))


def values(monkeypatch, *x):
    """Embeddings that enter `grid` as they are."""
    monkeypatch.setattr("genrec.sid.quantise.norm", lambda v: v)
    return np.array(x, np.float32)[:, None]


def test_colliding_items_take_the_next_nearest_codes_at_the_least_total(monkeypatch):
    z = values(monkeypatch, 1.11, 1.13, 1.12, 2.2)
    codes = assign(z, grid())
    assert codes.tolist() == [[1, 1], [1, 1], [1, 1], [2, 2]]
    repaired = repair(z, codes, grid())
    assert repaired.tolist() == [[1, 0], [1, 2], [1, 1], [2, 2]]
    assert codes.tolist() == [[1, 1], [1, 1], [1, 1], [2, 2]]


def test_a_prefix_over_capacity_gives_those_away_that_lose_least(monkeypatch):
    z = values(monkeypatch, 1.0, 1.1, 1.2, 1.3, 1.4, 1.45)
    codes = assign(z, grid())
    assert set(codes[:, 0]) == {1}
    repaired = repair(z, codes, grid())
    assert repaired[:, 0].tolist() == [1, 1, 1, 1, 2, 2]
    assert len(np.unique(repaired, axis=0)) == 6


def test_repair_stays_clear_of_codes_that_are_taken(monkeypatch):
    z = values(monkeypatch, 1.1, 1.1)
    repaired = repair(z, assign(z, grid()), grid(), taken=np.array([[1, 1], [1, 0]]))
    assert sorted(repaired.tolist()) == [[1, 2], [1, 3]]


def test_a_repair_without_room_names_the_way_out(monkeypatch):
    z = values(monkeypatch, *([1.0] * 17))
    with pytest.raises(DataError, match=r"17 items have the SID prefix \(1,\).*Raise sid.codes"):
        repair(z, assign(z, grid()), grid())
    assert len(np.unique(repair(z[:16], assign(z[:16], grid()), grid()), axis=0)) == 16


@pytest.mark.parametrize("codes", [10, 16])
def test_repaired_tables_are_one_to_one_and_move_no_more_than_they_must(vectors, codes):
    codebooks = fit(vectors[:400], 3, codes, 5, seed=0)
    ids = [f"i{i:03d}" for i in range(400)]
    table = assign_table(ids, vectors[:400], codebooks, "repair")
    assert len(np.unique(table.sids[:, :-1], axis=0)) == 400
    assert table.repaired
    assert (table.sids[:, -1] == 0).all()
    index = build_index(table)
    assert (index.items, index.widest[-1]) == (400, 1)
    raw = assign(vectors[:400], codebooks)
    moved = (table.sids[:, :-1] != raw).any(1)
    came = {
        tuple(sid[:2]) for sid, before in zip(table.sids.tolist(), raw.tolist(), strict=True) if sid[:2] != before[:2]
    }
    for prefix in {tuple(sid[:2]) for sid in raw.tolist()} - came:
        rows = np.flatnonzero((raw[:, :2] == prefix).all(1))
        assert moved[rows].any() == (len(np.unique(raw[rows, 2])) < len(rows)), prefix
    report = quantisation(table, vectors[:400], codebooks)
    assert report["moved_items"] == moved.sum() > 0
    assert report["extra_quantisation_error"] > 0
    assert report["raw_collision_share"] > 0
    plain = quantisation(assign_table(ids, vectors[:400], codebooks, "dedup"), vectors[:400], codebooks)
    assert (plain["moved_items"], plain["extra_quantisation_error"]) == (0, 0)
    assert report["quantisation_error"] == pytest.approx(
        plain["quantisation_error"] + report["extra_quantisation_error"]
    )


# --- append ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names():
    """Ids whose order has nothing to do with that of the rows."""
    return [hashlib.sha256(str(i).encode()).hexdigest()[:8] for i in range(400)]


@pytest.mark.parametrize("collisions", ["dedup", "repair"])
def test_appended_items_get_their_codes_and_no_other_sid_moves(vectors, names, collisions):
    codebooks = fit(vectors[:300], 3, 16, 5, seed=0)
    old = sorted(range(300), key=names.__getitem__)
    table = assign_table([names[i] for i in old], vectors[old], codebooks, collisions)
    assert table.repaired == (collisions == "repair")
    grown = append(table, codebooks, names, vectors[:400])
    assert grown.item_ids == tuple(sorted(names))
    assert grown.vocabulary == table.vocabulary
    np.testing.assert_array_equal(grown.sids[[grown.index[item] for item in table.item_ids]], table.sids)
    if collisions == "dedup":
        new = grown.sids[[grown.index[item] for item in names[300:]], :-1]
        np.testing.assert_array_equal(new, assign(vectors[300:400], codebooks))
    again = append(grown, codebooks, names, vectors[:400])
    assert again.item_ids == grown.item_ids
    np.testing.assert_array_equal(again.sids, grown.sids)


def test_an_append_that_does_not_fit_says_what_to_do(vectors):
    codebooks = fit(vectors[:100], 2, 8, 5, seed=0)
    table = assign_table(["a"], vectors[:1], codebooks, "dedup")
    same = np.repeat(vectors[:1], 8, axis=0)
    assert append(table, codebooks, list("bcdefgh"), same[:7]).sids[:, -1].tolist() == list(range(8))
    with pytest.raises(DataError, match=r"More than 8 items .* no dedup digit left. Build new SIDs: genrec train"):
        append(table, codebooks, list("bcdefghi"), same)
    with pytest.raises(DataError, match="NaN or infinity"):
        append(table, codebooks, ["b"], same[:1] * np.nan)


# --- lineage and published files -------------------------------------------------------------------------------------


def test_lineage_names_the_recipe_and_tells_other_inputs_apart(vectors, vae):
    texts, params = ["ab", "c"], Params(sid=SidParams(quantiser="rq_vae"))
    found = lineage(texts, vectors, vae, params)
    assert (found.encoder, found.template, found.quantiser, found.seed) == (
        params.embed.encoder, "{text}", "rq_vae", 0,
    )  # fmt: skip
    assert found.texts_sha256 == hashlib.sha256(b"ab\0c").hexdigest()
    changed = [
        lineage(["a", "bc"], vectors, vae, params),
        lineage(texts, vectors[::-1], vae, params),
        lineage(texts, vectors, replace(vae, encoder=()), params),
    ]
    for other, key in zip(changed, ("texts_sha256", "embeddings_sha256", "codebooks_sha256"), strict=True):
        assert {k for k, v in asdict(other).items() if v != asdict(found)[k]} == {key}


def test_published_files_are_read_gzipped_or_not(tmp_path):
    content = json.dumps({"10": ["<a_3>", "<b_0>"], "2": ["<a_1>", "<b_5>"], "7": ["<a_3>", "<b_0>"]}).encode()
    (tmp_path / "x.json").write_bytes(content)
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(content))
    for name in ("x.json", "x.json.gz"):
        table = read_published(tmp_path / name)
        assert table.item_ids == ("10", "2", "7")
        assert table.sids.tolist() == [[3, 0, 0], [1, 5, 0], [3, 0, 1]]
        assert table.vocabulary.sizes == (6, 6, 8)


@pytest.mark.parametrize("text", ["no json", "[1]", "{}", '{"1": ["a"]}', '{"1": ["<a_1>"], "2": ["<a_1>", "<b_1>"]}'])
def test_other_files_are_no_sid_files(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json is no SID file"):
        read_published(tmp_path / "x.json")
