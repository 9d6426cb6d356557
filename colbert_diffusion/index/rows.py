"""Many queries searched in several ways at a time, here or by replicas of the index on other machines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .fusion import Both, Fusion

if TYPE_CHECKING:
    from .searching import Asked, Searcher

BATCH = 128  # queries that are encoded together
Found = tuple[list[int], list[float]]  # pids and scores, best first


class Row(NamedTuple):
    """How an index is searched: mode "dense", "lexical" or "hybrid"; how both become one, None: by the index's default."""

    mode: str
    fusion: Fusion | None = None


class Replica(NamedTuple):
    """An index as other machines open it.

    state: which build (`opening.index_state`).
    checkpoint, collection: where they are there; None: where the index says.
    """

    path: Path
    state: str
    checkpoint: str | None = None
    collection: str | None = None

    @classmethod
    def of(cls, path: Path, checkpoint: str | None = None, collection: str | None = None) -> "Replica":
        from .opening import index_state  # imports torch

        return cls(path.absolute(), index_state(path), checkpoint, collection)


class SearchCluster(Protocol):
    """Machines that have replicas; `distributed.RayCluster` is one."""

    def search(
        self, replica: Replica, queries: Iterable[tuple[int, Sequence[str]]], rows: Mapping[str, Row], k: int
    ) -> Iterator[tuple[int, list[dict[str, Found]]]]:
        """(number, texts) of batches -> (number, what `answers` gives), in any order."""
        ...


def answers(searcher: "Searcher", queries: Sequence[str], rows: Mapping[str, Row], k: int) -> Iterator[dict[str, Found]]:
    """For each query the k best by each row; every query is encoded once, fusions of the same depth share their lists."""
    modes = {row.mode for row in rows.values()}
    mode = modes.pop() if len(modes) == 1 else "hybrid"
    for start in range(0, len(queries), BATCH):
        for asked in searcher.ask(queries[start : start + BATCH], mode=mode):
            yield _of_one(searcher, asked, rows, k)


def _of_one(searcher: "Searcher", asked: "Asked", rows: Mapping[str, Row], k: int) -> dict[str, Found]:
    found, shared = dict[str, Found](), dict[int, Both]()
    for name, row in rows.items():
        if row.mode == "hybrid":
            fusion = row.fusion or searcher.default_fusion
            depth = fusion.depth(k)
            if depth not in shared:
                shared[depth] = searcher.both(asked, k, depth)
            found[name] = shared[depth].best(fusion, k)
        else:
            pids, _, scores = searcher.answer(asked, k, mode=row.mode)
            found[name] = pids, scores
    return found


def answers_elsewhere(
    cluster: SearchCluster, replica: Replica, queries: Sequence[str], rows: Mapping[str, Row], k: int
) -> Iterator[tuple[int, dict[str, Found]]]:
    """As `answers` by other machines: (which query, its answers), in any order."""
    batches = ((start, queries[start : start + BATCH]) for start in range(0, len(queries), BATCH))
    for start, found in cluster.search(replica, batches, rows, k):
        yield from enumerate(found, start)


def ranked_elsewhere(
    cluster: SearchCluster, replica: Replica, queries: Mapping[Any, str], row: Row, k: int
) -> dict[Any, list[tuple[int, int, float]]]:
    """By each query's id its passages as ColBERT's `Ranking` has them: (pid, rank, score)."""
    qids, found = list(queries.keys()), dict[Any, list[tuple[int, int, float]]]()
    for place, by_row in answers_elsewhere(cluster, replica, list(queries.values()), {"": row}, k):
        ranked = enumerate(zip(*by_row[""], strict=True), 1)
        found[qids[place]] = [(pid, rank, score) for rank, (pid, score) in ranked]
    return {qid: found[qid] for qid in qids}
