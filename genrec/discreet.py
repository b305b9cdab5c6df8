"""What an error may say: Prefect keeps the message of one that leaves a task or a flow, its log the errors behind it.

genrec's own errors are written without a person's id. Any other may quote a row, as the KeyError of a look-up does.
"""

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import httpx
from sqlalchemy.exc import OperationalError

from genrec.errors import GenrecError

PACKAGE = Path(__file__).parents[1]
P, R = ParamSpec("P"), TypeVar("R")


class UnexpectedError(Exception):
    """A fault of genrec or of what it stands on: the type of the error and where it came up, without its message."""


def unexpected(error: Exception) -> UnexpectedError:
    """`error` without its message: `KeyError at genrec/night.py:104`, the last line of ours that it went through."""
    if isinstance(error, UnexpectedError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    at = f" at {Path(ours[-1].filename).relative_to(PACKAGE)}:{ours[-1].lineno}" if ours else ""
    return UnexpectedError(f"{type(error).__name__}{at}").with_traceback(error.__traceback__)


def discreet(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose errors quote nothing: genrec's own without their causes, the others as `unexpected`.

    Errors of the database (which shows no parameters), of MLflow, Prefect and the disk pass: an outage is known by
    them.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from mlflow.exceptions import MlflowException

        try:
            return function(*args, **kwargs)
        except (OperationalError, MlflowException, OSError, httpx.HTTPError):
            raise
        except Exception as error:
            told = error if isinstance(error, GenrecError) else unexpected(error)
        told.__cause__ = told.__context__ = None
        raise told  # outside the except, or the error would be its context

    return call
