"""From index folders to a listening process: opens them, binds, runs until told to stop."""

import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import MissingPackageError, UserError
from ..common.progress import note
from ..index.parts import Parts

try:
    import uvicorn
    from fastapi import FastAPI
    from starlette.datastructures import MutableHeaders
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .app import create_app
    from .connections import ACCEPTED, Connections, most_connections, protocol
    from .metrics import Metrics
except ImportError as error:
    raise MissingPackageError(
        f'serving needs {error.name}, which is not installed: pip install "colbert-diffusion[serve]"'
    ) from error

from .service import Limits, Service

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
BACKLOG = 2048
GRACE = 30  # seconds that accepted requests have to finish when the process is told to stop


def open_app(
    indexes: Sequence[Path],
    *,
    token_file: Path | None = None,
    cache: int = 0,
    cors: Sequence[str] = (),
    allow_reload: bool = False,
    max_k: int = Limits.max_k,
    checkpoint: str | None = None,
    collection: Path | None = None,
    hosts: Sequence[str] = (),
    parts: Callable[[Path], Parts] | None = None,
) -> FastAPI:
    """Open every index and make the application; arguments as `colbert-diffusion serve`, `parts` as `Service`.

    Raises:
        UserError: an index cannot be opened, or an option makes no sense.
    """
    if cache < 0 or max_k < 1:
        raise UserError(f"--cache {cache} --max-k {max_k}: expected at least 0 answers and 1 passage")
    if len(indexes) > 1 and (checkpoint or collection):
        raise UserError(f"--checkpoint and --collection belong to one index, there are {len(indexes)}; serve them one by one")
    token = None if token_file is None else _read_token(token_file)
    metrics = Metrics()
    moved: dict[str, Any] = {"checkpoint": checkpoint, "collection": collection, "parts": parts}
    service = Service(indexes, Limits(max_k=max_k), cache, metrics, **moved)
    return create_app(service, metrics, token=token, cors=cors, allow_reload=allow_reload, hosts=_known_as(hosts, token))


def _known_as(hosts: Sequence[str], token: str | None) -> tuple[str, ...]:
    """The names that a request may give this server; any, where a token is asked for or it listens to other machines.

    Without either, a page from anywhere could have its own name resolve to this machine and read what the server answers.
    """
    listening, *allowed = hosts or ("*",)
    if token is not None or listening not in LOOPBACK:
        return ("*",)
    return (*LOOPBACK, *allowed)


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; then nothing new is accepted and what was accepted is answered.

    Raises:
        OSError: the address is taken or not ours.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listening = socket.create_server((host, port), family=family)
    # asyncio sets this only where the socket names its protocol; without it small answers wait 40 ms for an acknowledgement
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        _Leaving(app, lambda: server.should_exit),
        http=protocol(Connections(most_connections())),
        log_level="error",  # a warning for every malformed request would let strangers fill the disk
        access_log=False,
        ws="none",
        server_header=False,
        backlog=ACCEPTED,
        timeout_graceful_shutdown=GRACE,
    )
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    note(f"serving on http://{shown}:{listening.getsockname()[1]}")
    server = _Server(config)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # a closed terminal is like TERM, unless nohup said otherwise
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run([listening])


class _Server(uvicorn.Server):
    """asyncio takes one number for how many connections may wait to be accepted and for how many it accepts at a time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(BACKLOG)


class _Leaving:
    """Answers given while the process stops say that their connection ends, so that clients which keep connections do
    not send the next request into a closed one."""

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool]) -> None:
        self._app, self._leaving = app, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start" and self._leaving():
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive, with_header)


def _read_token(path: Path) -> str:
    token = path.read_text(encoding="utf-8").strip()
    if not token or not token.isascii() or any(c.isspace() for c in token):
        raise UserError(f"{path} must hold one token: ASCII, without spaces, not empty")
    return token
