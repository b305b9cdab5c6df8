"""How far long work is: its loops tell it here, and a command on a terminal shows it (`genrec.bars`).

The loops that take minutes lie several calls below the command that has a terminal, under functions whose arguments
are what they compute with. So the way from one to the other is one context variable, which a command sets and a worker,
a test or a program that imports genrec leaves empty; a loop then costs one look-up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Bar(Protocol):
    """One loop under way."""

    def advance(self, steps: int = 1, said: str = "") -> None:
        """`steps` more are done; `said` stands beside the bar, and stays there until something else is said."""

    def end(self) -> None:
        """The loop is over, whether or not all steps were taken. May be called again."""


class Listener(Protocol):
    def begin(self, label: str, total: int, done: int) -> Bar:
        """A loop of `total` steps begins, of which `done` are done already."""


class NoBar:
    """Of a loop that nobody watches."""

    def advance(self, steps: int = 1, said: str = "") -> None:
        pass

    def end(self) -> None:
        pass


_listener: ContextVar[Listener | None] = ContextVar("genrec_progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every loop inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A loop of `total` steps inside, each told by `advance`. A loop of one step is not told of."""
    listener = _listener.get()
    bar = NoBar() if listener is None or total < 2 else listener.begin(label, total, done)
    try:
        yield bar
    finally:
        bar.end()


def tracked(label: str, steps: Sequence[T]) -> Iterator[T]:
    """The elements of `steps`, each told when the next one is asked for."""
    with progress(label, len(steps)) as bar:
        for step in steps:
            yield step
            bar.advance()
