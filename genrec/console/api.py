"""The console's API, /api/v1: bearer tokens of the console's accounts, the same roles, the same functions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Body, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from genrec.console.accounts import Account, Accounts
from genrec.console.desk import Desk
from genrec.console.nights import Past, Running
from genrec.console.refusals import UNREACHABLE, status_of
from genrec.console.roles import Action, require
from genrec.console.throttle import Rate, Throttle
from genrec.data.subjects import LONGEST_ID, Subject
from genrec.errors import GenrecError
from genrec.requests import states
from genrec.section import Section
from genrec.terminal import now

PER_ADDRESS, PER_ACCOUNT = Rate(120, 2), Rate(60, 1)

Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
RequestId = Annotated[str, InPath(pattern="^r-[0-9a-f]{16}$", description="as POST /requests gave it")]
Reason = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]


class AskUser(Section):
    """Forget everything a person did."""

    kind: Literal["user"]
    user_id: Id


class AskConcept(Section):
    """Forget every item that carries a tag."""

    kind: Literal["concept"]
    concept: Id


class AskItem(Section):
    """Forget one item."""

    kind: Literal["item"]
    item_id: Id


class AskInteraction(Section):
    """Forget that a person interacted with an item."""

    kind: Literal["interaction"]
    user_id: Id
    item_id: Id


class Checked(Section):
    """How the requester's identity, or the order behind a concept, was checked; kept for good, never with an id."""

    how: Reason


class Because(Section):
    """Why; kept in the audit chain for good, never with an id."""

    reason: Reason


class Which(Section):
    """Which requests to list."""

    is_open: bool | None = Field(None, alias="open", description="only open, or only closed ones")
    limit: int = Field(100, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=2**31)


class Last(Section):
    """How many of the nights that ended."""

    limit: int = Field(50, ge=1, le=1000)


@dataclass(frozen=True)
class Nights:
    running: Running
    past: list[Past]


class Error(Section):
    error: str


class Limited(GenrecError):
    """Too many requests; says when to come again."""

    def __init__(self, wait_s: int):
        super().__init__(f"Too many requests. Try again in {wait_s} seconds.")
        self.wait_s = wait_s


class Unknown(GenrecError):
    """No bearer token, or none of ours."""


def make_api(desk: Desk, accounts: Accounts, per_address: Rate, per_account: Rate) -> FastAPI:
    """The application under /api/v1; its schema is /api/v1/openapi.json."""
    told = {
        400: "The body is no text.", 401: "No valid token.", 403: "The role may not.", 409: "Refused, with the remedy.",
        413: "Too large.", 422: "Not as described.", 429: "Too many requests.", 503: "A part does not answer.",
    }  # fmt: skip
    api = FastAPI(
        title="genrec console", version="1", docs_url=None, redoc_url=None,  # those pages fetch scripts from elsewhere
        responses={status: {"model": Error, "description": text} for status, text in told.items()},
    )  # fmt: skip
    missing = {404: {"model": Error, "description": "Nothing there that the account may see."}}
    addresses, by_name = Throttle(per_address), Throttle(per_account)
    bearer = HTTPBearer(auto_error=False, description="genrec console token NAME")

    def account(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Account:
        if wait := addresses.wait_s(request.client.host):
            raise Limited(wait)
        found = accounts.by_token(given.credentials) if given else None
        if found is None:
            raise Unknown("This needs the token of an account: Authorization: Bearer TOKEN. See genrec console token.")
        if wait := by_name.wait_s(found.name):
            raise Limited(wait)
        return found

    Caller = Annotated[Account, Depends(account)]

    @api.get("/requests", summary="Requests the account may see, by time of arrival")
    def list_requests(caller: Caller, which: Annotated[Which, Query()]) -> list[states.Request]:
        return desk.requests(caller, is_open=which.is_open, limit=which.limit, offset=which.offset)

    @api.post("/requests", status_code=201, summary="Submit a request; the open one about the same subject comes back")
    def submit(
        caller: Caller,
        asked: Annotated[AskUser | AskConcept | AskItem | AskInteraction, Body(discriminator="kind")],
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> states.Request:
        return desk.submit(caller, Subject(**asked.model_dump()), now(), idempotency_key)

    @api.get("/requests/{request_id}", responses=missing, summary="One request")
    def one(caller: Caller, request_id: RequestId) -> states.Request:
        return desk.request(caller, request_id)

    @api.post("/requests/{request_id}/verify", responses=missing, summary="Verify; not one's own concept")
    def verify(caller: Caller, request_id: RequestId, checked: Checked) -> states.Request:
        return desk.verify(caller, request_id, checked.how, now())

    @api.post("/requests/{request_id}/hold", responses=missing, summary="Keep it out of the next nights")
    def hold(caller: Caller, request_id: RequestId, because: Because) -> states.Request:
        return desk.hold(caller, request_id, because.reason, now())

    @api.post("/requests/{request_id}/release", responses=missing, summary="End a hold")
    def release(caller: Caller, request_id: RequestId) -> states.Request:
        return desk.release(caller, request_id, now())

    @api.post("/requests/{request_id}/extend", responses=missing, summary="Move the due date, once")
    def extend(caller: Caller, request_id: RequestId, because: Because) -> states.Request:
        return desk.extend(caller, request_id, because.reason, now())

    @api.post("/requests/{request_id}/cancel", responses=missing, summary="Withdraw a request that is not running")
    def cancel(caller: Caller, request_id: RequestId, because: Because) -> states.Request:
        return desk.cancel(caller, request_id, because.reason, now())

    @api.get("/nights", summary="The night that runs, and the last ones that ended")
    def nights(caller: Caller, last: Annotated[Last, Query()]) -> Nights:
        require(caller.role, Action.SEE_ALL)
        return Nights(desk.nights.running(now()), desk.nights.past(last.limit))

    @api.post("/nights", status_code=202, summary="Start a night")
    def start(caller: Caller) -> Running:
        desk.start_night(caller, now())
        return desk.nights.running(now())

    @api.get(
        "/certificates/{request_id}", responses=missing, summary="The certificate of a fulfilled request, as issued"
    )
    def certificate(caller: Caller, request_id: RequestId) -> dict:
        path: Path = desk.certificate(caller, request_id)
        return FileResponse(path, media_type="application/json", filename=path.name)

    @api.exception_handler(GenrecError)
    async def refused(_request: Request, error: GenrecError) -> Response:
        return _error(status_of(error), str(error))

    @api.exception_handler(Limited)
    async def limited(_request: Request, error: Limited) -> Response:
        return _error(429, str(error), {"Retry-After": str(error.wait_s)})

    @api.exception_handler(Unknown)
    async def unknown(_request: Request, error: Unknown) -> Response:
        return _error(401, str(error), {"WWW-Authenticate": "Bearer"})

    @api.exception_handler(OperationalError)
    async def unreachable(_request: Request, _error_: OperationalError) -> Response:
        return _error(503, UNREACHABLE)

    @api.exception_handler(HTTPException)
    async def elsewhere(_request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, f"{error.detail}. See /api/v1/openapi.json.", error.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]  # without its input, which may be a person's id
        return _error(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}. See /api/v1/openapi.json.")

    return api


def _error(status: int, text: str, headers: dict | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)
