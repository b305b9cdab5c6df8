"""A version in memory, and which one is served: what `genrec serve` and the MLflow model have in common."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from torch import nn

from genrec.config import Settings, Workspace
from genrec.errors import ConfigError, RegistryError, RequestError
from genrec.lineage import history
from genrec.models.bundle import Bundle, load_bundle, read_manifest
from genrec.refreshed import Refreshed
from genrec.registry import Registry, open_registry
from genrec.requests.database import connect
from genrec.requests.deny import current_deny
from genrec.requests.schema import RequestRow


@dataclass(frozen=True, eq=False)
class Served:
    """A version and its model, on the device that computes. number: None where no registry is asked."""

    number: str | None
    bundle: Bundle
    model: nn.Module

    @classmethod
    def of(cls, bundle: Bundle, number: str | None = None) -> "Served":
        return cls(number, bundle, bundle.model())


def champion(workspace: Workspace, seconds: float, first: Served | None = None) -> Refreshed[Served]:
    """The champion, at most `seconds` old, loaded again when the alias has moved. first: what it was just now."""

    def read(last: Served | None) -> Served:
        registry = open_registry(workspace)
        number = registry.champion().number
        if last and last.number == number:
            return last
        return Served.of(registry.bundle(number), number)

    return Refreshed("champion", read, seconds, first=first)


def pinned(workspace: Workspace, seconds: float, one: Served) -> Callable[[], Served]:
    """`one` for good, and no longer once it knows what was forgotten: then the call raises RegistryError.

    It raises ServingError as long as that cannot be told.
    """
    engine = connect(workspace.ledger_url)

    def read(last: tuple[frozenset[str], frozenset[str]] | None) -> tuple[frozenset[str], frozenset[str]]:
        try:
            now = _fulfilled(engine)
        except SQLAlchemyError as error:
            raise RequestError(
                f"The ledger's requests cannot be read ({type(error).__name__}), and so not whether version "
                f"{one.number} may be served. Use a login that may read them, or serve models:/NAME@champion."
            ) from error
        return last if last and last[0] == now else (now, history(workspace).knows(one.number))

    known = Refreshed("fulfilled requests", read, seconds)

    def value() -> Served:
        if knows := known.value()[1]:
            raise RegistryError(
                f"Version {one.number} is older than {len(knows)} fulfilled requests and knows what they forgot: it is "
                "not served. Serve models:/NAME@champion, or retrain it without them: "
                f"genrec models rollback {one.number} --reapply."
            )
        return one

    return value


def _fulfilled(engine: Engine) -> frozenset[str]:
    with Session(engine) as session:
        return frozenset(session.scalars(select(RequestRow.id).where(RequestRow.state == "fulfilled")))


def registered(workspace: Workspace, directory: Path) -> Callable[[], Served]:
    """What to serve where a version of the registry was loaded, whose bundle lies in `directory`.

    MLflow does not tell a model by which name it was asked for. So who loads the champion has the champion from then
    on, and who loads another version has that one. Raises RegistryError for a bundle that is no version.
    """
    registry, bundle = open_registry(workspace), load_bundle(directory)
    number = _number(registry, read_manifest(directory)["bundle_hash"])
    one, seconds = Served.of(bundle, number), bundle.params.serving.refresh_seconds
    if registry.champion().number == number:
        return champion(workspace, seconds, one).value
    return pinned(workspace, seconds, one)


def _number(registry: Registry, bundle_hash: str) -> str:
    """The version with this bundle, the champion before others."""
    for version in (registry.champion(), *registry.versions()):
        if version.tags.get("bundle_hash") == bundle_hash:
            return version.number
    raise RegistryError(
        f"Bundle {bundle_hash[:12]} is no version of {registry.name!r} in the registry of GENREC_HOME. Correct "
        "GENREC_HOME or GENREC_MLFLOW_URI, or unset them to look at the bundle alone."
    )


def served_model(directory: Path) -> tuple[Callable[[], Served], Callable[[], Iterable[str]]]:
    """For the MLflow model of the bundle in `directory`: the version to answer with now, and what it must not show.

    Where the environment names no workspace and no ledger that is the bundle as it was registered.
    Raises ConfigError for a ledger without a registry.
    """
    settings = Settings()
    named = settings.model_fields_set & {"home", "ledger_url", "mlflow_uri"}
    if not named & {"home", "ledger_url"}:
        alone = Served.of(load_bundle(directory))
        return lambda: alone, tuple
    if named == {"ledger_url"}:
        raise ConfigError(
            "GENREC_LEDGER_URL is set, and no registry to follow the champion in: set GENREC_HOME or GENREC_MLFLOW_URI."
        )
    current = registered(settings.workspace, directory)
    seconds = current().bundle.params.serving.refresh_seconds
    return current, current_deny(settings.workspace.ledger_url, seconds).value
