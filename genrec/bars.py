"""Progress bars with the time that remains, on a terminal's standard error and nowhere else."""

import os
import sys

from genrec.progress import Bar, NoBar

QUIET = "GENREC_QUIET"
"""Set by --quiet and --json, in the environment because the stages of `dvc repro` are processes of their own."""


class Bars:
    """Shows loops while somebody watches: standard error is a terminal, and neither --quiet nor --json was given.

    They stand one below another; when the outermost ends, its bar stays as it was and the inner ones are gone.
    """

    def __init__(self) -> None:
        self._open: list[_Bar] = []
        self._display = None

    def begin(self, label: str, total: int, done: int) -> Bar:
        if not sys.stderr.isatty() or os.environ.get(QUIET):
            return NoBar()
        if self._display is None:
            self._display = _display()
            self._display.start()
        bar = _Bar(self, self._display.add_task(label, total=total, completed=done, said=""))
        self._open.append(bar)
        return bar

    def advance(self, bar: "_Bar", steps: int, said: str) -> None:
        if bar in self._open:
            self._display.update(bar.task, advance=steps, **({"said": said} if said else {}))

    def end(self, bar: "_Bar") -> None:
        """Also ends what began after it: a loop that an error left may never say so."""
        if bar not in self._open:
            return
        while self._open[-1] is not bar:
            self._remove(self._open.pop())
        self._open.pop()
        if self._open:
            self._remove(bar)
        else:
            self._display.stop()
            self._display = None

    def close(self) -> None:
        if self._open:
            self.end(self._open[0])

    def _remove(self, bar: "_Bar") -> None:
        self._display.remove_task(bar.task)


class _Bar:
    def __init__(self, bars: Bars, task: int):
        self._bars, self.task = bars, task

    def advance(self, steps: int = 1, said: str = "") -> None:
        self._bars.advance(self, steps, said)

    def end(self) -> None:
        self._bars.end(self)


def _display():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
