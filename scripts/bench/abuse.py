"""Clients that a server has to bear: what one of them does must not keep others from their answers.

Each client does one of four things, over and over, as fast as it is let: the largest requests to /api/encode that a server
takes; connections that send a header's byte every second; bodies that stop halfway; and answers that are never read.

Usage: abuse.py URL [--clients 8] [--seconds 60] [--kinds large_encodes ...]     # URL: http://127.0.0.1:8893
Prints for each kind how often it was done and which statuses came back.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from common import errors_in_a_line, make_parser

TEXTS, CHARACTERS = 64, 20_000  # the server's own limits
OPENED = 200  # slow connections that one client holds

Done = Counter[str]
Client = Callable[[str, int, Done], Coroutine[Any, Any, None]]


async def large_encodes(host: str, port: int, done: Done) -> None:
    text = "the bees of a calm hive and their keepers "
    texts = [(f"{number} " + text * 500)[:CHARACTERS] for number in range(TEXTS)]
    body = json.dumps({"texts": texts}).encode()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(_head(host, len(body)) + body)
    await writer.drain()
    done[(await reader.readline()).decode().split()[1]] += 1
    await reader.read()
    writer.close()


async def slow_headers(host: str, port: int, done: Done) -> None:
    streams = [await asyncio.open_connection(host, port) for _ in range(OPENED)]
    done["connections"] += len(streams)
    for byte in b"GET /api/search?query=bees HTTP/1.1\r\nHost: ":
        for _, writer in streams:
            writer.write(bytes([byte]))
        await asyncio.sleep(1)


async def half_bodies(host: str, port: int, done: Done) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(_head(host, 1_000_000) + b'{"texts": ["' + b"x" * 500_000)
    done[(await reader.readline()).decode().split()[1]] += 1
    writer.close()


async def unread_answers(host: str, port: int, done: Done) -> None:
    _, writer = await asyncio.open_connection(host, port)
    for _ in range(50):
        writer.write(f"GET /api/search?query=bees&k=1000 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    done["connections"] += 1
    await asyncio.sleep(5)
    writer.close()


def _head(host: str, length: int) -> bytes:
    lines = ("POST /api/encode HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


CLIENTS: tuple[Client, ...] = (large_encodes, slow_headers, half_bodies, unread_answers)


async def abuse(url: str, clients: int, seconds: float, kinds: list[str]) -> dict[str, Done]:
    parts = urlsplit(url)
    chosen = [client for client in CLIENTS if client.__name__ in kinds]
    counts: dict[str, Done] = {client.__name__: Counter() for client in chosen}

    async def again_and_again(client: Client) -> None:
        while True:
            with suppress(OSError, IndexError):
                await client(parts.hostname or "127.0.0.1", parts.port or 80, counts[client.__name__])
            await asyncio.sleep(0.01)

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(again_and_again(chosen[number % len(chosen)]) for number in range(clients)))
    return counts


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    names = [client.__name__ for client in CLIENTS]
    parser.add_argument("--kinds", nargs="+", choices=names, default=names)
    options = parser.parse_args(arguments)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a server that closes a connection is what is hoped for
    for kind, done in asyncio.run(abuse(options.url, options.clients, options.seconds, options.kinds)).items():
        print(f"{kind}: {', '.join(f'{count:,} x {what}' for what, count in sorted(done.items())) or 'none'}")


if __name__ == "__main__":
    main()
