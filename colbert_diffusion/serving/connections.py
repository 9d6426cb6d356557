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
ACCEPTED = 4  # connections at a time: asyncio accepts as many as it is let before it sets up the first
SPARED = 48  # file descriptors for everything else: an index has two, and some connections are being set up or closed


def most_connections() -> int:
    """As many as the process may open files for; its soft limit is raised first, as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + SPARED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, soft - SPARED))


class Connections:
    """Those of a process. Above the bound, the one whose client has been awaited for longest makes room for a new one: of those
    that nothing was ever answered to, then of the others.

    A client is awaited until its request is there, body included, while its connection is idle, and while it does not read.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[asyncio.Transport, bool] = {}  # whether it was ever answered
        self._awaited: dict[bool, dict[asyncio.Transport, None]] = {False: {}, True: {}}  # in the order in which that began

    def opened(self, transport: asyncio.Transport) -> None:
        if len(self._open) >= self.most:
            awaited = next((waiting for waiting in self._awaited.values() if waiting), {transport: None})
            oldest = next(iter(awaited))
            self.closed(oldest)
            asyncio.get_running_loop().call_soon(oldest.abort)  # not while asyncio still sets up a new one
            if oldest is transport:  # every other is being answered
                return
        self._open[transport] = False
        self.awaited(transport)

    def awaited(self, transport: asyncio.Transport) -> None:
        if transport in self._open:
            self._awaited[self._open[transport]].setdefault(transport)

    def asked(self, transport: asyncio.Transport) -> None:
        """The client did its part; the next step is ours."""
        for awaited in self._awaited.values():
            awaited.pop(transport, None)

    def answered(self, transport: asyncio.Transport) -> None:
        """And waits for the next request."""
        self.asked(transport)
        if transport in self._open:
            self._open[transport] = True
            self.awaited(transport)

    def closed(self, transport: asyncio.Transport) -> None:
        self.asked(transport)
        self._open.pop(transport, None)


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
                connections.asked(self.transport)

        def on_response_complete(self) -> None:
            connections.answered(self.transport)
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
            connections.asked(self.transport)
            _cancel(self._stalled)
            self._stalled = None

        def _expect_headers(self) -> None:
            """Once for each request: another byte now and then wins no time."""
            self._deadline = self._deadline or self.loop.call_later(HEADERS, self.transport.abort)

    return Bounded


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
