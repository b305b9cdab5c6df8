"""What a judged candidate's gates say together, read from their records: light enough for every command."""

from collections.abc import Iterable


def undecided(gates: Iterable[dict]) -> list[dict]:
    """The blocking gates, as `Gate.as_dict` gives them, that are not PASS: why an approximate method is not enough."""
    return [gate for gate in gates if gate["blocking"] and gate["verdict"] != "PASS"]
