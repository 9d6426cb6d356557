"""A Ray cluster as the engine's workers: Ray places tasks, and starts them again when a worker or a node dies.

Texts go to the workers and shards come back through Ray's object store, so no folder is shared; every file is written by the
driver, by a rename when it is whole. A driver that died goes on with what is missing.
"""

import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple, Self

from torch import Tensor

from ..common.errors import UserError
from ..common.optional import extra, need
from ..encoding.checkpoint import named_elsewhere
from ..encoding.identity import CheckpointIdentity
from ..encoding.shards import Shard
from ..index.rows import Found, Replica, Row
from ..seam.compressing import Codec
from . import tasks

PATIENCE = 5.0  # seconds until an address counts as silent; Ray itself goes on asking for minutes
AHEAD = 2  # tasks given out for each that can run: the next one's texts are there when a worker is free
RETRIES = 3  # of a task whose worker or node died
POLL = 1.0  # seconds between looks at what is overdue
OVERDUE, LATE = 60.0, 4.0  # a piece is, after so many seconds and so many times what the slowest so far took


class _Given(NamedTuple):
    """A piece of work that is out (references into Ray's store), since when, and how often it was given out before."""

    arguments: tuple[Any, ...]
    since: float
    times: int = 0


class RayCluster:
    """For as long as the context lasts.

    Args:
        address: "local" starts Ray on this machine for itself; "auto" joins the one that runs here; else HOST:PORT.
        cpus, gpus: of each task. A worker's model computes with as many threads as it has CPUs.

    Raises:
        MissingPackageError: Ray is not installed.
        UserError: nothing answers at the address, or the cluster has no room for one task.

    >>> with RayCluster("local", cpus=2) as cluster:
    ...     build_index("my-index", "passages.tsv", cluster=cluster)
    """

    def __init__(self, address: str = "local", *, cpus: int = 1, gpus: float = 0) -> None:
        if cpus < 1 or gpus < 0:
            raise UserError(f"{cpus} CPUs and {gpus:g} GPUs a task; expected at least 1 and 0")
        self._ray: Any = need("ray", "a cluster", extra("ray"))
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def __enter__(self) -> Self:
        try:
            _check_listening(self.address)
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
            self._ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster at {self.address} ({' '.join(str(error).split()):.200}); start one with `ray start --head`, "
                "or use local"
            ) from error
        if self._slots() < 1:
            has = {name: f"{self._ray.cluster_resources().get(name, 0):g}" for name in ("CPU", "GPU")}
            self._ray.shutdown()
            raise UserError(
                f"a task wants {self.cpus} CPUs and {self.gpus:g} GPUs, the cluster has {has['CPU']} and {has['GPU']} in all; "
                "ask for fewer or add nodes"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def encode(
        self, identity: CheckpointIdentity, texts: Iterable[tuple[int, Sequence[str]]], *, lexical: bool
    ) -> Iterator[tuple[int, Shard]]:
        """(number, texts) of shards -> (number, shard) as they are done.

        Raises:
            UserError: a worker has another checkpoint, or workers die again and again.
        """
        made_by = named_elsewhere(identity.path), identity.fingerprint, identity.dtype
        work = ((number, (*made_by, list(own), lexical, self.cpus)) for number, own in texts)
        return self._run(tasks.encode, "shard", work)

    def compress(self, codec: Codec, vectors: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """(number, vectors) of chunks -> (number, (codes, residuals)) as they are done."""
        shared = self._ray.put(codec)  # once for each node
        return self._run(tasks.compress, "chunk", ((number, (shared, own, self.cpus)) for number, own in vectors))

    def search(
        self, replica: Replica, queries: Iterable[tuple[int, Sequence[str]]], rows: Mapping[str, Row], k: int
    ) -> Iterator[tuple[int, list[dict[str, Found]]]]:
        """(number, texts) of batches -> (number, the answers of each query) as they are done.

        Raises:
            UserError: a worker does not have the index, or another build of it.
        """
        shared = dict(rows), k, self.cpus
        return self._run(tasks.search, "batch", ((number, (replica, list(own), *shared)) for number, own in queries))

    def _slots(self) -> int:
        """Tasks that can run at a time, now: nodes come and go."""
        there = self._ray.cluster_resources()
        rooms = [there.get("CPU", 0) // self.cpus]
        return int(min([*rooms, there.get("GPU", 0) // self.gpus] if self.gpus else rooms))

    def _run(
        self, call: Callable[..., Any], what: str, work: Iterable[tuple[int, tuple[Any, ...]]]
    ) -> Iterator[tuple[int, Any]]:
        """Each piece's number and result. One that is overdue is given out again: a node that was cut off for a while may have
        done it, and its answer be lost, without Ray ever noticing. Whichever is first counts."""
        task = self._ray.remote(call).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)
        left, out, answers, slowest = iter(work), dict[int, _Given](), dict[Any, int](), math.inf

        def give(number: int, given: _Given) -> None:
            out[number] = given
            answers[task.remote(*given.arguments)] = number

        while True:
            while len(out) < AHEAD * max(1, self._slots()) and (piece := next(left, None)) is not None:
                give(piece[0], _Given(self._stored(piece[1]), monotonic()))
            if not out:
                return
            for done in self._ray.wait(list(answers), timeout=POLL)[0]:
                number = answers.pop(done)
                if number not in out:  # its twin was first
                    continue
                took = monotonic() - out[number].since
                slowest = took if slowest == math.inf else max(took, slowest)
                yield number, self._result(done, f"{what} {number}")
                del out[number]
            for number, given in list(out.items()):
                if monotonic() - given.since > max(OVERDUE, LATE * slowest) * 2**given.times:
                    give(number, _Given(given.arguments, monotonic(), given.times + 1))

    def _stored(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """In Ray's store, which goes to disk where it is full: they may be wanted again, and a chunk's vectors are 100 MB."""
        stored = self._ray.ObjectRef
        return tuple(one if isinstance(one, stored) else self._ray.put(one) for one in arguments)

    def _result(self, done: Any, what: str) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(done)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
            raise UserError(
                f"{what} failed on a worker: {type(cause).__name__}: {' '.join(str(cause).split()):.300}"
            ) from error
        except errors.RayError as error:
            raise UserError(
                f"{what} was given up after {RETRIES + 1} workers died ({type(error).__name__}); find the cause (often memory) "
                "and run the same command again: what is done is kept"
            ) from error


def _check_listening(address: str) -> None:
    """Raises OSError or ValueError where nobody listens at HOST:PORT."""
    if address in ("local", "auto"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("expected local, auto or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
