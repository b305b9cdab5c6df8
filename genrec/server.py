"""`genrec serve`: the champion over HTTP, without what is denied.

    POST /recommend  {"histories": [["item id", ...], ...], "k": 10} -> one list of {item_id, title, score} per history
    GET /health      200 with the champion's version, `degraded` while something is older than it should be; 503 without
    GET /metrics     Prometheus

Champion and deny list are looked up at most every `serving.refresh_seconds`; a new champion is loaded before it takes
over, and one that does not load leaves the old one serving. There is no login and nothing is logged of a request: the
address is 127.0.0.1 unless it is put behind something that knows who asks.
"""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import Field
from starlette.exceptions import HTTPException

from genrec.config import Workspace
from genrec.errors import BundleError, ConfigError, ServingError
from genrec.requests.deny import current_deny
from genrec.section import Section
from genrec.served import champion
from genrec.serving import recommend

MAX_BYTES, MAX_HISTORIES, MAX_K = 2**20, 256, 100
USAGE = 'Send POST /recommend {"histories": [["item id", ...], ...], "k": 10}.'


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket on which a server can be started. Raises ConfigError where the address cannot be had."""
    try:
        (family, *_), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"Port {port} of {host} is not to be had: {error.strerror}. Stop what listens there, or choose another "
            "with --port."
        ) from error


def run(make: Callable[[], FastAPI], host: str, port: int, ready: Callable[[str], None]) -> None:
    """Run what `make` gives on an address until it is stopped; `ready` hears of its URL.

    Raises ConfigError where the address cannot be had.
    """
    with listening_socket(host, port) as taken:
        config = uvicorn.Config(make(), log_level="warning", access_log=False)
        ready(f"http://{host}:{port}")
        uvicorn.Server(config).run(sockets=[taken])


class Asked(Section):
    """The body of POST /recommend."""

    histories: list[list[str]] = Field(min_length=1, max_length=MAX_HISTORIES)
    k: int = Field(10, ge=1, le=MAX_K)


class Metrics:
    """What /metrics tells."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.answers = Counter("genrec_answers", "Answers of POST /recommend", ["status"], registry=self.registry)
        self.seconds = Histogram("genrec_recommend_seconds", "Time of a recommendation", registry=self.registry)
        self.version = Gauge("genrec_champion_version", "The version that is served", registry=self.registry)
        self.denied = Gauge("genrec_denied_items", "Items of the ledger's deny list", registry=self.registry)
        self.stale = Gauge("genrec_stale", "1 while it is older than it should be", ["part"], registry=self.registry)


def make_app(workspace: Workspace) -> FastAPI:
    """The application for the workspace's champion. Raises ConfigError for a ledger that is none."""
    app = FastAPI(title="genrec", docs_url=None, redoc_url=None)  # those pages fetch scripts from elsewhere
    seconds = workspace.params().serving.refresh_seconds
    served, deny = champion(workspace, seconds), current_deny(workspace.ledger_url, seconds)
    metrics = Metrics()

    @app.middleware("http")
    async def limit_and_count(request: Request, call_next) -> Response:
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not length.isdecimal():
            answer = _refusal(411, f"The body has no Content-Length. {USAGE}")
        elif request.method == "POST" and int(length) > MAX_BYTES:
            answer = _refusal(413, f"The body has {length} bytes, more than {MAX_BYTES}. Send fewer histories at once.")
        else:
            answer = await call_next(request)
        if request.url.path == "/recommend":
            metrics.answers.labels(answer.status_code).inc()
        return answer

    @app.exception_handler(ServingError)
    async def not_yet(_request: Request, error: ServingError) -> Response:
        return _refusal(503, str(error))

    @app.exception_handler(BundleError)
    async def unanswerable(_request: Request, error: BundleError) -> Response:
        return _refusal(422, str(error))

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, f"{error.detail}. {USAGE}")

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _refusal(422, f"{where}: {first['msg']}. {USAGE}")

    @app.post("/recommend")
    def post_recommend(asked: Asked) -> list[list[dict]]:
        current, denied = served.value(), deny.value()
        with metrics.seconds.time():
            return recommend(current.bundle, current.model, asked.histories, asked.k, denied)

    def state() -> dict:
        version, denied = served.value().number, len(deny.value())
        problems = {part: value.problem for part, value in (("champion", served), ("deny", deny)) if value.problem}
        return {
            "status": "degraded" if problems else "ok", "champion": version, "denied_items": denied,
            "problems": problems,
        }  # fmt: skip

    @app.get("/health")
    def health() -> dict:
        return state()

    @app.get("/metrics")
    def show_metrics() -> Response:
        now = state()
        metrics.version.set(int(now["champion"]))
        metrics.denied.set(now["denied_items"])
        for part in ("champion", "deny"):
            metrics.stale.labels(part).set(part in now["problems"])
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _refusal(status: int, error: str) -> JSONResponse:
    return JSONResponse({"error": error}, status)
