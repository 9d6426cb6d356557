"""The HTTP side: routes, refusals, the page. Knows nothing about models."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..common.errors import UserError
from . import schemas
from .index import Hit, UnknownError
from .metrics import Metrics
from .service import BusyEncodingError, OverloadedError, Service, probabilities

MAX_BODY = 2 << 20  # bytes
MAX_HELD = 64 << 20  # bytes of all bodies that are being received or answered
BODY_SECONDS = 20.0  # from a request's headers to the end of its body
LARGE = "/api/encode"
PARSED = 4  # such requests that are parsed and encoded at a time; the others wait unparsed, so that a refusal costs little
PATIENCE = 5.0  # seconds that they wait
PAGE = Path(__file__).parent / "page"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": description}
    for status, description in {
        400: "The body cannot be read.",
        401: "The token is missing or wrong.",
        404: "There is no such index or passage.",
        413: "The body is too large.",
        408: "The body did not arrive in time.",
        422: "A value is missing, wrong or above its limit.",
        429: "Too much is being sent, or waits to be encoded; try again.",
        503: "Too much is waiting; try again.",
    }.items()
}


class JSON(JSONResponse):
    """JSON without NaN; texts that are no valid UTF-8 do not fail."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def create_app(
    service: Service,
    metrics: Metrics,
    *,
    token: str | None = None,
    cors: Sequence[str] = (),
    allow_reload: bool = False,
    hosts: Sequence[str] = ("*",),
) -> FastAPI:
    """The application.

    Args:
        token: what /api and /metrics then ask for: `Authorization: Bearer TOKEN`.
        cors: origins whose pages may call it.
        allow_reload: whether POST /api/reload is there.
        hosts: names by which it may be called, "*" for any.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="colbert_diffusion",
        version=__version__,
        description="Search with a diffusion language model in ColBERT's index.",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere; /docs is ours
        redoc_url=None,
        default_response_class=JSON,
        lifespan=lifespan,
    )
    guard = [Depends(_Bearer(token))] if token is not None else []
    app.include_router(_api(service, allow_reload), dependencies=guard)
    app.include_router(_operations(service, metrics, guard))
    app.mount("/static", StaticFiles(directory=PAGE))

    app.add_exception_handler(UserError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)

    if "*" not in hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(_Boundary, metrics=metrics)
    if cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Server-Timing", "Retry-After"],
        )
    return app


def _api(service: Service, allow_reload: bool) -> APIRouter:
    api = APIRouter(prefix="/api", responses=_REFUSALS, dependencies=[Depends(_only_known_names)])
    _add_search(api, service)
    if allow_reload:
        _add_reload(api, service)

    @api.post("/encode", response_model=schemas.Encoded)
    async def encode(asked: schemas.EncodeRequest) -> Response:
        """Each text's vectors, and on demand the words that it predicts of itself."""
        found = await service.encode(asked.texts, asked.side, asked.index, words=asked.words)
        shapes = json.dumps([text.shape for text in found])
        words = f',"words":[{",".join(text.words or "" for text in found)}]' if asked.words else ""
        body = f'{{"vectors":[{",".join(text.json for text in found)}],"shapes":{shapes},"dim":{found[0].shape[1]}{words}}}'
        return Response(body, media_type="application/json")

    @api.post("/explain", response_model=schemas.Explained)
    async def explain(asked: schemas.ExplainRequest) -> Response:
        """Which positions of a passage a query matched, which words the positions predict, and which words both have."""
        found = await service.explain(asked.query, asked.pid, asked.index)
        matches = [{"query": i, "passage": j, "similarity": found.similarities[i][j]} for i, j in enumerate(found.matches)]
        shared = found.lexical and {**found.lexical._asdict(), "words": [own._asdict() for own in found.lexical.words]}
        return JSON({"query": asked.query, "pid": asked.pid, **found._asdict(), "matches": matches, "lexical": shared})

    @api.get("/passages/{pid}", response_model=schemas.Passage)
    async def passage(pid: schemas.Pid, index: schemas.IndexName = None) -> Response:
        """A passage's text."""
        return JSON({"pid": pid, "text": await service.passage(pid, index)})

    @api.get("/indexes", response_model=schemas.Indexes)
    async def indexes() -> Response:
        """The indexes that are served."""
        return JSON({"default": service.default, "max_k": service.limits.max_k, "indexes": service.about()})

    return api


