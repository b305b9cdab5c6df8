"""Training and unlearning on another worker: the flow only waits.

With GENREC_GPU_DEPLOYMENT set, a task hands its step to that deployment (flow `gpu`, on the pool `gpu`) and then reads
what the step left in the workspace, which both workers mount at the same path. Without it, it does the work itself.
"""

import time
from dataclasses import asdict
from functools import partial

from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from genrec.config import Workspace
from genrec.errors import GenrecError, OutageError
from tasks.options import LIMIT_S

TRIES = 3
POLL_S = 2
START_S = 1800  # a pool that grows on demand may take its time; what died before it began is CRASHED by then
WAIT_S = LIMIT_S - 2 * START_S  # so that the task that waits can still cancel what it waited for


def on_gpu(workspace: Workspace, step: str, key: str, **arguments) -> bool:
    """Run a step of `flows.gpu` on the GPU worker and wait for its end; False, at once, when there is none.

    `key` names the work: asked again (by the night after a crash), the run under way is waited for, and one whose
    worker died, before or after it began, is started anew. Raises GenrecError when the step failed, or its worker died
    TRIES times; OutageError when no worker takes it within START_S seconds; TimeoutError, with the run cancelled, when
    it has not ended after WAIT_S seconds.
    """
    deployment = workspace.settings.gpu_deployment
    if deployment is None:
        return False
    fence = workspace.fence and asdict(workspace.fence)  # the step writes under the lease of the flow that waits
    parameters = {"home": str(workspace.root), "step": step, "arguments": arguments, "fence": fence}
    deadline = time.monotonic() + WAIT_S
    for number in range(TRIES):
        name = f"{step} {key} {number}"
        ask = partial(
            run_deployment, deployment, parameters=parameters, flow_run_name=name, idempotency_key=name,
            poll_interval=POLL_S,
        )  # fmt: skip
        run = ask(timeout=START_S)
        if run.state.is_scheduled() or run.state.is_pending():
            raise OutageError(
                f"No worker took {name} on {deployment} within {START_S} s. Start one: prefect worker start --pool gpu."
            )
        if not run.state.is_final():
            run = ask(timeout=max(deadline - time.monotonic(), 0))  # for the same one, to its end
        if not run.state.is_final():
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run.id, Cancelling(message="The flow that asked for it waits no longer."))
            raise TimeoutError(
                f"{name} on {deployment} has not ended after {WAIT_S} s: flow run {run.id} is cancelled."
            )
        if run.state.is_completed():
            return True
        if not (run.state.is_crashed() or run.state.is_cancelled()):
            break
    raise GenrecError(f"{name} on {deployment} is {run.state.name}. See flow run {run.id} in Prefect.")
