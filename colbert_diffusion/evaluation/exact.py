"""Exact MaxSim over every passage, and over prefixes of its vectors. Knows neither checkpoints nor indexes.

The yardstick for PLAID, and what a trainer measures with: it needs only `encode_query` and `encode_document`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from ..common.errors import UserError
from ..common.progress import progress_bar
from ..config import DiffusionConfig
from ..encoding.scoring import Vectors, maxsim, prefix
from .benchmarks import Benchmark
from .runs import Run, best

ENCODED = 512  # texts per call of the encoder
CELLS = 2**26  # of a block of scores: 256 MiB
DECIMALS = 5  # of a score: what lies behind is float32's noise, and equal passages should score the same


class TextEncoder(Protocol):
    """What exact search needs of a checkpoint: lists of texts -> one float32 array (k, dim) each, L2-normalised."""

    def encode_query(self, queries: list[str], /) -> Sequence[Vectors]: ...

    def encode_document(self, documents: list[str], /) -> Sequence[Vectors]: ...


class EncodedPassages:
    """Passages that are encoded already, in a collection's order, beside the model for its queries."""

    def __init__(self, model: TextEncoder, passages: Iterable[Vectors]) -> None:
        self.encode_query = model.encode_query
        self._passages = iter(passages)

    def encode_document(self, documents: list[str]) -> list[Vectors]:
        """The next ones: exact search asks for all, in order."""
        return list(islice(self._passages, len(documents)))


class Cell(NamedTuple):
    """How much of a passage's vectors is used: the first `k` of them, their first `dim` dimensions (the query's too)."""

    k: int
    dim: int


def exact_run(checkpoint: TextEncoder, benchmark: Benchmark, depth: int = 1000) -> Run:
    """Encode everything once and score every passage for every query.

    The score is the sum over the query's vectors of the largest dot product with a passage vector, not floored at 0,
    to 5 decimals. Equal scores come in the documents' order.

    Raises:
        UserError: the encoder gives no vectors for a text.
    """
    return _score(benchmark, *_encode(checkpoint, benchmark), depth)


def cell_runs(checkpoint: TextEncoder, benchmark: Benchmark, cells: Sequence[Cell], depth: int = 1000) -> dict[Cell, Run]:
    """As `exact_run` for each cell; every text is encoded once. The caller checks the cells: see `check_cells`."""
    queries, documents = _encode(checkpoint, benchmark)
    return {
        cell: _score(benchmark, prefix(queries, None, cell.dim), prefix(documents, cell.k, cell.dim), depth) for cell in cells
    }


def check_cells(config: DiffusionConfig, cells: Sequence[Cell]) -> None:
    """Raises UserError for a cell that the checkpoint does not have, or was not trained for."""
    own = Cell(config.k_passage, config.dim)
    for cell in cells:
        if not (1 <= cell.k <= own.k and 1 <= cell.dim <= own.dim):
            raise UserError(f"k-passage {cell.k} x dim {cell.dim}: the checkpoint gives at most {own.k} x {own.dim}")
        if cell != own and not config.nested:
            raise UserError(
                f"k-passage {cell.k} x dim {cell.dim}: the checkpoint is not nested, it was trained for "
                f"{own.k} x {own.dim} alone; leave --k-passage and --dim out, or train a nested one"
            )


def _encode(checkpoint: TextEncoder, benchmark: Benchmark) -> tuple[list[Vectors], list[Vectors]]:
    """Vectors of the queries and of the documents."""
    queries = list(_in_slices(checkpoint.encode_query, list(benchmark.queries.values()), "encode queries"))
    return queries, list(_in_slices(checkpoint.encode_document, benchmark.texts, "encode documents"))


def _in_slices(encode: Callable[[list[str]], Sequence[Vectors]], texts: Sequence[str], description: str) -> Iterator[Vectors]:
    with progress_bar(len(texts), description) as progress:
        for start in range(0, len(texts), ENCODED):
            part = list(texts[start : start + ENCODED])
            for i, vectors in enumerate(encode(part), start):
                if not len(vectors):
                    raise UserError(f"{description}: text {i} has no vectors; the encoder must give at least one")
                yield vectors
            progress.update(len(part))


def _score(benchmark: Benchmark, queries: Sequence[Vectors], documents: Sequence[Vectors], depth: int) -> Run:
    """Blocks of queries, whose scores for all documents fit, times blocks of documents."""
    ids, qids = benchmark.document_ids, list(benchmark.queries)
    widest = max(len(v) for v in queries)
    rows = max(1, CELLS // len(ids))  # queries of a block
    columns = max(1, CELLS // (min(rows, len(queries)) * widest * max(len(v) for v in documents)))  # documents of one
    run: Run = {}
    with progress_bar(len(documents) * -(-len(queries) // rows), "score") as progress:
        for start in range(0, len(queries), rows):
            block = queries[start : start + rows]
            scores = np.empty((len(block), len(ids)), np.float32)
            for at in range(0, len(documents), columns):
                part = documents[at : at + columns]
                scores[:, at : at + columns] = maxsim(block, part)
                progress.update(len(part))
            np.round(scores, DECIMALS, out=scores)
            for qid, row in zip(qids[start : start + rows], scores, strict=True):
                run[qid] = [(document, round(score, DECIMALS)) for document, score in best(row, ids, depth)]
    return run
