"""Some chunks of an index, searched as a part of the whole: a collection may be larger than one machine's memory.

PLAID throws passages out twice by estimates from their centroids before any vector is unpacked (index_storage.py:113), and each
time by how many are better in the whole index. So a part says its estimates, in the float32 of ColBERT's C++, and whoever holds
all parts throws out: codec, candidates and scores are then those of one index.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.infra.config import ColBERTConfig
from colbert.search.strided_tensor import StridedTensor
from torch import Tensor
from torch.nn.functional import pad

from ..common.errors import UserError
from ..common.files import parse_json, read_json
from .extensions import load_scorer
from .scorer import CheckedScorer, list_faults
from .settings import SearchSettings

CENTROIDS = 4096  # whose lists are read at a time
NOTHING = -9999.0  # what C++ has for a query vector that no centroid is left for (filter_pids.cpp:30)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Candidates(NamedTuple):
    """Passages that are looked at: their pids, and MaxSim over centroids, (n,): over those near enough, and over all."""

    pids: Ints
    pruned: Floats
    whole: Floats

    @classmethod
    def none(cls) -> "Candidates":
        return cls(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))

    def take(self, places: Ints) -> "Candidates":
        return Candidates(self.pids[places], self.pruned[places], self.whole[places])


def thrown_out(parts: Sequence[Candidates], ndocs: int) -> Ints:
    """The pids that are left of all parts' candidates: by one estimate `ndocs`, of those by the other a quarter."""
    one = Candidates(*map(np.concatenate, zip(*parts, strict=True)))
    one = one.take(_best(one.pruned, one.pids, ndocs))
    return one.pids[_best(one.whole, one.pids, ndocs // 4)]


def _best(scores: Floats, pids: Ints, count: int) -> Ints:
    """Places of the best; of equal ones the larger pid's, as in C++'s queue of pairs."""
    places: Ints = np.lexsort((-pids, -scores))[:count]
    return places


class ChunkScorer(CheckedScorer):
    """Reads the vectors of some chunks alone, and computes on the CPU; pids are those of the whole index.

    Args:
        chunks: consecutive ones.

    Raises:
        UserError: a chunk is not there, or as CheckedScorer.
    """

    def __init__(self, index_path: str, chunks: range) -> None:
        load_scorer()
        about = [read_json(Path(index_path, f"{chunk}.metadata.json")) for chunk in chunks]
        self._chunks = chunks
        self._first: int = about[0]["passage_offset"]
        self._count = sum(one["num_passages"] for one in about)
        self._vectors: int = sum(one["num_embeddings"] for one in about)
        super().__init__(index_path, use_gpu=False)

    @property
    def span(self) -> range:
        """The pids of the passages that it has."""
        return range(self._first, self._first + self._count)

    @property
    def num_embeddings(self) -> int:
        return self._vectors

    def _load_ivf(self) -> None:
        """Its own passages of each centroid, a few centroids at a time: the whole list is as long as the collection."""
        path = Path(self.index_path, "ivf.pid.pt")
        if not path.exists():
            raise UserError(f"{path} is missing, which older ColBERTs did not write: rebuild the index to divide it")
        pids, lengths = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        self._refuse(list_faults(pids, lengths, self.metadata["num_partitions"]))
        listed, counts, start = list[Tensor](), list[Tensor](), 0
        for own in torch.split(torch.as_tensor(lengths).long(), CENTROIDS):
            block = pids[start : start + int(own.sum())]
            here = (block >= self._first) & (block < self._first + self._count)
            ends, seen = own.cumsum(0), pad(here.cumsum(0), (1, 0))
            listed.append((block[here] - self._first).int())
            counts.append(seen[ends] - seen[ends - own])
            start += len(block)
        mine = torch.cat(listed)
        self.ivf = StridedTensor(mine, torch.cat(counts), use_gpu=self.use_gpu) if len(mine) else None

    def _load_doclens(self) -> None:
        files = [Path(self.index_path, f"doclens.{chunk}.json") for chunk in self._chunks]
        self.doclens = torch.tensor([length for file in files for length in parse_json(file.read_text())])
        self._refuse(self._length_faults())

    def _load_embeddings(self) -> None:
        self.embeddings = ResidualCodec.Embeddings.load_chunks(self.index_path, self._chunks, self._vectors)
        self._refuse(self._code_faults())

    @torch.inference_mode()
    def candidates(self, q: Tensor, settings: SearchSettings) -> Candidates:
        """Its candidates for a query, float32 (1, k_query, dim), that may be among the best `ndocs` of the whole index."""
        if self.ivf is None:  # every passage was removed
            return Candidates.none()
        local, centroid_scores = self.generate_candidates(settings, q)
        near = centroid_scores.max(-1).values >= settings.centroid_score_threshold
        pids = local.numpy().astype(np.int64) + self._first
        pruned = self._estimates(local, centroid_scores, near)
        kept = _best(pruned, pids, settings.ndocs)
        whole = self._estimates(local[torch.from_numpy(kept)], centroid_scores, torch.ones_like(near))
        return Candidates(pids[kept], pruned[kept], whole)

    def _estimates(self, local: Tensor, centroid_scores: Tensor, allowed: Tensor) -> Floats:
        """MaxSim over the centroids of each passage's vectors that are allowed (filter_pids.cpp:43), float32 (n,)."""
        codes, lengths = self.embeddings_strided.lookup_codes(local)
        codes = codes.long()
        similarities = torch.where(allowed[codes, None], centroid_scores[codes], NOTHING)
        best = torch.segment_reduce(similarities, "max", lengths=lengths, axis=0, initial=NOTHING)
        total = torch.zeros(len(local))
        for own in best.unbind(1):  # one after the other: the order decides float32's last bit
            total += own
        estimates: Floats = total.numpy()
        return estimates

    @torch.inference_mode()
    def scores(self, q: Tensor, pids: Sequence[int]) -> Floats:
        """MaxSim of a query with passages of its own, float32 (n,)."""
        if not len(pids):
            return np.zeros(0, np.float32)
        local = torch.tensor(pids, dtype=torch.int32) - self._first
        found, _ = self.score_pids(ColBERTConfig(), q, local, None)
        scores: Floats = found.float().cpu().numpy()
        return scores
