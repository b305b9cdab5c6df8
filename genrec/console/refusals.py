"""Which HTTP status an error has, for pages and API alike."""

from genrec.errors import AccessError, GenrecError, MissingError, OutageError

UNREACHABLE = "The ledger's database does not answer. Start it; genrec doctor says what else is broken."


def status_of(error: GenrecError) -> int:
    """What the ledger refuses is a conflict with its state."""
    kinds = {AccessError: 403, MissingError: 404, OutageError: 503}
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), 409)
