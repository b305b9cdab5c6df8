"""What loops tell of their progress, and what becomes of it when nobody listens or a loop breaks off."""

import sys
from dataclasses import dataclass, field

import pytest
import torch

from genrec.bars import Bars
from genrec.config import EmbedParams
from genrec.progress import listening, progress, tracked
from genrec.sid.embed import embed_texts
from genrec.training.loop import Optimisation, train


@dataclass
class Told:
    """A loop as a listener hears it."""

    label: str
    total: int
    done: int
    said: str = ""
    ended: bool = False

    def advance(self, steps: int = 1, said: str = "") -> None:
        self.done += steps
        self.said = said or self.said

    def end(self) -> None:
        self.ended = True


@dataclass
class Listener:
    heard: list[Told] = field(default_factory=list)

    def begin(self, label: str, total: int, done: int) -> Told:
        self.heard.append(Told(label, total, done))
        return self.heard[-1]


def test_a_loop_is_told_step_by_step_and_a_short_or_unheard_one_not_at_all():
    listener = Listener()
    assert list(tracked("unheard", range(3))) == [0, 1, 2]
    with listening(listener):
        assert list(tracked("one", [7])) == [7]
        assert [(step, listener.heard[0].done) for step in tracked("three", range(3))] == [(0, 0), (1, 1), (2, 2)]
    assert listener.heard == [Told("three", 3, 3, ended=True)]
    list(tracked("after", range(3)))
    assert len(listener.heard) == 1


def test_a_loop_that_breaks_off_ends():
    def work():
        with progress("work", 4) as bar:
            bar.advance(2, "half")
            raise ZeroDivisionError

    listener = Listener()
    with listening(listener):
        for step in tracked("steps", range(5)):
            if step == 2:
                break
        with pytest.raises(ZeroDivisionError):
            work()
    assert listener.heard == [Told("steps", 5, 2, ended=True), Told("work", 4, 2, "half", ended=True)]


def test_a_training_tells_each_step_from_where_it_goes_on(tmp_path):
    def run(epochs: int, watch=None):
        model = torch.nn.Linear(2, 1)
        loss = lambda model, batch: model(batch).square().mean()  # noqa: E731
        return train(
            model, epochs, lambda epoch: [torch.ones(1, 2)] * 3, loss, Optimisation(0.1, 0, 0.1, 1, 0), label="line",
            checkpoint=tmp_path / "point", watch=watch,
        )  # fmt: skip

    def stop(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(4, stop)
    listener = Listener()
    with listening(listener):
        curve = run(4)
    (told,) = listener.heard
    assert (told.label, told.total, told.done, told.ended) == ("line", 12, 12, True)
    assert told.said == f"loss {curve.losses[-2]:.3f}"


def test_an_embedding_tells_each_batch():
    listener = Listener()
    with listening(listener):
        found = embed_texts([f"item number {i}" for i in range(7)], EmbedParams(batch_size=3))
    assert found.shape == (7, 384)
    assert listener.heard == [Told("embedding", 3, 3, ended=True)]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("GENREC_QUIET", raising=False)


def test_bars_outlive_a_loop_that_an_error_left_and_never_ended(terminal):
    bars = Bars()
    outer = bars.begin("outer", 2, 0)
    left = bars.begin("left", 9, 0)
    outer.end()
    left.advance()
    left.end()
    again = bars.begin("again", 2, 1)
    again.advance()
    bars.close()
    bars.close()
    again.end()


def test_nobody_watches_where_it_is_to_be_quiet(terminal, monkeypatch):
    monkeypatch.setenv("GENREC_QUIET", "1")
    bars = Bars()
    bars.begin("unseen", 3, 0).advance()
    assert bars._display is None
