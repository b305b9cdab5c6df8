"""Commands about forget requests: ask, look at what it would take, and what an operator may do with one."""

from typing import Annotated

import typer

from genrec.completion import Concept, RequestId
from genrec.terminal import Json, example, now, open_workspace, show

forget_app = typer.Typer(no_args_is_help=True, help="Ask to forget a user, a concept, an item or one interaction.")
requests_app = typer.Typer(no_args_is_help=True, help="The queue of forget requests.")

Key = Annotated[str | None, typer.Option("--key", help="idempotency key: the same key returns the same request")]
Verifier = Annotated[str, typer.Option("--verifier", help="who checked that the requester may ask this")]
How = Annotated[str, typer.Option("--how", help="how they checked it; kept in the audit chain, never with an id")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what it would take, and store nothing")]
Reason = Annotated[str, typer.Option("--reason", help="why; kept in the audit chain, never with an id")]


def _forget(kind: str, as_json: bool, key: str | None, verifier: str, how: str, dry_run: bool, **subject: str) -> None:
    from genrec.data.subjects import Subject

    asked, workspace = Subject(kind, **subject), open_workspace()
    if dry_run:
        from genrec.dry_run import dry_run as estimate

        show(estimate(workspace, asked, now()).as_dict(), as_json)
        return
    from genrec.requests.intake import submit_and_verify

    request = submit_and_verify(workspace, asked, now=now(), verifier=verifier, how=how, idempotency_key=key)
    facts = request.as_dict()
    show(facts if as_json else {k: facts[k] for k in ("id", "kind", "label", "state", "due_at")}, as_json)


@forget_app.command("user", epilog=example("genrec forget user 4711 --verifier desk --how 'signed in'"))
def forget_user(
    user_id: str, key: Key = None, verifier: Verifier = "operator", how: How = "not recorded",
    dry_run: DryRun = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Forget everything a person did."""
    _forget("user", as_json, key, verifier, how, dry_run, user_id=user_id)


@forget_app.command("concept", epilog=example("genrec forget concept Horror --dry-run"))
def forget_concept(
    concept: Concept, key: Key = None, verifier: Verifier = "operator", how: How = "not recorded",
    dry_run: DryRun = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Forget every item that carries a tag; its items are not shown from now on."""
    _forget("concept", as_json, key, verifier, how, dry_run, concept=concept)


@forget_app.command("item", epilog=example("genrec forget item i0026 --key ticket-812"))
def forget_item(
    item_id: str, key: Key = None, verifier: Verifier = "operator", how: How = "not recorded",
    dry_run: DryRun = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Forget one item; it is not shown from now on."""
    _forget("item", as_json, key, verifier, how, dry_run, item_id=item_id)


@forget_app.command("interaction", epilog=example("genrec forget interaction 4711 i0026"))
def forget_interaction(
    user_id: str, item_id: str, key: Key = None, verifier: Verifier = "operator", how: How = "not recorded",
    dry_run: DryRun = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Forget that a person interacted with an item."""
    _forget("interaction", as_json, key, verifier, how, dry_run, user_id=user_id, item_id=item_id)


def _ledger():
    from genrec.requests.store import open_ledger

    return open_ledger(open_workspace())


@requests_app.command("list", epilog=example("genrec requests list --overdue"))
def requests_list(
    state: Annotated[str | None, typer.Option(help="only requests in this state")] = None,
    overdue: Annotated[bool, typer.Option("--overdue", help="only open requests past their due date")] = False,
    as_json: Json = False,
) -> None:
    """Requests by time of arrival."""
    rows = [request.as_dict() for request in _ledger().requests(state, now() if overdue else None)]
    columns = ("id", "kind", "label", "state", "method", "received_at", "due_at", "unlearned_at")
    show(rows, as_json, [{c: row[c] for c in columns} for row in rows], "requests")


@requests_app.command("show", epilog=example("genrec requests show r-0123456789abcdef"))
def requests_show(request_id: RequestId, as_json: Json = False) -> None:
    """One request."""
    show(_ledger().get(request_id).as_dict(), as_json)


@requests_app.command(
    "extend", epilog=example("genrec requests extend r-0123456789abcdef --reason 'three systems to search'")
)
def requests_extend(request_id: RequestId, reason: Reason, as_json: Json = False) -> None:
    """Move the due date, once and before it has passed, by requests.extension_days; tell the requester the reason."""
    show(_ledger().extend(request_id, now=now(), reason=reason).as_dict(), as_json)


@requests_app.command(
    "verify", epilog=example("genrec requests verify r-0123456789abcdef --how 'signed in' --verifier desk")
)
def requests_verify(
    request_id: RequestId,
    how: Annotated[str, typer.Option("--how", help="how it was checked; kept in the audit chain, never with an id")],
    verifier: Verifier = "operator",
    as_json: Json = False,
) -> None:
    """Say that the requester may ask this: a received request is queued, and its items are not shown from now on."""
    from genrec.requests.intake import verify

    show(verify(open_workspace(), request_id, now=now(), verifier=verifier, how=how).as_dict(), as_json)


@requests_app.command("reject", epilog=example("genrec requests reject r-0123456789abcdef --reason 'not the person'"))
def requests_reject(request_id: RequestId, reason: Reason, as_json: Json = False) -> None:
    """Refuse a request for good, for a reason the requester is told; its items are shown again."""
    show(_ledger().reject(request_id, now=now(), reason=reason).as_dict(), as_json)


@requests_app.command("hold", epilog=example("genrec requests hold r-0123456789abcdef --reason 'identity in doubt'"))
def requests_hold(request_id: RequestId, reason: Reason, as_json: Json = False) -> None:
    """Keep a request out of the next nights; its items stay hidden and its due date stays."""
    show(_ledger().hold(request_id, now=now(), reason=reason).as_dict(), as_json)


@requests_app.command("release", epilog=example("genrec requests release r-0123456789abcdef"))
def requests_release(request_id: RequestId, as_json: Json = False) -> None:
    """End a hold."""
    show(_ledger().release(request_id, now=now()).as_dict(), as_json)


@requests_app.command("cancel", epilog=example("genrec requests cancel r-0123456789abcdef --reason withdrawn"))
def requests_cancel(request_id: RequestId, reason: Reason = "withdrawn", as_json: Json = False) -> None:
    """Withdraw a request that is not running yet."""
    show(_ledger().cancel(request_id, now=now(), reason=reason).as_dict(), as_json)
