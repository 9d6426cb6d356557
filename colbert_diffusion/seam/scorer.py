"""ColBERT's IndexScorer, which checks what its C++ trusts: that reads and writes out of bounds where a number is wrong.

Each file is checked before anything is allocated or computed by it. One pass over codes, lengths and the inverted list:
2 ms at 10,000 passages of 10 vectors, .2 s at 8.8 million of 16.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from colbert.search.index_storage import IndexScorer
from colbert.search.strided_tensor import StridedTensor

from ..common.errors import UserError


class CheckedScorer(IndexScorer):  # type: ignore[misc]  # colbert has no types
    """Same files, same results.

    Raises:
        UserError: a number in one of them is out of its range.
    """

    codec: Any
    metadata: dict[str, Any]

    @property
    def passages(self) -> int:
        return len(self.doclens)

    @property
    def vectors(self) -> int:
        return int(self.doclens.sum())

    @property
    def partitions(self) -> int:
        return len(self.codec.centroids)

    def rank(self, config: Any, q: torch.Tensor, filter_fn: Any = None, pids: Any = None) -> Any:
        """ColBERT's, which fails on no candidates at all unless a filter has seen them (index_storage.py:100)."""
        return super().rank(config, q, filter_fn=filter_fn or _all, pids=pids)

    def _load_codec(self) -> None:
        super()._load_codec()
        self._refuse(self._codec_faults())

    def _codec_faults(self) -> Iterator[str]:
        codec, partitions = self.codec, self.metadata["num_partitions"]
        if tuple(codec.centroids.shape) != (partitions, codec.dim) or not bool(codec.centroids.isfinite().all()):
            yield f"centroids.pt does not hold {partitions} x {codec.dim} finite numbers"
        for name, count in (("bucket_cutoffs", 2**codec.nbits - 1), ("bucket_weights", 2**codec.nbits)):
            values = getattr(codec, name)
            if len(values) != count or not bool(values.isfinite().all()):
                yield f"buckets.pt: {name} are not {count} finite numbers"

    def _load_ivf(self) -> None:
        path = Path(self.index_path, "ivf.pid.pt")
        if not path.exists():
            super()._load_ivf()
            return
        pids, lengths = torch.load(path, map_location="cpu", weights_only=True)
        self._refuse(list_faults(pids, lengths, self.metadata["num_partitions"]))
        self.ivf = StridedTensor(pids, lengths, use_gpu=self.use_gpu)

    def _load_doclens(self) -> None:
        super()._load_doclens()
        self._refuse(self._length_faults())

    def _length_faults(self) -> Iterator[str]:
        doclens, vectors = self.doclens, self.num_embeddings
        if not len(doclens) or doclens.is_floating_point() or int(doclens.min()) < 0 or int(doclens.sum()) != vectors:
            yield f"the lengths of its {len(doclens)} passages do not add up to {vectors} vectors"
        pids = torch.empty(0) if self.ivf is None else self.ivf.tensor
        if len(pids) and not 0 <= int(pids.min()) <= int(pids.max()) < len(doclens):
            yield f"the inverted list names passages beyond 0..{len(doclens) - 1}"

    def _load_embeddings(self) -> None:
        super()._load_embeddings()
        self._refuse(self._code_faults())

    def _code_faults(self) -> Iterator[str]:
        codes = self.embeddings.codes[: self.num_embeddings]  # behind them is ColBERT's padding
        partitions = len(self.codec.centroids)
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < partitions:
            yield f"codes are not all in 0..{partitions - 1}"

    def _refuse(self, faults: Iterator[str]) -> None:
        for fault in faults:
            raise UserError(f"{self.index_path} is damaged ({fault}); restore the files or rebuild the index")


def _all(candidates: torch.Tensor) -> torch.Tensor:
    return candidates


Scorers = Callable[[Path], Any]  # an index's folder -> what its searcher calls `ranker`
_elsewhere: ContextVar[Scorers | None] = ContextVar("_elsewhere", default=None)


@contextmanager
def scoring_by(scorers: Scorers) -> Iterator[None]:
    """A searcher that is opened meanwhile loads no vectors: it asks what this gives."""
    token = _elsewhere.set(scorers)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def open_scorer(index_path: str, use_gpu: bool = True, load_index_with_mmap: bool = False) -> Any:
    """In place of ColBERT's class in its searcher (searcher.py:50)."""
    scorers = _elsewhere.get()
    return CheckedScorer(index_path, use_gpu, load_index_with_mmap) if scorers is None else scorers(Path(index_path))


def list_faults(pids: torch.Tensor, lengths: torch.Tensor, partitions: int) -> Iterator[str]:
    lengths = torch.as_tensor(lengths).long()
    if len(lengths) != partitions or int(lengths.min()) < 0 or int(lengths.max()) > len(pids):
        yield f"the inverted list is not that of {partitions} partitions"
    elif int(lengths.sum()) > len(pids):
        yield f"the inverted list has {len(pids)} entries for {int(lengths.sum())}"
