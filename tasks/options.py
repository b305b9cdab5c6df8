"""How tasks are run: which are tried again, and how long one may take.

A time limit is an alarm in the main thread, where flows run their tasks: it ends what waits for a lock, a socket or a
child, and `tasks.data.dvc` ends its child then. Heartbeats come from threads, so they do not tell of a task that hangs.

Nothing is cached: what a step has done is on disk, in MLflow or in the ledger, and a repeat reads it there.
"""

from prefect.cache_policies import NO_CACHE

from genrec.errors import GenrecError, OutageError

LIMIT_S = 12 * 3600
SHORT_S = 3 * 3600  # a purge of many remote objects, a checkout of all data


def transient(_task, _run, state) -> bool:
    """Whether another try may help: a refusal (GenrecError) is an answer, anything else may be a lost connection."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OutageError) or not isinstance(error, GenrecError)


ONCE = {"cache_policy": NO_CACHE, "timeout_seconds": SHORT_S}
SAFE = ONCE | {"retries": 2, "retry_delay_seconds": 5, "retry_condition_fn": transient}
LONG = {"cache_policy": NO_CACHE, "timeout_seconds": LIMIT_S}
