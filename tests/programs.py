"""Programs of the system that tests need: without one a test is skipped on one's own machine, and fails where the
variable CI is set, so that nothing is taken as tested that was not."""

import os
from typing import NoReturn

import pytest


def absent(program: str, package: str) -> NoReturn:
    """End the test: `program` is missing, which Debian has as `package`."""
    said = f"{program} is not installed. On Debian: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(f"{said}. With CI set no test is skipped for that.", pytrace=False)
    pytest.skip(said)
