"""The bundle on disk: what comes back, and that no part can change unnoticed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.errors import BundleError
from genrec.models.adapter import Overlay, lora_sites, weight_names
from genrec.models.backbone import Backbone, load_backbone
from genrec.models.bundle import MANIFEST, Lineage, load_bundle, read_manifest, save_bundle
from tests.mistakes import newer


@pytest.fixture(scope="module")
def full(bundle, model):
    """The bundle with an overlay, a deny list and a lineage."""
    sites = {name: layer.lora_B["default"].weight.shape[0] for name, layer in lora_sites(model).items()}
    overlay = Overlay("b-7", {name: torch.linspace(0.1, 1, size) for name, size in sites.items()})
    lineage = Lineage("d1", "c1", parent="3", batch_id="b-7", method="ucan", requests=("r1", "r2"), utility_ratio=0.99)
    return replace(bundle, overlays=(overlay,), deny=("i0002", "i0001"), lineage=lineage)


@pytest.fixture(scope="module")
def saved(full, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundles") / "full"
    return directory, save_bundle(full, directory)


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


PARTS = (
    "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "backbone/config.json",
    "backbone/model.safetensors", "codebooks.safetensors", "deny.json", "lineage.json", "overlays/b-7.safetensors",
    "params.json", "sid_table.parquet", "titles.json",
)  # fmt: skip


def test_everything_comes_back(full, saved, table):
    loaded = load_bundle(saved[0])
    tokens = torch.randint(2, table.vocabulary.size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model()(input_ids=tokens).logits, full.model()(input_ids=tokens).logits)
    assert loaded.backbone.hash == full.backbone.hash
    assert loaded.lineage == full.lineage
    assert loaded.params == full.params
    assert loaded.deny == ("i0001", "i0002")
    assert loaded.titles == full.titles
    assert [o.batch_id for o in loaded.overlays] == ["b-7"]
    assert loaded.table.item_ids == full.table.item_ids
    np.testing.assert_array_equal(loaded.table.sids, full.table.sids)
    np.testing.assert_array_equal(loaded.codebooks.centroids, full.codebooks.centroids)


@pytest.mark.parametrize("axis", ["out", "rank", "in"])
def test_overlays_come_back_on_their_axis(full, table, tmp_path, axis):
    (original,) = full.overlays
    sizes = {
        site: {"out": len(original.scales[site]), "rank": full.adapter.rank, "in": full.adapter.state[a].shape[1]}[axis]
        for site, a in ((site, weight_names(site)[0]) for site in full.adapter.sites)
    }
    overlay = Overlay("b-8", {site: torch.linspace(0.1, 1, size) for site, size in sizes.items()}, axis)
    both = replace(full, overlays=(original, overlay))
    digest = save_bundle(both, tmp_path / "b")
    loaded = load_bundle(tmp_path / "b")
    assert [(o.batch_id, o.axis) for o in loaded.overlays] == [("b-7", "out"), ("b-8", axis)]
    for before, after in zip(both.overlays, loaded.overlays, strict=True):
        assert before.scales.keys() == after.scales.keys()
        assert all(torch.equal(before.scales[site], after.scales[site]) for site in before.scales)
    tokens = torch.randint(2, table.vocabulary.size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model()(input_ids=tokens).logits, both.model()(input_ids=tokens).logits)
    assert save_bundle(loaded, tmp_path / "again") == digest


def test_an_overlay_without_an_axis_scales_outputs(full, tmp_path, monkeypatch):
    """What bundles of before the other axes hold."""
    import safetensors.torch

    original = safetensors.torch.save_file
    monkeypatch.setattr(safetensors.torch, "save_file", lambda tensors, path, metadata=None: original(tensors, path))
    save_bundle(full, tmp_path / "old")
    assert [(o.batch_id, o.axis) for o in load_bundle(tmp_path / "old").overlays] == [("b-7", "out")]


def test_the_hash_says_what_is_in_it(full, saved, tmp_path):
    directory, digest = saved
    assert sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()) == sorted(
        (*PARTS, MANIFEST)
    )
    assert read_manifest(directory)["bundle_hash"] == digest
    assert save_bundle(load_bundle(directory), tmp_path / "again") == digest
    assert save_bundle(replace(full, deny=()), tmp_path / "other") != digest


def test_saving_replaces_the_whole_directory(bundle, full, tmp_path):
    save_bundle(full, tmp_path / "b")
    save_bundle(bundle, tmp_path / "b")
    assert load_bundle(tmp_path / "b").overlays == ()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_changed_or_is_missing_is_named(copy, part):
    path = copy / part
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{part} is changed"):
        load_bundle(copy)
    path.unlink()
    with pytest.raises(BundleError, match=f"{part} is missing"):
        load_bundle(copy)
    path.write_bytes(original)
    load_bundle(copy)


@pytest.mark.parametrize("name", ["overlays/b-8.safetensors", "model.pkl", "adapter/more.json"])
def test_a_part_that_was_added_is_named(copy, name):
    (copy / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"{name} is not in the manifest"):
        load_bundle(copy)


def test_a_manifest_that_was_edited_is_refused(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / "deny.json").write_text("[]\n")
    for change in ({"backbone_hash": "0" * 64}, {"files": {}}, {"schema": 2}):
        (copy / MANIFEST).write_text(json.dumps(manifest | change))
        with pytest.raises(BundleError, match="does not match its own hash"):
            load_bundle(copy)
    for text in ("not json", "[1]"):
        (copy / MANIFEST).write_text(text)
        with pytest.raises(BundleError, match=MANIFEST):
            load_bundle(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(BundleError, match=f"{MANIFEST} is missing"):
        load_bundle(copy)


def test_a_bundle_of_a_newer_version_is_refused_with_the_remedy(copy):
    """Whatever its parts say: a lineage with a field of tomorrow is no TypeError."""
    lineage = json.loads((copy / "lineage.json").read_text())
    (copy / "lineage.json").write_text(json.dumps(lineage | {"epsilon": 1.0}))
    newer(copy)
    with pytest.raises(BundleError, match=r"schema 2; .* schema 1\. Install the version that wrote it"):
        load_bundle(copy)


def test_another_backbone_under_a_valid_manifest_is_refused(full, tmp_path):
    """The backbone's own hash is recorded next to the files' hashes, and checked against the weights."""
    lying = Backbone(full.backbone.config, full.backbone.state)
    lying.__dict__["hash"] = "f" * 64
    save_bundle(replace(full, backbone=lying), tmp_path / "b")
    with pytest.raises(BundleError, match=r"the backbone's hash is .* the manifest says ffffffffffff"):
        load_bundle(tmp_path / "b")


def test_an_empty_overlay_folder_may_get_lost(bundle, tmp_path):
    """Object stores and git keep no empty folders."""
    save_bundle(bundle, tmp_path / "b")
    (tmp_path / "b" / "overlays").rmdir()
    assert load_bundle(tmp_path / "b").overlays == ()


def test_the_backbone_hash_depends_on_every_bit(backbone):
    name = sorted(backbone.state)[0]
    changed = {**backbone.state, name: backbone.state[name].clone()}
    changed[name].view(-1)[0] += 1e-6
    assert Backbone(backbone.config, changed).hash != backbone.hash
    assert Backbone({**backbone.config, "rope_theta": 1.0}, backbone.state).hash != backbone.hash
    renamed = {("x" if n == name else n): t for n, t in backbone.state.items()}
    assert Backbone(backbone.config, renamed).hash != backbone.hash
    assert Backbone(dict(reversed(backbone.config.items())), dict(backbone.state)).hash == backbone.hash


def test_a_backbone_that_is_not_there_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        load_backbone(tmp_path / "backbone")


def test_deny_masks_join_both_lists_and_pass_over_unknown_items(full):
    ids = full.table.item_ids
    mask = full.deny_mask([ids[5], "gone", ids[5]])
    assert mask.nonzero().flatten().tolist() == sorted({ids.index("i0001"), ids.index("i0002"), 5})
