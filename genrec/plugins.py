"""Entry points: methods, sources and gates that other installed packages add (docs/how-to/extend.md).

A package names them in its own metadata, for instance `[project.entry-points."genrec.methods"]`. Listing reads metadata
alone; a package is imported only in the process that uses one of its names, which may be a GPU worker's: install it
there too. Its code is trusted as genrec's own is, and what it made is named by its distribution and version.
"""

import hashlib
import re
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from genrec.errors import ConfigError, GenrecError, PluginError, printable

Kind = Literal["method", "source", "gate"]
T, R = TypeVar("T"), TypeVar("R")
NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Plugin:
    """One entry point. provider: distribution and version, as in `acme-genrec 1.2`."""

    kind: Kind
    name: str
    provider: str
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.provider}"

    def load(self, expected: type, subclass: bool = False) -> Any:
        """The object behind the entry point: an `expected`, or a `subclass` of it. Raises PluginError in one line."""
        remedy = f"Repair the package, or remove it: pip uninstall {self.provider.split()[0]}."
        try:
            found = self.entry_point.load()
        except Exception as error:  # whatever a module does when it is imported
            reason = printable(f"{type(error).__name__}: {error}", 200)
            raise PluginError(f"The {self} cannot be imported: {reason}. {remedy}") from error
        fits = isinstance(found, type) and issubclass(found, expected) if subclass else isinstance(found, expected)
        if not fits:
            wanted = f"subclass of {expected.__name__}" if subclass else expected.__name__
            raise PluginError(f"The {self} is {printable(repr(found))}, not a {wanted}. {remedy}")
        return found

    def code_hash(self) -> str:
        """SHA-256 of the Python sources of the module or package that the entry point names."""
        spec = find_spec(self.entry_point.module.partition(".")[0])
        if spec is None:
            raise PluginError(f"The {self} names {self.entry_point.module}, which is not there. Install it again.")
        folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
        files = [path for folder in folders for path in sorted(folder.rglob("*.py"))] or [Path(spec.origin or "")]
        digest = hashlib.sha256(self.provider.encode())
        for path in files:
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


def installed(kind: Kind, shipped: Collection[str]) -> dict[str, Plugin]:
    """Installed plugins of a kind by name. Raises PluginError for a name that is taken or makes no file name."""
    found: dict[str, Plugin] = {}
    for entry_point in entry_points(group=f"genrec.{kind}s"):
        distribution = entry_point.dist
        provider = f"{distribution.name} {distribution.version}" if distribution else "a package without metadata"
        plugin = Plugin(kind, entry_point.name, provider, entry_point)
        owner = "genrec" if plugin.name in shipped else found[plugin.name].provider if plugin.name in found else None
        if owner:
            raise PluginError(
                f"The {plugin} has a name that {owner} has taken. Rename its entry point, or remove it: "
                f"pip uninstall {provider.split()[0]}."
            )
        if not NAME.fullmatch(plugin.name):
            raise PluginError(
                f"The {plugin} has no good name. Rename its entry point: a lower-case letter, then those, digits, - _."
            )
        found[plugin.name] = plugin
    return found


def parameters(model: type[BaseModel] | None, values: dict[str, Any], key: str) -> BaseModel | None:
    """The `values` of `key` in params.yaml as `model`; None without one. Raises ConfigError for what it refuses."""
    if model is None:
        if values:
            raise ConfigError(f"{key} = {values}, and it has no parameters of that kind. Remove the key.")
        return None
    try:
        return model.model_validate(values)
    except ValidationError as error:
        told = [f"{'.'.join([key, *map(str, e['loc'])])} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        known = ", ".join(model.model_fields) or "none"
        raise ConfigError(f"{'; '.join(told)}. Its keys: {known}.") from error


def guarded(plugin: Plugin, call: Callable[[T], R], raised: type[GenrecError]) -> Callable[[T], R]:
    """`call`, raising `raised` where the plugin's code fails; errors of genrec and of the system pass.

    The message names type and place alone: the text of the error may hold a person's id.
    """

    def guarded_call(argument: T) -> R:
        try:
            return call(argument)
        except (GenrecError, OSError):
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            raise raised(f"The {plugin} failed: {where}. Repair the package, or do without it.") from error

    return guarded_call
