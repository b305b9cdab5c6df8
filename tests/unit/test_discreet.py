"""What leaves a task or a night quotes nothing: Prefect keeps it, and what stands behind it."""

import importlib
import pkgutil
import traceback

import pytest
from prefect import Task
from sqlalchemy.exc import OperationalError

import tasks
from genrec.discreet import UnexpectedError, discreet
from genrec.errors import DataError

PERSON = "person-4711"


@discreet
def looked_up(where):
    """Looks up PERSON."""
    return where[PERSON]


@discreet
def refused():
    try:
        return {}[PERSON]
    except KeyError as error:
        raise DataError("This cannot be read. Correct it.") from error


def test_an_unforeseen_error_is_told_by_its_type_and_its_line():
    with pytest.raises(UnexpectedError, match=r"^KeyError at tests/unit/test_discreet\.py:\d+$") as caught:
        looked_up({})
    told = "".join(traceback.format_exception(caught.value))
    assert PERSON not in told
    assert "return where[PERSON]" in told  # where it was, for whoever mends it


def test_an_error_of_ours_comes_without_its_cause():
    with pytest.raises(DataError, match="Correct it") as caught:
        refused()
    assert PERSON not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_nothing_else_changes():
    assert looked_up({PERSON: 1}) == 1
    assert (looked_up.__name__, looked_up.__doc__) == ("looked_up", "Looks up PERSON.")

    @discreet
    def away():
        raise OperationalError("SELECT 1", None, Exception("refused"))

    with pytest.raises(OperationalError):  # by which an outage is known
        away()


def test_every_task_is_discreet():
    modules = [importlib.import_module(f"tasks.{module.name}") for module in pkgutil.iter_modules(tasks.__path__)]
    found = {one.fn for module in modules for one in vars(module).values() if isinstance(one, Task)}
    assert len(found) > 15
    assert [function.__qualname__ for function in found if function.__code__ is not looked_up.__code__] == []
