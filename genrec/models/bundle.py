"""The bundle: everything a model version is, saved, loaded, promoted and rolled back as one directory.

Safetensors, Parquet and JSON only; never a pickle. `manifest.json` holds the SHA-256 of every part, and a bundle whose
parts disagree with it does not load.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from genrec.config import Params, known_params
from genrec.data.files import no_room
from genrec.errors import BundleError
from genrec.models.adapter import Adapter, Overlay, adapted_model
from genrec.models.backbone import Backbone, load_backbone, save_backbone
from genrec.sid.index import DecodeIndex, build_index
from genrec.sid.quantise import Codebooks, load_codebooks, save_codebooks
from genrec.sid.table import SidTable, load_table, save_table

MANIFEST = "manifest.json"
SCHEMA = 1
TRAINED = ("base", "retrain")
"""Methods whose adapter has seen nothing but its data version."""


@dataclass(frozen=True)
class Lineage:
    """Where a bundle comes from. `requests` are ids of the ledger, never subjects.

    utility_ratio: product of the NDCG@10 ratios accepted since the last full training (the drift gate's budget).
    retrain_s: seconds the last full training of the adapter took (the cost gate's measure).
    """

    data_version: str
    code_version: str
    parent: str | None = None
    batch_id: str | None = None
    method: str = "base"
    requests: tuple[str, ...] = ()
    utility_ratio: float = 1.0
    retrain_s: float | None = None


@dataclass(frozen=True)
class Bundle:
    """Backbone, adapter, overlays, SIDs, codebooks, deny list, parameters and lineage. Never changed, only replaced."""

    backbone: Backbone
    adapter: Adapter
    table: SidTable
    codebooks: Codebooks
    params: Params
    lineage: Lineage
    overlays: tuple[Overlay, ...] = ()
    deny: tuple[str, ...] = ()
    titles: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def index(self) -> DecodeIndex:
        return build_index(self.table)

    @cached_property
    def _indices(self) -> dict[torch.device, DecodeIndex]:
        return {}

    def index_on(self, device: torch.device) -> DecodeIndex:
        """The decode index on `device`, copied there once."""
        if device not in self._indices:
            self._indices[device] = self.index.to(device)
        return self._indices[device]

    def adapted(self, dropout: float = 0.0) -> nn.Module:
        """A fresh model with adapter and overlays as LoRA layers of their own, in eval mode."""
        return adapted_model(self.backbone, self.adapter, self.overlays, dropout)

    def model(self) -> nn.Module:
        """A fresh model for inference, in eval mode: the LoRA merged into the backbone's weights, half the work."""
        return self.adapted().merge_and_unload()

    def deny_mask(self, extra: Iterable[str] = ()) -> torch.Tensor:
        """bool [items]: the bundle's own deny list joined with `extra` item ids (unknown ones do nothing)."""
        mask = torch.zeros(len(self.table.item_ids), dtype=torch.bool)
        rows = [self.table.index[item] for item in {*self.deny, *extra} if item in self.table.index]
        mask[rows] = True
        return mask

    def with_lineage(self, **changes) -> "Bundle":
        return replace(self, lineage=replace(self.lineage, **changes))


def save_bundle(bundle: Bundle, directory: Path) -> str:
    """Write `bundle` as a new directory (by rename, so never half) and return its hash.

    Raises OutageError or OSError where the disk does not take it; `directory` is then what it was.
    """
    from safetensors import SafetensorError

    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_parts(bundle, temporary)
    except SafetensorError as error:  # its OSError
        raise no_room(error) from error
    manifest = {"schema": SCHEMA, "backbone_hash": bundle.backbone.hash, "files": _hashes(temporary)}
    manifest["bundle_hash"] = _manifest_hash(manifest)
    _write_json(temporary / MANIFEST, manifest)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(temporary, directory)
    return manifest["bundle_hash"]


def _write_parts(bundle: Bundle, temporary: Path) -> None:
    from safetensors.torch import save_file

    save_backbone(bundle.backbone, temporary / "backbone")
    (temporary / "adapter").mkdir()
    save_file(dict(bundle.adapter.state), temporary / "adapter" / "adapter_model.safetensors")
    _write_json(temporary / "adapter" / "adapter_config.json", bundle.adapter.config())
    (temporary / "overlays").mkdir()
    for overlay in bundle.overlays:
        path = temporary / "overlays" / f"{overlay.batch_id}.safetensors"
        save_file(dict(overlay.scales), path, metadata={"axis": overlay.axis})
    save_table(bundle.table, temporary / "sid_table.parquet")
    save_codebooks(bundle.codebooks, temporary / "codebooks.safetensors")
    _write_json(temporary / "titles.json", list(bundle.titles))
    _write_json(temporary / "deny.json", sorted(bundle.deny))
    _write_json(temporary / "params.json", bundle.params.model_dump(mode="json"))
    _write_json(temporary / "lineage.json", bundle.lineage.__dict__ | {"requests": list(bundle.lineage.requests)})


def load_bundle(directory: Path) -> Bundle:
    """Read a bundle. Raises BundleError naming the part that is missing, changed or does not belong."""
    manifest = read_manifest(directory)
    found = _hashes(directory)
    for name in sorted(manifest["files"].keys() | found.keys()):
        if manifest["files"].get(name) != found.get(name):
            state = (
                "missing"
                if name not in found
                else "not in the manifest"
                if name not in manifest["files"]
                else "changed"
            )
            raise BundleError(
                f"Bundle {directory.name}: {name} is {state}. Restore it from the registry, or go back to another "
                "version: genrec models rollback."
            )
    from safetensors.torch import load_file

    backbone = load_backbone(directory / "backbone")
    if backbone.hash != manifest["backbone_hash"]:
        raise BundleError(
            f"Bundle {directory.name}: the backbone's hash is {backbone.hash[:12]}, the manifest says "
            f"{manifest['backbone_hash'][:12]}. Rebuild the base model with `dvc repro`."
        )
    config = _read_json(directory / "adapter" / "adapter_config.json")
    return Bundle(
        backbone=backbone,
        adapter=Adapter(
            config["r"], config["lora_alpha"], load_file(directory / "adapter" / "adapter_model.safetensors")
        ),
        table=load_table(directory / "sid_table.parquet"),
        codebooks=load_codebooks(directory / "codebooks.safetensors"),
        params=Params.model_validate(known_params(_read_json(directory / "params.json"))),
        lineage=read_lineage(directory),
        overlays=tuple(_load_overlay(p) for p in sorted((directory / "overlays").glob("*.safetensors"))),
        deny=tuple(_read_json(directory / "deny.json")),
        titles=tuple(_read_json(directory / "titles.json")),
    )


def _load_overlay(path: Path) -> Overlay:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        axis = (file.metadata() or {}).get("axis", "out")  # files without it are older than the other axes
        return Overlay(path.stem, {name: file.get_tensor(name) for name in file.keys()}, axis)  # noqa: SIM118


def read_lineage(directory: Path) -> Lineage:
    """Where the bundle in `directory` comes from, without loading it."""
    lineage = _read_json(directory / "lineage.json")
    return Lineage(**lineage | {"requests": tuple(lineage["requests"])})


def read_manifest(directory: Path) -> dict:
    """The manifest alone, with its own hash checked: `{schema, backbone_hash, files, bundle_hash}`."""
    path = directory / MANIFEST
    if not path.exists():
        raise BundleError(f"No bundle at {directory.name}: {MANIFEST} is missing. See genrec models list.")
    manifest = _read_json(path)
    if not isinstance(manifest, dict) or manifest.get("bundle_hash") != _manifest_hash(manifest):
        raise BundleError(
            f"Bundle {directory.name}: {MANIFEST} does not match its own hash. Restore it from the registry."
        )
    if manifest["schema"] != SCHEMA:
        raise BundleError(
            f"Bundle {directory.name} has schema {manifest['schema']!r}; this genrec reads schema {SCHEMA}. Install "
            "the version that wrote it, or go back to another version: genrec models rollback."
        )
    return manifest


def _manifest_hash(manifest: dict) -> str:
    rest = {key: value for key, value in manifest.items() if key != "bundle_hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _hashes(directory: Path) -> dict[str, str]:
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def _read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path.name} cannot be read: {error}. Restore the bundle from the registry.") from error
