"""Commands for whoever checks: the audit chain, and a certificate on its own."""

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from genrec.errors import RequestError
from genrec.terminal import Json, example, open_workspace, show

audit_app = typer.Typer(no_args_is_help=True, help="The audit chain of the ledger.")
certificate_app = typer.Typer(no_args_is_help=True, help="Certificates of fulfilled requests.")


@contextmanager
def _reading():
    """The ledger's database as it is: an auditor may neither migrate it nor have the workspace's key."""
    from genrec.requests.database import existing, reaching

    engine = existing(open_workspace().ledger_url)
    if engine is None:
        raise RequestError("There is no ledger here yet. Go to its workspace, or set GENREC_HOME or GENREC_LEDGER_URL.")
    with reaching(engine):
        yield engine


@audit_app.command("verify", epilog=example("genrec audit verify --head 3f1c..."))
def audit_verify(
    kept: Annotated[str | None, typer.Option("--head", help="hash kept from an earlier run; shows a cut end")] = None,
    as_json: Json = False,
) -> None:
    """Recompute the whole chain, its length and its newest hash, and compare the workspace's certificates with it.

    Keep that hash outside the database; without --head the chain must have the one that the last night kept in its
    summary. `unnamed` are certificates that the chain does not name: an earlier version's.
    """
    from genrec.report.summary import kept_head
    from genrec.requests.audit import head, verify_chain
    from genrec.requests.certified import compare

    workspace = open_workspace()
    with _reading() as engine:
        newest = head(engine)  # read first: rows that are written meanwhile come after it
        told = {"rows": verify_chain(engine, kept or kept_head(workspace.reports)), "head": newest}
        found = compare(engine, workspace.certificates)
    show(told | {"certificates": found.agree, "unnamed": list(found.unnamed)}, as_json)


@audit_app.command("list", epilog=example("genrec audit list --about r-0123456789abcdef"))
def audit_list(
    about: Annotated[str | None, typer.Option(help="only this request, batch or version")] = None, as_json: Json = False
) -> None:
    """The rows of the chain, oldest first."""
    from genrec.requests.audit import rows

    with _reading() as engine:
        found = rows(engine, about)
    show(found, as_json, [{k: row[k] for k in ("seq", "at", "event", "subject", "payload")} for row in found], "audit")


@certificate_app.command(
    "verify",
    epilog=example("genrec certificate verify reports/certificates/r-0123456789abcdef.json --public-key signer.pem"),
)
def certificate_verify(
    file: Path,
    public_key: Annotated[Path | None, typer.Option(help="PEM file: the key that must have signed it")] = None,
    as_json: Json = False,
) -> None:
    """Recompute hash, signature and gates of a certificate, offline and without a workspace; exit code 1 if wrong."""
    from genrec.requests.certificates import verify

    result = verify(file, public_key)
    show(asdict(result) | {"ok": result.ok}, as_json)
    if not result.ok:
        raise RequestError(f"{file.name} is not sound: {' '.join(result.problems)} Ask the issuer for the original.")
