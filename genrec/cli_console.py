"""Commands of the console: the application itself, its accounts and their API tokens."""

import sys
from typing import Annotated

import typer

from genrec.errors import ConfigError
from genrec.terminal import Json, example, open_workspace, show

console_app = typer.Typer(invoke_without_command=True)


@console_app.callback(epilog=example("genrec console --port 8091"))
def console(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8081,
    as_json: Json = False,
) -> None:
    """Serve the web console on 127.0.0.1: submit and verify requests, follow nights, read reports, certificates."""
    if context.invoked_subcommand:
        return
    try:
        import itsdangerous  # noqa: F401
        import python_multipart  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The console needs {error.name}. In your clone: pip install -c constraints.txt -e '.[console]'."
        ) from error
    workspace = open_workspace()
    from genrec.console.accounts import Accounts

    if not Accounts(workspace.console_users).read():
        raise ConfigError("The console has no account yet. Make one: genrec console adduser NAME --role operator.")
    from flows.on_demand import on_demand
    from genrec.console.app import make_app
    from genrec.server import run

    run(lambda: make_app(workspace, on_demand()), "127.0.0.1", port, lambda url: show({"url": url}, as_json))


@console_app.command("adduser", epilog=example("genrec console adduser vera --role verifier"))
def console_adduser(
    name: str,
    role: Annotated[str, typer.Option(help="requester, verifier or operator")],
    as_json: Json = False,
) -> None:
    """Add an account; its password is asked for, or read as one line from standard input."""
    from genrec.console.accounts import Accounts
    from genrec.console.roles import Role
    from genrec.errors import unknown

    if role not in tuple(Role):
        raise ConfigError(unknown("role", role, Role, ""))
    accounts = Accounts(open_workspace().console_users)
    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    accounts.add(name, Role(role), password)
    show({"account": name, "role": role, "file": str(accounts.path)}, as_json)


@console_app.command("token", epilog=example("genrec console token vera"))
def console_token(name: str, as_json: Json = False) -> None:
    """Print a new API token of an account, once; it takes the place of the last one."""
    from genrec.console.accounts import Accounts

    show({"token": Accounts(open_workspace().console_users).issue_token(name)}, as_json)