def _add_search(api: APIRouter, service: Service) -> None:
    async def answers(
        queries: Sequence[str],
        k: int,
        pids: Sequence[int] | None,
        ids: Sequence[str] | None,
        index: str | None,
        mode: str | None,
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        started = perf_counter()
        if ids is not None:
            if pids is not None:
                raise UserError('give "pids" or "ids", not both')
            pids = await service.pids(ids, index)
        found = await service.search(queries, k, pids, index, mode)
        timing = {"server-timing": f"search;dur={1000 * (perf_counter() - started):.1f}"}
        return [_answer(query, hits) for query, hits in zip(queries, found, strict=True)], timing

    @api.get("/search", response_model=schemas.Answer)
    async def search(
        query: schemas.Text,
        k: schemas.K = 10,
        pids: schemas.UrlPids = None,
        ids: Annotated[list[schemas.Text] | None, Query(description="As pids, by the collection's own ids.")] = None,
        index: schemas.IndexName = None,
        mode: schemas.Mode = None,
    ) -> Response:
        """The k best passages for a query."""
        [answer], timing = await answers([query], k, pids, ids, index, mode)
        return JSON(answer, headers=timing)

    @api.post("/search", response_model=schemas.Answer | schemas.Answers)
    async def search_many(asked: schemas.SearchRequest, index: schemas.IndexName = None, mode: schemas.Mode = None) -> Response:
        """The k best passages for a query, or for each of several. An index and a mode may also be named in the URL, which
        clients like DSPy's keep."""
        queries = [asked.query] if asked.queries is None else asked.queries
        texts = [query for query in queries if query is not None]
        found, timing = await answers(texts, asked.k, asked.pids, asked.ids, asked.index or index, asked.mode or mode)
        return JSON(found[0] if asked.queries is None else {"results": found}, headers=timing)


def _add_reload(api: APIRouter, service: Service) -> None:
    @api.post("/reload", response_model=schemas.About)
    async def reload(asked: schemas.ReloadRequest) -> Response:
        """Open an index's folder anew; requests under way finish on the old one."""
        return JSON(await service.reload(asked.index))


def _operations(service: Service, metrics: Metrics, guard: Sequence[Any]) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        return JSON({"status": "alive"})

    @router.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> Response:  # nothing listens before every index is open; their names are behind the token
        return JSON({"status": "ready"})

    @router.get("/metrics", dependencies=guard)
    async def numbers() -> Response:
        metrics.pending.set(service.pending)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/")
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @router.get("/docs")
    async def docs() -> Response:
        return FileResponse(PAGE / "docs.html")

    return router


def _answer(query: str, hits: Sequence[tuple[Hit, str]]) -> dict[str, Any]:
    probs = probabilities([hit.score for hit, _ in hits])
    topk = [
        {"text": text, "long_text": text, "pid": hit.pid, "id": hit.id, "rank": rank, "score": hit.score, "prob": prob}
        for rank, ((hit, text), prob) in enumerate(zip(hits, probs, strict=True), 1)
    ]
    return {"query": query, "topk": topk}


async def _only_known_names(request: Request) -> None:
    """A misspelt name in a URL would be no filter, as in a body."""
    known = {name.alias for name in request.scope["route"].dependant.query_params}
    if unknown := sorted(set(request.query_params) - known):
        raise HTTPException(
            422, f"unknown in the URL: {', '.join(unknown)[:200]}; expected {', '.join(sorted(known)) or 'nothing'}"
        )


class _Bearer:
    """Asks for the token, compared in a time that says nothing about it."""

    def __init__(self, token: str) -> None:
        self._expected = f"bearer {token}".encode()

    async def __call__(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not hmac.compare_digest(f"{scheme.lower()} {token.strip()}".encode(), self._expected):
            raise HTTPException(
                401, "the token is missing or wrong; send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )


class _Boundary:
    """Around every request: the body's limits, the security headers, the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._held = 0
        self._gate = asyncio.Semaphore(PARSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, received, status, whole, entered = perf_counter(), 0, 500, False, False

        async def limited() -> Message:
            nonlocal received, whole, entered
            if whole:
                return await receive()
            message = await _in_time(receive, started + BODY_SECONDS - perf_counter())
            size = len(message.get("body", b""))
            received, self._held = received + size, self._held + size
            if received > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes", {"connection": "close"})
            if self._held > MAX_HELD:
                text = f"more than {MAX_HELD} bytes are being received; try again"
                raise HTTPException(429, text, {"connection": "close", "retry-after": "1"})
            whole = not message.get("more_body", False)
            if whole and scope["path"] == LARGE:
                await self._enter()
                entered = True
            return message

        async def with_headers(message: Message) -> None:
            nonlocal status, entered
            if message["type"] == "http.response.start":
                status = message["status"]
                if entered:  # not when the client has read it all, which is its own affair
                    self._gate.release()
                    entered = False
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "location" in headers:  # a path here, never the host that the request gave
                    headers["location"] = urlsplit(headers["location"])._replace(scheme="", netloc="").geturl()
            await send(message)

        try:
            await self._app(scope, limited, with_headers)
        finally:
            self._held -= received
            if entered:
                self._gate.release()
            route = getattr(scope.get("route"), "path", "other")  # a template, or a stranger could fill the memory
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
            self._metrics.answered(method, route, status, perf_counter() - started)

    async def _enter(self) -> None:
        try:
            await asyncio.wait_for(self._gate.acquire(), PATIENCE)
        except TimeoutError as error:
            text = f"{PARSED} requests are being encoded, no more are at a time; this one waited {PATIENCE:.0f} s: try again"
            raise HTTPException(429, text, {"retry-after": "1"}) from error


async def _in_time(receive: Receive, seconds: float) -> Message:
    try:
        return await asyncio.wait_for(receive(), max(0.0, seconds))
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:.0f} s", {"connection": "close"}) from error


def _problem(status: int, text: str, headers: Any = None) -> Response:
    line = " ".join(text.split())
    return JSON({"error": line, "message": line}, status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, OverloadedError | BusyEncodingError):
        return _problem(503 if isinstance(error, OverloadedError) else 429, str(error), {"retry-after": "1"})
    return _problem(404 if isinstance(error, UnknownError) else 422, str(error))


async def _invalid(_: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    shown = [f"{'.'.join(map(str, entry['loc']))[:80]}: {entry['msg']}" for entry in found[:3]]
    if any(entry["loc"] == ("body",) for entry in found):
        shown.append("expected a JSON object, sent with Content-Type: application/json")
    return _problem(422, "; ".join(shown))


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, StarletteHTTPException):
        raise error
    return _problem(error.status_code, str(error.detail), error.headers)


async def _failed(_: Request, error: Exception) -> Response:  # uvicorn logs the traceback
    return _problem(500, "unexpected error; the server's log has it")
