"""What each role may do in the console, and the rule that a concept takes two people.

The rule is the console's and not the ledger's: here accounts tell people apart. Whoever has the command line has the
ledger's database too, and no rule kept in it would bind them; what they do is in the audit chain.
"""

from enum import StrEnum

from genrec.errors import AccessError
from genrec.requests.states import Request


class Role(StrEnum):
    REQUESTER = "requester"
    VERIFIER = "verifier"
    OPERATOR = "operator"


class Action(StrEnum):
    """Values are the words of the table in docs/how-to/console.md."""

    SUBMIT = "submit a request, after its dry run"
    SEE_OWN = "see what one submitted oneself, its history and its certificate"
    SEE_ALL = "see everybody's requests, the nights and their reports"
    VERIFY = "verify a request"
    HANDLE = "hold, release, extend or cancel a request"
    START = "start a night"


_EVERYBODY = frozenset(Role)
MAY: dict[Action, frozenset[Role]] = {
    Action.SUBMIT: _EVERYBODY,
    Action.SEE_OWN: _EVERYBODY,
    Action.SEE_ALL: frozenset({Role.VERIFIER, Role.OPERATOR}),
    Action.VERIFY: frozenset({Role.VERIFIER, Role.OPERATOR}),
    Action.HANDLE: frozenset({Role.OPERATOR}),
    Action.START: frozenset({Role.OPERATOR}),
}


def require(role: Role, action: Action) -> None:
    """Raises AccessError, naming the roles that may, where this one may not."""
    if role not in MAY[action]:
        able = " or ".join(f"a {one}" if one != Role.OPERATOR else "an operator" for one in Role if one in MAY[action])
        raise AccessError(f"The role {role.value} may not {action.value}. Ask {able}.")


def require_another(name: str, request: Request) -> None:
    """Raises AccessError where the account `name` would verify a concept that it submitted itself."""
    if request.kind == "concept" and request.requested_by == name:
        raise AccessError(
            f"Request {request.id} is about a concept and was submitted by {name}: another person verifies it."
        )
