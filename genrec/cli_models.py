"""Commands about registered versions: list, roll back, lineage both ways, and the purge of old ones."""

from typing import Annotated

import typer

from genrec.completion import RequestId
from genrec.terminal import Json, example, now, open_workspace, run_flow, show

models_app = typer.Typer(no_args_is_help=True, help="Registered model versions.")
lineage_app = typer.Typer(no_args_is_help=True, help="Which versions know a request; what made a version.")
purge_app = typer.Typer(no_args_is_help=True, help="Old versions that still hold what was forgotten.")


@models_app.command("list", epilog=example("genrec models list"))
def models_list(as_json: Json = False) -> None:
    """Registered versions, newest first."""
    from genrec.registry import open_registry

    versions = open_registry(open_workspace()).versions()
    rows = [
        {"version": v.number, "aliases": " ".join(v.aliases), "method": v.tags.get("method"),
         "verdict": v.tags.get("verdict"), "batch": v.tags.get("batch_id"), "ndcg@10": v.metrics.get("ndcg_10")}
        for v in versions
    ]  # fmt: skip
    show([v.as_dict() for v in versions], as_json, rows, "versions")


@models_app.command("rollback", epilog=example("genrec models rollback 3 --reapply"))
def models_rollback(
    to: Annotated[str | None, typer.Argument(help="version; default: the alias `previous`")] = None,
    reapply: Annotated[
        bool, typer.Option("--reapply", help="retrain it without what was forgotten since; exact")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve an older version again. Refused where it would bring back what was forgotten since."""
    workspace = open_workspace()
    from flows.unlearn import lease
    from genrec.rollback import rollback

    with lease(workspace, "rollback") as held:
        show(rollback(held, to, now=now(), reapply=reapply), as_json)


@lineage_app.command("request", epilog=example("genrec lineage request r-0123456789abcdef"))
def lineage_request(request_id: RequestId, as_json: Json = False) -> None:
    """Which versions may know what a request is about, and which are free of it."""
    from genrec.lineage import of_request

    told = of_request(open_workspace(), request_id)
    if as_json:
        show(told, True)
        return
    show({name: value for name, value in told.items() if name not in ("knew", "free")}, False)
    rows = [
        _version_row(one) | {"knows it": says}
        for key, says in (("knew", "it may"), ("free", "no"))
        for one in told[key]
    ]
    show(None, False, rows, "versions")


@lineage_app.command("version", epilog=example("genrec lineage version champion"))
def lineage_version(version: str, as_json: Json = False) -> None:
    """What made a version (requests, parents, data, code, backbone, gates) and what it is free of."""
    from genrec.lineage import of_version

    told = of_version(open_workspace(), version)
    if as_json:
        show(told, True)
        return
    show({name: value for name, value in told.items() if name != "parents"}, False)
    show(None, False, [_version_row(one) for one in told["parents"]], "parents")


def _version_row(one: dict) -> dict:
    return {name: one.get(name) for name in ("version", "method", "batch_id", "purged_at")}


@purge_app.command("list", epilog=example("genrec purge list"))
def purge_list(as_json: Json = False) -> None:
    """What still holds what was forgotten, and from when it is removed. Changes nothing."""
    workspace = open_workspace()
    from genrec.purge import overview
    from tasks.objects import dvc_objects

    with dvc_objects(workspace) as objects:
        told = overview(workspace, objects).as_dict()
    show(told, as_json, _purge_rows(told), "old versions that hold what was forgotten")


@purge_app.command("run", epilog=example("genrec purge run"))
def purge_run(as_json: Json = False) -> None:
    """List what is new and remove what is due."""
    open_workspace()
    from flows.purge import purge as flow

    told = run_flow(flow)
    show(told, as_json, _purge_rows(told), "old versions that hold what was forgotten")


def _purge_rows(told: dict) -> list[dict]:
    return [
        {
            "state": state, "kind": item["kind"], "name": item["name"], "requests": len(item["holds"]),
            "due": item.get("due", "")[:16], "why kept": item.get("why"),
        }
        for state, items in told.items()
        for item in items
    ]  # fmt: skip
