"""How many callers share one thread: micro-batches of what arrives within a few milliseconds, and long work in slices
behind them. Knows neither models nor requests."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from time import perf_counter
from typing import Generic, TypeVar

REST = 9  # of ten parts of the thread's time, those that short work has while it waits
STEP = 0.005  # seconds until it is looked again whether it does
WINDOW = 0.003  # seconds that the first of a batch waits for others
LARGEST = 64  # items of a batch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Await it with an item; items waiting at the same time go through `run` in one call, in order of arrival.

    Belongs to one event loop; `run` is called in `pool`, one call at a time.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        pool: Executor,
        window: float = WINDOW,
        largest: int = LARGEST,
    ) -> None:
        self._run, self._pool = run, pool
        self._window, self._largest = window, largest
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._draining: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """This item's result. Raises what `run` raises, for every item of the batch."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        await asyncio.sleep(self._window)  # only the first batch waits; during a run others gather by themselves
        while self._waiting:
            batch, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
            await self._run_batch(batch)
        self._draining = None

    async def _run_batch(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._pool, self._run, [item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():  # whoever asked may be gone
                future.set_result(result)


class Background:
    """Long work of several callers, slice by slice in turns, all of it together within a tenth of the thread's time while short
    work waits; alone it has the thread."""

    def __init__(self, pool: Executor, busy: Callable[[], bool]) -> None:
        self._pool, self._busy = pool, busy
        self._turn = asyncio.Lock()  # first come, first served, slice by slice

    async def __call__(self, slices: Iterable[Callable[[], Result]]) -> list[Result]:
        """The slices' results. Raises what the first that fails raises."""
        return [await self._one(run) for run in slices]

    async def _one(self, run: Callable[[], Result]) -> Result:
        async with self._turn:
            started = perf_counter()
            result = await asyncio.get_running_loop().run_in_executor(self._pool, run)
            rested = perf_counter() + REST * (perf_counter() - started)
            while self._busy() and perf_counter() < rested:
                await asyncio.sleep(STEP)
            return result
