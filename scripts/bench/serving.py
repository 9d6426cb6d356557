"""Load on a running server: queries per second, latencies, errors; beside another server's, taking turns.

Each connection asks a query, waits for the answer and asks the next, so that as many requests are under way as there
are connections. Queries are distinct until the file ends, and a round ends with it: no cache can help. With
--repeat 0.5 half of the requests ask again what was asked before (a second row, for servers with a cache).
--abuse N repeats each round beside N clients of abuse.py, in a process of their own; --kinds says of which.
--check N asks the first N again, alone, after the rounds and compares pids and scores. Of our own server the mean
milliseconds of each stage in the round are shown, read from its /metrics.

ColBERT's own server (`server.py` of its repository, GET only) is another server: start it from a checkout of yours
with the same index and torch threads, and give its URL.

Usage: serving.py QUERIES URL [URL] [--connections 64] [--seconds 60] [--k 10] [--rounds 1] [--repeat 0]
                        [--abuse 0]
                        [--kinds KIND ...] [--check 0] [--token TOKEN] [--json FILE]
"""

import argparse
import asyncio
import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from common import errors_in_a_line, make_parser, print_table

from colbert_diffusion.texts.collection import read_queries

TIMEOUT = 10  # seconds: DSPy's client waits as long
STAGE = re.compile(r'^colbert_diffusion_stage_seconds_(sum|count)\{stage="(\w+)"\} (\S+)$', re.MULTILINE)

Answer = list[tuple[int, float]]  # (pid, score), best first


class Row(NamedTuple):
    """One server's round; latencies in milliseconds, of answered requests."""

    url: str
    connections: int
    answered: int
    errors: int
    repeated: float  # share of the requests
    per_second: float
    p50: float
    p95: float
    p99: float
    stages: dict[str, float]  # mean milliseconds; of another server none
    abusive: int = 0  # clients beside


class Connection:
    """Keep-alive HTTP/1.1 GETs over one socket, opened anew when the server closes it. A client library would be the
    bottleneck."""

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "127.0.0.1", parts.port or 80, parts.path
        self._headers = f"Host: {parts.netloc}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> tuple[int, bytes]:
        """(status, body). Raises OSError, EOFError or TimeoutError when there is no answer."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._get(path)
        except (OSError, EOFError):
            self.close()
            raise

    async def search(self, query: str, k: int) -> tuple[int, bytes]:
        return await self.get(f"{self._path}?{urlencode({'query': query, 'k': k})}")

    async def _get(self, path: str) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\n{self._headers}\r\n".encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = headers.get("content-length")
        body = await (reader.read() if length is None else reader.readexactly(int(length)))
        if length is None or headers.get("connection") == "close" or status.startswith("http/1.0"):
            self.close()
        return int(status.split()[1]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def requests(queries: list[str], repeat: float, seed: int) -> Iterator[tuple[str, bool]]:
    """(query, whether it was asked before), until every query was asked."""
    choose = random.Random(seed)
    for i, query in enumerate(queries):
        while i and choose.random() < repeat:
            yield queries[choose.randrange(i)], True
        yield query, False


async def load(
    url: str, queries: list[str], options: argparse.Namespace, seed: int, kept: dict[str, Answer]
) -> tuple[Row, set[str]]:
    """One round on one server, and the queries that it asked."""
    asked, repeated, errors = set[str](), 0, 0
    times: list[float] = []
    before = await stages(url, options.token)
    coming = requests(queries, options.repeat, seed)
    ends = time.perf_counter() + options.seconds

    async def caller() -> None:
        nonlocal repeated, errors
        connection = Connection(url, options.token)
        for query, again in coming:
            started = time.perf_counter()
            if started > ends:
                break
            asked.add(query)
            repeated += again
            try:
                status, body = await connection.search(query, options.k)
                answer = read(body) if status == 200 else None
            except (OSError, EOFError, ValueError):
                answer = None
            if answer is None:
                errors += 1
                continue
            times.append(1000 * (time.perf_counter() - started))
            if len(kept) < options.check:
                kept[query] = answer
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(options.connections)))
    seconds = time.perf_counter() - started
    times.sort()
    after = await stages(url, options.token)
    means = {}
    for name, (spent, count) in after.items():
        spent_before, count_before = before.get(name, (0.0, 0.0))
        if count > count_before:
            means[name] = 1000 * (spent - spent_before) / (count - count_before)
    share = repeated / max(1, len(times) + errors)
    p50, p95, p99 = (times[int(q * len(times))] if times else math.nan for q in (0.5, 0.95, 0.99))
    return Row(url, options.connections, len(times), errors, share, len(times) / seconds, p50, p95, p99, means), asked


def read(body: bytes) -> Answer:
    """Raises ValueError for what is no answer."""
    answer = json.loads(body)
    if not isinstance(answer, dict) or answer.get("error") or "topk" not in answer:
        raise ValueError("no answer")
    return [(row["pid"], row["score"]) for row in answer["topk"]]


async def stages(url: str, token: str | None) -> dict[str, tuple[float, float]]:
    """Of each stage (seconds, times) so far; none of a server without our metrics."""
    connection = Connection(url, token)
    try:
        status, body = await connection.get("/metrics")
    except (OSError, EOFError, ValueError):
        return {}
    finally:
        connection.close()
    found: dict[str, dict[str, float]] = {}
    for kind, stage, value in STAGE.findall(body.decode() if status == 200 else ""):
        found.setdefault(stage, {})[kind] = float(value)
    return {stage: (values["sum"], values["count"]) for stage, values in found.items()}


async def check(url: str, kept: dict[str, Answer], options: argparse.Namespace) -> str:
    """Every kept answer beside the same query's answer alone."""
    connection = Connection(url, options.token)
    differ, largest = 0, 0.0
    for query, under_load in kept.items():
        _, body = await connection.search(query, options.k)
        alone = read(body)
        differ += [pid for pid, _ in alone] != [pid for pid, _ in under_load]
        pairs = zip(alone, under_load, strict=False)
        largest = max([largest, *(abs(a - b) for (_, a), (_, b) in pairs)])
    connection.close()
    return f"{url}: {len(kept)} answers asked again alone, {differ} with other pids, scores within {largest:.2g}"


