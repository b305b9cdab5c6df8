"""Commands about what the evaluation can tell: calibrations of the methods and the power of the gates."""

from typing import Annotated

import typer

from genrec.terminal import Json, example, named, open_workspace, run_flow, show

calibration_app = typer.Typer()


@calibration_app.command(epilog=example("genrec calibrate"))
def calibrate(as_json: Json = False) -> None:
    """Run the approximate methods on a shadow cohort of people who stay, against a retrained model."""
    open_workspace()
    from flows.calibrate import calibrate as flow

    found = run_flow(flow)
    show(found, as_json, _rows(found), "calibrations")


@calibration_app.command(epilog=example("genrec calibrations --json"))
def calibrations(as_json: Json = False) -> None:
    """Calibrations so far, newest first."""
    from genrec.requests.calibrations import listed
    from genrec.requests.store import open_ledger

    found = [one.as_dict() for one in listed(open_ledger(open_workspace()).engine)]
    show(found, as_json, _rows(found), "calibrations")


@calibration_app.command(epilog=example("genrec power --power 0.9"))
def power(
    power: Annotated[float, typer.Option(min=0.01, max=0.99, help="chance of a PASS when the method forgets")] = 0.8,
    as_json: Json = False,
) -> None:
    """How many users or test cases each gate needs before it can pass on this workspace's champion."""
    from genrec.power import power_of

    needs = [need.as_dict() for need in power_of(open_workspace(), power)]
    show(needs, as_json, needs, "power")


def _rows(found: list[dict]) -> list[dict]:
    return [
        {
            "at": one["at"][:16], "method": one["method"], "verdict": one["verdict"], "users": one["n"],
            "split half": None if one["split_half"] is None else round(one["split_half"], 3),
            "seconds": one["wall_s"], "retraining": one["gold_s"], "champion": one["champion"],
            "gates that did not pass": named(one["gates"]),
        }
        for one in found
    ]  # fmt: skip
