"""Errors a person can act on: each names the thing, the value and the remedy."""

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
EXIT_CODES = {
    0: "done",
    1: "refused or failed: the last line of standard error says what to do",
    2: "wrong usage: no such command, option or value",
    3: "the night ended without a new champion: the report says why, and its requests wait for the next night",
    4: "an outage of the database, MLflow, the disk or a worker: the same command, run again, goes on where it stopped",
    INTERRUPTED: "interrupted (Ctrl-C): as an outage",
}
"""What the command line returns."""


class GenrecError(Exception):
    """Base of every error that is the user's to fix; the CLI prints it as one line and exits with `exit_code`."""

    exit_code = 1


class DataError(GenrecError):
    """A table, file or source is not what the schema says."""


class ValidationFailed(DataError):
    """A Great Expectations suite refused the data."""


class ConfigError(GenrecError):
    """params.yaml or a GENREC_* setting is wrong."""


class RequestError(GenrecError):
    """A forget request cannot be accepted or moved to the state asked for."""


class AccessError(GenrecError):
    """This account may not do this, or nobody has signed in."""


class MissingError(GenrecError):
    """There is nothing under this name that the account may see."""


class BundleError(GenrecError):
    """A bundle is incomplete, or its parts do not belong together."""


class RegistryError(GenrecError):
    """The model registry refuses the move."""


class ServingError(GenrecError):
    """There is nothing to serve yet."""


class NightError(GenrecError):
    """A night ended without a new champion; the ledger has closed it and holds why."""

    exit_code = 3


class OutageError(GenrecError):
    """The database, MLflow, a GPU worker or the disk gave out: a night breaks off as it is, and the next goes on."""

    exit_code = 4


class TrainingError(GenrecError):
    """A training went bad and was stopped."""


class UnlearningError(GenrecError):
    """A method could not run, or ran and did nothing."""


class PluginError(GenrecError):
    """A method, source or gate of another package is missing, has no good name, or does not work."""


def reason(error: BaseException) -> str:
    """An error of another library in one line: its kind and the first line it says, where it says any."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def printable(text: str, longest: int = 80) -> str:
    """`text` as one line for a message: what does not print is escaped, and past `longest` characters it is cut."""
    cut = text if len(text) <= longest else text[:longest] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def unknown(thing: str, value: str, known: Iterable[str], hint: str) -> str:
    """Message for a name that does not exist: `Unknown concept 'Horor'. Known concepts near it: Horror. <hint>`."""
    known = sorted(known)
    lowered = {name.lower(): name for name in known}
    near = [lowered[m] for m in difflib.get_close_matches(value.lower(), lowered, n=3, cutoff=0.6)]
    if near:
        listed = f"Known {thing}s near it: {', '.join(near)}."
    elif len(known) <= 20:
        listed = f"Known {thing}s: {', '.join(known) or 'none'}."
    else:
        listed = f"There are {len(known)} known {thing}s, none near it."
    return f"Unknown {thing} {value!r}. {listed} {hint}".strip()
