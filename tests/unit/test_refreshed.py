"""A refreshed value: never older than it may be, never lost to a failure, never waited for by more than one."""

import threading

import pytest

from genrec.errors import ConfigError, ServingError
from genrec.refreshed import LATE, Refreshed


class Source:
    """Counts its readings; `answer` is a value or an exception."""

    def __init__(self):
        self.now, self.answer, self.reads = 0.0, "a", []

    def read(self, last):
        self.reads.append(last)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def refreshed(self):
        return Refreshed("thing", self.read, 2, lambda: self.now)


def test_it_is_read_again_only_when_it_is_asked_for_and_old():
    source = Source()
    value = source.refreshed()
    assert source.reads == []
    assert [value.value() for _ in range(3)] == ["a"] * 3
    source.answer, source.now = "b", 1.9
    assert value.value() == "a"
    source.now = 2
    assert value.value() == "b"
    assert source.reads == [None, "a"]


def test_a_failure_keeps_the_last_value_and_says_so_until_it_is_over():
    source = Source()
    value = source.refreshed()
    value.value()
    source.answer, source.now = ConfigError("Start it."), 2
    assert (value.value(), value.problem) == ("a", "Start it.")
    source.answer, source.now = OSError("secret"), 4
    assert (value.value(), value.problem) == ("a", "The thing cannot be read (OSError). See the log.")
    source.answer, source.now = "b", 6
    assert (value.value(), value.problem) == ("b", None)


def test_without_a_first_value_every_asker_is_told_why():
    source = Source()
    value = source.refreshed()
    source.answer = ConfigError("Start it.")
    for _ in range(2):
        with pytest.raises(ServingError, match=r"^Start it\.$"):
            value.value()
    assert len(source.reads) == 1  # not once per asker
    source.answer, source.now = "a", 2
    assert value.value() == "a"


def test_a_reading_that_hangs_holds_up_one_asker_and_is_noticed():
    source, begun, end = Source(), threading.Event(), threading.Event()
    value = Refreshed("thing", lambda last: "a" if last is None else hang(), 2, lambda: source.now)

    def hang():
        begun.set()
        end.wait(10)
        return "b"

    value.value()
    source.now = 2
    first = threading.Thread(target=value.value)
    first.start()
    begun.wait(10)
    assert (value.value(), value.problem) == ("a", None)
    source.now = 2 * LATE + 1
    assert (value.value(), value.problem) == ("a", "The thing was last read 21 s ago.")
    end.set()
    first.join()
    assert value.value() == "b"
