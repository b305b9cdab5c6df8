"""Commands that run a deployment: its set-up on a Prefect server, its checks, its service, a night that cannot wait."""

from typing import Annotated

import typer

from genrec.completion import RequestId
from genrec.config import workspace as current_workspace
from genrec.environment import prepare_environment
from genrec.terminal import Json, coloured, example, now, open_workspace, run_flow, show

operate_app = typer.Typer()


@operate_app.command(epilog=example("genrec deploy"))
def deploy(as_json: Json = False) -> None:
    """Make pools, deployments and automations on the Prefect server of PREFECT_API_URL. Safe to repeat."""
    workspace = open_workspace()
    from flows.deploy import deploy as make

    show(make(workspace), as_json)


@operate_app.command(epilog=example("genrec check"))
def check(as_json: Json = False) -> None:
    """Send the alerts that stand to GENREC_ALERT_WEBHOOK, each once, and wake a night for overdue requests."""
    open_workspace()
    from flows.check import check as flow

    show(run_flow(flow), as_json)


@operate_app.command(epilog=example("genrec alerts"))
def alerts(as_json: Json = False) -> None:
    """The alerts that stand now, sent or not."""
    from dataclasses import asdict

    from genrec.alerts import standing

    found = [asdict(alert) for alert in standing(open_workspace(), now())]
    show(found, as_json, [{k: one[k] for k in ("kind", "text")} for one in found], "alerts")


@operate_app.command(epilog=example("genrec breach r-0123456789abcdef --reason 'file was public'"))
def breach(
    request_id: RequestId,
    reason: Annotated[str, typer.Option(help="what happened, without names; kept in the audit chain")],
    as_json: Json = False,
) -> None:
    """Make a request due now, and start a night where a Prefect server is configured (else: genrec night)."""
    from genrec.requests.breach import expedite
    from genrec.requests.store import open_ledger
    from tasks.alerts import emit_request

    ledger = open_ledger(open_workspace())
    expedite(ledger.engine, request_id, now=now(), reason=reason)
    emit_request("breach", [request_id])
    facts = ledger.get(request_id).as_dict()
    show(facts if as_json else {k: facts[k] for k in ("id", "state", "due_at")}, as_json)


@operate_app.command(epilog=example("genrec serve --port 8090"))
def serve(
    host: Annotated[str, typer.Option(help="the address to listen on; there is no login")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    as_json: Json = False,
) -> None:
    """Recommend over HTTP with the champion, without denied items: POST /recommend, GET /health, GET /metrics."""
    workspace = open_workspace()
    from genrec.server import make_app, run

    run(lambda: make_app(workspace), host, port, lambda url: show({"url": url}, as_json))


@operate_app.command(epilog=example("genrec doctor"))
def doctor(as_json: Json = False) -> None:
    """Check every part of the workspace, one line each with what to do; exit code 1 when something is broken."""
    from dataclasses import asdict

    workspace = current_workspace()
    prepare_environment(workspace)
    from genrec.doctor import examine

    found = examine(workspace, now())
    rows = [asdict(one) for one in found]
    if as_json:
        show(rows, True)
    else:
        for one in found:
            typer.echo(f"{coloured(one.state)}{one.part:11}{one.says}" + (f". {one.remedy}." if one.remedy else ""))
    if any(one.state == "broken" for one in found):
        raise typer.Exit(1)