def show(rows: list[Row]) -> None:
    names = ("server", "connections", "abusive", "answered", "errors", "repeated", "queries/s", "p50 ms", "p95 ms", "p99 ms")
    print_table(
        (*names, "stages, mean ms"),
        (
            (
                *(row.url, row.connections, row.abusive, f"{row.answered:,}", f"{row.errors:,}", f"{row.repeated:.0%}"),
                *(f"{value:.1f}" for value in (row.per_second, row.p50, row.p95, row.p99)),
                ", ".join(f"{name} {ms:.1f}" for name, ms in row.stages.items()) or "-",
            )
            for row in rows
        ),
    )


@contextmanager
def abused(url: str, clients: int, seconds: float, kinds: list[str] | None) -> Iterator[None]:
    """Abusive clients meanwhile; what was answered to them is printed."""
    if not clients:
        yield
        return
    script = Path(__file__).with_name("abuse.py")
    root = urlsplit(url)._replace(path="", query="").geturl()
    command = [sys.executable, str(script), root, "--clients", str(clients), "--seconds", str(seconds)]
    with subprocess.Popen([*command, *(["--kinds", *kinds] if kinds else [])]) as process:
        yield
        process.wait()


async def measure(options: argparse.Namespace) -> list[Row]:
    queries = list(dict.fromkeys(read_queries(options.queries).values()))
    rows: list[Row] = []
    kept: dict[str, dict[str, Answer]] = {url: {} for url in options.urls}
    fresh = dict.fromkeys(options.urls, queries)
    for number in range(options.rounds):
        for url in options.urls:
            for clients in (0, options.abuse) if options.abuse else (0,):
                with abused(url, clients, options.seconds, options.kinds):
                    row, asked = await load(url, fresh[url], options, number, kept[url])
                rows.append(row._replace(abusive=clients))
                fresh[url] = [query for query in fresh[url] if query not in asked]
    show(rows)
    for url in options.urls:
        if kept[url]:
            print(await check(url, kept[url], options))
    return rows


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("queries", help=".tsv, .jsonl or BEIR folder")
    parser.add_argument("urls", nargs="+", help="of /api/search")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeat", type=float, default=0, help="share of requests, below 1")
    parser.add_argument("--abuse", type=int, default=0)
    parser.add_argument("--kinds", nargs="+")
    parser.add_argument("--check", type=int, default=0)
    parser.add_argument("--token")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
