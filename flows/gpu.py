"""The work of a GPU worker: one step of another flow, whose task waits for it (see tasks/gpu.py)."""

from prefect import flow

from genrec.config import Settings
from genrec.environment import prepare_environment
from genrec.requests.fence import Fence
from tasks import data, evaluation, unlearning

STEPS = {
    "climb_rung": unlearning.climb_rung,
    "judge_final": evaluation.judge_final,
    "calibrate": evaluation.calibrate,
    "reproduce_base": data.reproduce_base,
}


@flow(name="gpu", log_prints=False, validate_parameters=False)
def gpu(home: str, step: str, arguments: dict, fence: dict | None) -> None:
    """Run the task `step` here, in the workspace `home`; its result is what it leaves there.

    fence: name and token of the lease under which it writes to the ledger.
    """
    workspace = Settings(home=home, gpu_deployment=None).workspace.fenced(Fence(**fence) if fence else None)
    prepare_environment(workspace)
    STEPS[step](workspace, **arguments)
