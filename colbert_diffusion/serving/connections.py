"""What one client may hold of a connection: uvicorn's protocol with deadlines and a bound. Knows nothing about requests.

uvicorn closes a connection that is idle between two answers. It waits for ever for the first request, for the rest of one, and
for a client to read an answer.
"""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADERS = 10.0  # seconds from a connection, or a request's first byte, to the end of its headers
READING = 30.0  # seconds in which a client takes nothing of an answer
MOST = 1024  # connections of a process
SPARED = 64  # file descriptors for everything else: indexes, logs, the page


def most_connections() -> int:
    """As many as the process may open files for; its soft limit is raised first, as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + SPARED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, soft - SPARED))


class Connections:
    """Those of a process. Above the bound, the one whose client has been awaited for longest makes room for a new one.

    A client is awaited until its request is there, body included, while its connection is idle, and while it does not read.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: set[asyncio.Transport] = set()
        self._awaited: dict[asyncio.Transport, None] = {}  # in the order in which that began

    def opened(self, transport: asyncio.Transport) -> None:
        self._open.add(transport)
        self.awaited(transport)
        if len(self._open) > self.most:  # at the worst the new one itself: every other is being answered
            oldest = next(iter(self._awaited))
            self.closed(oldest)
            oldest.abort()

    def awaited(self, transport: asyncio.Transport) -> None:
        if transport in self._open:
            self._awaited.setdefault(transport)

    def answered(self, transport: asyncio.Transport) -> None:
        """The client did its part; the next step is ours."""
        self._awaited.pop(transport, None)

    def closed(self, transport: asyncio.Transport) -> None:
        self._open.discard(transport)
        self._awaited.pop(transport, None)


def protocol(connections: Connections) -> type[asyncio.Protocol]:
    """uvicorn's protocol class (httptools' where that is installed), for `uvicorn.Config(http=)`."""
    base: Any = AutoHTTPProtocol

    class Bounded(base):  # type: ignore[misc]
        _deadline: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            connections.opened(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._expect_headers()
                return
            _cancel(self._deadline)
            self._deadline = None
            if not self.cycle.more_body:
                connections.answered(self.transport)

        def on_response_complete(self) -> None:
            connections.awaited(self.transport)
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            connections.closed(self.transport)
            _cancel(self._deadline)
            _cancel(self._stalled)

        def pause_writing(self) -> None:
            super().pause_writing()
            connections.awaited(self.transport)
            self._stalled = self._stalled or self.loop.call_later(READING, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            connections.answered(self.transport)
            _cancel(self._stalled)
            self._stalled = None

        def _expect_headers(self) -> None:
            """Once for each request: another byte now and then wins no time."""
            self._deadline = self._deadline or self.loop.call_later(HEADERS, self.transport.abort)

    return Bounded


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
