"""The parent's side: ColBERT's Launcher that notices a dead child, whose own waits for a result that a dead child never
sends (infra/launcher.py:72). The child's side is `worker.py`.
"""

import queue
import random
from typing import Any, NoReturn

import torch.multiprocessing as mp
from colbert.infra.config import RunConfig
from colbert.infra.launcher import Launcher as ColBERTLauncher

from .worker import Failure, run_rank

POLL_SECONDS = 1.0


class Launcher(ColBERTLauncher):  # type: ignore[misc]  # colbert has no types
    """Same ranks, same configs; the first failure ends all of them and is raised here."""

    def launch(self, custom_config: Any, *args: Any) -> Any:
        results: Any = mp.Queue()
        port = str(12355 + random.SystemRandom().randint(0, 1000))
        processes = []
        for rank in range(self.nranks):
            config = type(custom_config).from_existing(custom_config, self.run_config, RunConfig(rank=rank))
            processes.append(mp.Process(target=run_rank, args=(self.callee, port, results, config, *args)))
        try:
            for process in processes:
                process.start()
            values = _collect(processes, results)
            for process in processes:
                process.join()
        finally:  # Ctrl-C included: no orphan is left
            for process in processes:
                if process.is_alive():
                    process.terminate()
                    process.join(timeout=5)
                if process.is_alive():
                    process.kill()
        return values if self.return_all else values[0]


class Multiprocessing:
    """multiprocessing as ColBERT's indexer sees it, without the manager's process.

    ColBERT makes lists and queues that ranks share and none of them uses (collection_indexer.py:286), held by a process of
    its own that outlives a killed parent.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(mp, name)

    def Manager(self) -> "Multiprocessing":  # noqa: N802 - multiprocessing's names
        return self

    def list(self) -> list[Any]:
        return []

    def Queue(self, maxsize: int = 0) -> None:  # noqa: N802
        return None


def _collect(processes: list[Any], results: Any) -> list[Any]:
    """Every rank's value, in rank order; raises as soon as a rank fails or dies."""
    values: dict[int, Any] = {}
    while len(values) < len(processes):
        dead = any(process.exitcode is not None and rank not in values for rank, process in enumerate(processes))
        try:
            rank, value = results.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if dead:  # and what it had to say came before its death
                _raise_cause(processes, None)
            continue
        if isinstance(value, Failure):
            _raise_cause(processes, value)
        values[rank] = value
    return [values[rank] for rank in range(len(processes))]


def _raise_cause(processes: list[Any], failure: Failure | None) -> NoReturn:
    """A killed rank is the cause, what the others then fail of its echo."""
    for process in processes:
        process.join(timeout=POLL_SECONDS)
    codes = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
    killed = {rank: -code for rank, code in codes.items() if code < 0}
    again = "what it had finished is kept: run the same command again"
    for rank, number in killed.items():
        raise RuntimeError(f"rank {rank} was killed by signal {number} (9 is often the system, out of memory); {again}")
    if failure is not None:
        failure.raise_here()
    rank, code = next(iter(codes.items()), (0, 0))
    raise RuntimeError(f"rank {rank} ended with code {code}; {again}")
