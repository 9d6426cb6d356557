"""What runs in a replica of Ray Serve: the application, or the vectors of some chunks. Each opens what its machine's disk has.

A new build takes an index's place on disk (`Places.swap`); an application serves what it opened until it is told to look again.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import UserError
from ..index.opening import check_build, index_state
from ..index.parts import divide
from ..index.places import snapshot
from ..seam.parts import Candidates, ChunkScorer, Floats
from ..seam.settings import SearchSettings
from ..serving.server import open_app
from ..serving.service import OverloadedError
from .tasks import naming_this_host

APPLICATION = "colbert-diffusion"
PARTS = f"{APPLICATION}-part-"  # how the names of parts begin
TRIES = 3  # of a question to a part, whose replica may die over it
PATIENCE = 10.0  # seconds that a part has to answer; clients wait about as long


def part_name(state: str, number: int, parts: int) -> str:
    """Of the application that has one of the parts of a build of an index."""
    return f"{PARTS}{state:.12}-{number + 1}-of-{parts}"


@dataclass(frozen=True)
class Served:
    """What every replica serves, and how.

    indexes: their folders, on every machine that has replicas.
    states: which build of each (`opening.index_state`).
    options: as `open_app`.
    """

    indexes: tuple[Path, ...]
    states: tuple[str, ...]
    options: dict[str, Any]
    threads: int = 1


class Whole:
    """The application over whole indexes, or over the parts of one.

    Args:
        parts: how many; 0: the vectors are here.
        identity: of all that decides what it answers.
    """

    def __init__(self, served: Served, parts: int, identity: str) -> None:
        self._identity = identity
        with ThreadPoolExecutor(1) as outside:  # answers of parts are waited for outside of an event loop
            self._app = outside.submit(_opened, served, parts).result()

    def __serve_build_asgi_app__(self) -> Any:
        """Ray's name for what gives it the application."""
        return self._app

    def identity(self) -> str:
        return self._identity


def _opened(served: Served, parts: int) -> Any:
    torch.set_num_threads(served.threads)  # torch counts them for each thread that calls it
    with naming_this_host():
        for index, state in zip(served.indexes, served.states, strict=True):
            check_build(index, state)
    return open_app(served.indexes, parts=partial(RemoteParts, parts=parts) if parts else None, **served.options)


class Part:
    """The vectors of one part of an index.

    Raises:
        UserError: there is another build on this machine.
    """

    def __init__(self, served: Served, number: int, parts: int) -> None:
        [index], [state] = served.indexes, served.states

        def read(folder: Path) -> ChunkScorer:
            check_build(folder, state)
            return ChunkScorer(str(folder), divide(folder, parts)[number])

        with naming_this_host():
            self._scorer, self._threads = snapshot(index, read), served.threads

    def span(self) -> range:
        return self._scorer.span

    def candidates(self, q: Tensor, settings: SearchSettings) -> Candidates:
        torch.set_num_threads(self._threads)  # of this thread: Ray has several
        return self._scorer.candidates(q, settings)

    def scores(self, q: Tensor, pids: Sequence[int]) -> Floats:
        torch.set_num_threads(self._threads)
        return self._scorer.scores(q, pids)


class RemoteParts:
    """Parts behind Ray Serve's handles, all asked at a time; of the folder's build of the index.

    Raises:
        OverloadedError: a part does not answer in time.
    """

    def __init__(self, folder: Path, parts: int) -> None:
        from ray import serve

        state = index_state(folder)
        self._handles = [serve.get_app_handle(part_name(state, number, parts)) for number in range(parts)]
        self.spans: Sequence[range] = self._ask("span", [()] * parts)

    def candidates(self, q: Tensor, settings: SearchSettings) -> list[Candidates]:
        return self._ask("candidates", [(q, settings)] * len(self._handles))

    def scores(self, q: Tensor, pids: Sequence[Sequence[int]]) -> list[Floats]:
        asked = [part for part, own in enumerate(pids) if own]
        found = dict(zip(asked, self._ask("scores", [(q, pids[part]) for part in asked], asked), strict=True))
        return [found.get(part, torch.zeros(0).numpy()) for part in range(len(pids))]

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]], parts: Sequence[int] | None = None) -> list[Any]:
        until = time.monotonic() + PATIENCE
        calls = [
            partial(getattr(self._handles[part], method).remote, *own)
            for part, own in zip(range(len(self._handles)) if parts is None else parts, arguments, strict=True)
        ]
        return [_answer(call, answer, until) for call, answer in [(call, call()) for call in calls]]


def _answer(call: Callable[[], Any], answer: Any, until: float) -> Any:
    from ray.exceptions import RayActorError, RayTaskError

    for left in reversed(range(TRIES)):
        try:
            return answer.result(timeout_s=max(0.0, until - time.monotonic()))
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except TimeoutError:
            break
        except RayActorError:
            if left:
                answer = call()
    raise OverloadedError(f"a part of the index did not answer within {PATIENCE:.0f} s; try again")
