"""The console's pages: HTML from templates, forms that carry their session's token, and one fragment that is polled.

Only a log-in sets the cookie of a session and only a log-out takes it away. It is sent with links from elsewhere
(SameSite=lax), so no GET changes anything, and a POST needs the token as well, which no other site can read. A browser
that does not send it, as with a picture or a form of another site, is a stranger's, and its answer sets nothing.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from genrec.console.accounts import Account, Accounts
from genrec.console.desk import Desk
from genrec.console.refusals import status_of
from genrec.console.roles import MAY, Action, require
from genrec.console.sessions import SESSION_S, Sessions, Visit
from genrec.console.throttle import Rate, Throttle
from genrec.data.subjects import FIELDS, Subject
from genrec.errors import AccessError, GenrecError, RegistryError
from genrec.requests.states import CLOSED, PERSONAL, TRANSITIONS
from genrec.requests.states import Request as LedgerRequest
from genrec.terminal import now

COOKIE = "genrec_console"
GUARD = "genrec_console_login"
"""The cookie of the log-in form, which is sent to no other page."""
LOGINS_PER_NAME, LOGINS_PER_ADDRESS = Rate(5, 1 / 60), Rate(20, 1 / 10)
SHOWN = 200
"""Requests on a page of the queue."""
NIGHTS_SHOWN = 50
REPORT_POLICY = "sandbox allow-scripts; frame-ancestors 'none'"
"""A report keeps its own policy and gets an origin of its own, from which its scripts reach nothing of the console."""


NOT_YOURS = "This form is not of your session, or too old. Open the page again and repeat."


class SignedOut(Exception):
    """Nobody has signed in; the handler sends the browser to the log-in."""


def environment() -> Environment:
    found = Environment(
        loader=PackageLoader("genrec.console", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    found.globals |= {"Action": Action, "FIELDS": FIELDS, "TRANSITIONS": TRANSITIONS}
    found.filters |= {"when": _when}
    return found


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "–"


class Pages:
    """Renders templates for a visit."""

    def __init__(self, sessions: Sessions):
        self.sessions = sessions
        self._environment = environment()

    def show(self, request: Request, template: str, status: int = 200, **values) -> Response:
        visit = self.visit(request)
        text = self._environment.get_template(template).render(
            account=visit.account, csrf=visit.csrf, path=request.url.path,
            may=lambda action: visit.account is not None and visit.account.role in MAY[action], **values,
        )  # fmt: skip
        return HTMLResponse(text, status)

    def log_in(self, request: Request, status: int = 200, problem: str | None = None) -> Response:
        """The log-in form, and the cookie that guards it."""
        guard = self.sessions.visit(request.cookies.get(GUARD))
        answer = self.show(request, "login.html.j2", status, guard=guard.csrf, problem=problem)
        return self._set(request, answer, GUARD, guard, path="/login")

    def own_log_in(self, request: Request, token: str) -> bool:
        """Whether a log-in form with this token was given to this browser."""
        return self.sessions.own_form(self.sessions.visit(request.cookies.get(GUARD)), token)

    def visit(self, request: Request) -> Visit:
        return self.sessions.visit(request.cookies.get(COOKIE))

    def begin(self, request: Request, account: Account) -> Response:
        """Start a session of the account and lead to the queue."""
        return self._set(request, RedirectResponse("/requests", 303), COOKIE, self.sessions.log_in(account), path="/")

    def _set(self, request: Request, answer: Response, name: str, visit: Visit, path: str) -> Response:
        """Set a cookie; over TLS it never leaves TLS."""
        answer.set_cookie(
            name, self.sessions.cookie(visit), max_age=SESSION_S, path=path, httponly=True, samesite="lax",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer


def router(desk: Desk, accounts: Accounts, pages: Pages, api_schema: Callable[[], dict]) -> APIRouter:
    """Every page."""
    routes = APIRouter(include_in_schema=False)
    names, addresses = Throttle(LOGINS_PER_NAME), Throttle(LOGINS_PER_ADDRESS)

    def own_form(request: Request, csrf: Annotated[str, Form()] = "") -> Visit:
        visit = pages.visit(request)
        if not pages.sessions.own_form(visit, csrf):
            raise AccessError(NOT_YOURS)
        return visit

    def signed_in(request: Request) -> Account:
        account = pages.visit(request).account
        if account is None:
            raise SignedOut
        return account

    def signed_form(visit: Annotated[Visit, Depends(own_form)]) -> Visit:
        if visit.account is None:
            raise SignedOut
        return visit

    Reader, Poster = Annotated[Account, Depends(signed_in)], Annotated[Visit, Depends(signed_form)]

    @routes.get("/login")
    def login_page(request: Request) -> Response:
        return RedirectResponse("/requests", 303) if pages.visit(request).account else pages.log_in(request)

    @routes.post("/login")
    def login(
        request: Request, name: Annotated[str, Form()] = "", password: Annotated[str, Form()] = "",
        csrf: Annotated[str, Form()] = "",
    ) -> Response:  # fmt: skip
        if not pages.own_log_in(request, csrf):
            raise AccessError(NOT_YOURS)
        wait = addresses.wait_s(request.client.host) or names.wait_s(name)
        if wait:
            problem = f"Too many log-ins. Try again in {wait} seconds."
            response = pages.log_in(request, 429, problem)
            response.headers["Retry-After"] = str(wait)
            return response
        account = accounts.by_password(name, password)
        if account is None:
            return pages.log_in(request, 401, "Name or password is wrong.")
        return pages.begin(request, account)

    @routes.post("/logout")
    def logout(visit: Annotated[Visit, Depends(own_form)]) -> Response:
        pages.sessions.log_out(visit)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE)
        return response

    @routes.get("/")
    def start() -> Response:
        return RedirectResponse("/requests", 303)

    @routes.get("/requests")
    def queue(request: Request, account: Reader, closed: bool = False) -> Response:
        found = desk.requests(account, is_open=not closed, limit=SHOWN)
        return pages.show(
            request, "queue.html.j2", requests=found, closed=closed, now=now(), shown=SHOWN,
            overdue=sum(_overdue(one) for one in found),
        )  # fmt: skip

    def _overdue(one: LedgerRequest) -> bool:
        return one.state not in CLOSED and one.due_at <= now()

    @routes.get("/requests/new")
    def new(request: Request, account: Reader) -> Response:
        require(account.role, Action.SUBMIT)
        return pages.show(request, "new.html.j2", kind="concept", problem=None)

    @routes.post("/requests/dry-run")
    def dry_run(
        request: Request, visit: Poster, kind: Annotated[str, Form()] = "", user_id: Annotated[str, Form()] = "",
        item_id: Annotated[str, Form()] = "", concept: Annotated[str, Form()] = "",
    ) -> Response:  # fmt: skip
        """What it would take. The subject waits in the session: the page that submits it holds no raw id."""
        given = {"user_id": user_id, "item_id": item_id, "concept": concept}
        estimate, unknown = None, None
        try:
            subject = Subject(kind, **{name: given[name] for name in FIELDS.get(kind, ())})
            try:
                estimate = desk.dry_run(visit.account, subject, now())
            except RegistryError as error:  # no champion yet: the request can wait for one
                unknown = str(error)
        except GenrecError as error:
            return pages.show(request, "new.html.j2", 409, kind=kind, problem=str(error))
        label = None if kind in PERSONAL else subject.concept or subject.item_id
        draft = pages.sessions.keep(visit, subject)
        return pages.show(
            request, "dry_run.html.j2", kind=kind, label=label, estimate=estimate, unknown=unknown, draft=draft
        )

    @routes.post("/requests")
    def submit(request: Request, visit: Poster, draft: Annotated[str, Form()] = "") -> Response:
        subject = pages.sessions.kept(visit, draft)
        if subject is None:
            problem = "This dry run is too old. Repeat it."
            return pages.show(request, "new.html.j2", 409, kind="concept", problem=problem)
        try:
            stored = desk.submit(visit.account, subject, now(), draft)
        except GenrecError as error:
            return pages.show(request, "new.html.j2", 409, kind=subject.kind, problem=str(error))
        return RedirectResponse(f"/requests/{stored.id}", 303)

    def request_page(
        request: Request, account: Account, request_id: str, status: int = 200, problem: str | None = None
    ) -> Response:
        found = desk.request(account, request_id)
        return pages.show(
            request, "request.html.j2", status, r=found, history=desk.history(found), problem=problem,
            overdue=_overdue(found), own_concept=found.kind == "concept" and found.requested_by == account.name,
        )  # fmt: skip

    @routes.get("/requests/{request_id}")
    def one(request: Request, account: Reader, request_id: str) -> Response:
        return request_page(request, account, request_id)

    @routes.post("/requests/{request_id}/{what}")
    def act(
        request: Request, visit: Poster, request_id: str, what: str, how: Annotated[str, Form()] = "",
        reason: Annotated[str, Form()] = "",
    ) -> Response:  # fmt: skip
        account = visit.account
        try:
            match what:
                case "verify":
                    desk.verify(account, request_id, how, now())
                case "hold":
                    desk.hold(account, request_id, reason, now())
                case "release":
                    desk.release(account, request_id, now())
                case "extend":
                    desk.extend(account, request_id, reason, now())
                case "cancel":
                    desk.cancel(account, request_id, reason, now())
                case _:
                    raise HTTPException(404)
        except GenrecError as error:
            return request_page(request, account, request_id, status_of(error), str(error))
        return RedirectResponse(f"/requests/{request_id}", 303)

    @routes.get("/certificates/{request_id}")
    def certificate(account: Reader, request_id: str) -> Response:
        path = desk.certificate(account, request_id)
        return FileResponse(path, media_type="application/json", filename=path.name)

    def nights_page(request: Request, template: str, status: int = 200, **values) -> Response:
        running = desk.nights.running(now())
        past = desk.nights.past(NIGHTS_SHOWN)
        seen = hashlib.sha256(repr((running, past)).encode()).hexdigest()[:16]
        if request.query_params.get("seen") == seen:
            return Response(status_code=204)  # htmx changes nothing
        return pages.show(request, template, status, n=running, past=past, seen=seen, **values)

    @routes.get("/nights")
    def nights(request: Request, account: Reader) -> Response:
        require(account.role, Action.SEE_ALL)
        return nights_page(request, "nights.html.j2", problem=None, champion=desk.champion())

    @routes.get("/nights/now")
    def nights_now(request: Request, account: Reader) -> Response:
        require(account.role, Action.SEE_ALL)
        return nights_page(request, "nights_now.html.j2")

    @routes.post("/nights")
    def start_night(request: Request, visit: Poster) -> Response:
        try:
            desk.start_night(visit.account, now())
        except AccessError:
            raise
        except GenrecError as error:
            return nights_page(request, "nights.html.j2", 409, problem=str(error), champion=desk.champion())
        return RedirectResponse("/nights", 303)

    @routes.get("/reports/{batch_id}")
    def report(account: Reader, batch_id: str) -> Response:
        require(account.role, Action.SEE_ALL)
        return FileResponse(
            desk.nights.report(batch_id), media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY}
        )

    @routes.get("/reports/{batch_id}/summary.json")
    def summary(account: Reader, batch_id: str) -> Response:
        require(account.role, Action.SEE_ALL)
        path = desk.nights.summary(batch_id)
        return FileResponse(path, media_type="application/json", filename=f"{batch_id}-{path.name}")

    @routes.get("/api")
    def api_page(request: Request, account: Reader) -> Response:
        return pages.show(request, "api.html.j2", schema=api_schema())

    return routes
