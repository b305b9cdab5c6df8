"""A night on demand: the deployment `unlearn/on-demand` of a configured Prefect server."""

from collections.abc import Callable

import httpx
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from genrec.errors import ConfigError, OutageError

DEPLOYMENT = "unlearn/on-demand"


def on_demand() -> Callable[[], None] | None:
    """What starts a run of the deployment; None without PREFECT_API_URL, where no worker would take it."""
    return _start if PREFECT_API_URL.value() is not None else None


def _start() -> None:
    """Schedule one run for now. Raises ConfigError without the deployment, OutageError where the server is away."""
    try:
        run_deployment(DEPLOYMENT, parameters={"trigger": "console"}, timeout=0)
    except ObjectNotFound as error:
        raise ConfigError(f"The Prefect server has no deployment {DEPLOYMENT}. Make it: genrec deploy.") from error
    except httpx.HTTPError as error:
        raise OutageError(
            f"The Prefect server does not answer ({type(error).__name__}). Start it, or correct PREFECT_API_URL."
        ) from error
