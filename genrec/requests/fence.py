"""The fence: what a run writes is refused once another has taken over its lease."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fence:
    """A lease as its holder took it. It goes with the work, to other processes too; see `database.writing`."""

    name: str
    token: int
