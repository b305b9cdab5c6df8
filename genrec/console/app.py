"""The console as one application: pages, API, static files, and what every answer has in common.

Nothing is fetched from elsewhere and no script stands in a page: htmx (in static/, with its licence) polls the running
night, everything else is links and forms. Bodies are small. Nothing is logged of a request.
"""

from collections.abc import Callable
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from genrec.config import Workspace
from genrec.console.accounts import Accounts
from genrec.console.api import PER_ACCOUNT, PER_ADDRESS, make_api
from genrec.console.desk import Desk
from genrec.console.pages import Pages, SignedOut, router
from genrec.console.refusals import UNREACHABLE, status_of
from genrec.console.sessions import Sessions
from genrec.console.throttle import Rate
from genrec.errors import GenrecError

MAX_BYTES = 2**16
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
TITLES = {403: "Not allowed", 404: "Not found"}


def make_app(
    workspace: Workspace, on_demand: Callable[[], None] | None = None,
    per_address: Rate = PER_ADDRESS, per_account: Rate = PER_ACCOUNT,
) -> FastAPI:  # fmt: skip
    """The application. on_demand: asks a Prefect server for a night; without it a night is a process of its own.

    per_address, per_account: limits of the API. Raises ConfigError for a ledger, key or account file that is none.
    """
    accounts = Accounts(workspace.console_users)
    accounts.read()
    desk = Desk(workspace, on_demand)
    pages = Pages(Sessions(workspace.console_key(), accounts))
    api = make_api(desk, accounts, per_address, per_account)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(desk, accounts, pages, api.openapi))
    app.mount("/api/v1", api)
    app.mount("/static", StaticFiles(directory=str(files("genrec.console") / "static")))

    @app.middleware("http")
    async def guard(request: Request, call_next) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in request.headers
        if chunked or not length.isdecimal() or int(length) > MAX_BYTES:
            answer = Response(f"Send a Content-Length of at most {MAX_BYTES}.", 413, media_type="text/plain")
        else:
            answer = await call_next(request)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    def refusal(request: Request, status: int, problem: str) -> Response:
        return pages.show(request, "refused.html.j2", status, title=TITLES.get(status, "Refused"), problem=problem)

    @app.exception_handler(SignedOut)
    async def signed_out(request: Request, _error: SignedOut) -> Response:
        if "hx-request" in request.headers:
            return Response(status_code=204, headers={"HX-Redirect": "/login"})
        return RedirectResponse("/login", 303)

    @app.exception_handler(GenrecError)
    async def refused(request: Request, error: GenrecError) -> Response:
        return refusal(request, status_of(error), str(error))

    @app.exception_handler(OperationalError)
    async def unreachable(request: Request, _error: OperationalError) -> Response:
        return refusal(request, 503, UNREACHABLE)

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        says = "There is no page at this address." if error.status_code == 404 else f"{error.detail}."
        return refusal(request, error.status_code, says)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, _error: RequestValidationError) -> Response:
        return refusal(request, 422, "Something in this address or form is not as it should be. Go back and repeat.")

    return app
