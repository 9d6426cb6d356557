"""One index whose vectors lie in several places: every part is asked, and the answer is that of the whole.

The parts are consecutive chunks of one ordinary index, with its one codec: nothing is built or copied for them. Texts, ids and
words are read from the folder, where they are asked for; only codes, residuals and inverted lists want memory.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.files import read_json
from ..seam.parts import Candidates, ChunkScorer, Floats, thrown_out
from ..seam.settings import SearchSettings
from .opening import index_metadata


class Parts(Protocol):
    """Where the vectors are.

    spans: the pids of each part, in order.
    """

    spans: Sequence[range]

    def candidates(self, q: Tensor, settings: SearchSettings) -> Sequence[Candidates]:
        """Each part's (`ChunkScorer.candidates`)."""
        ...

    def scores(self, q: Tensor, pids: Sequence[Sequence[int]]) -> Sequence[Floats]:
        """For each part MaxSim with those of its passages (`ChunkScorer.scores`)."""
        ...


def divide(folder: Path, parts: int) -> list[range]:
    """The chunks of each of so many parts, as even as they are. Raises UserError when there are fewer chunks."""
    chunks = index_metadata(folder)["num_chunks"]
    if not 1 <= parts <= chunks:
        raise UserError(f"{folder} has {chunks} chunks, so 1 to {chunks} parts; {parts} were asked for")
    ends = [chunks * part // parts for part in range(parts + 1)]
    return [range(*own) for own in pairwise(ends)]


class LocalParts:
    """All of them in this process, one after the other."""

    def __init__(self, folder: Path, parts: int) -> None:
        self._scorers = [ChunkScorer(str(folder), chunks) for chunks in divide(folder, parts)]
        self.spans: Sequence[range] = [scorer.span for scorer in self._scorers]

    def candidates(self, q: Tensor, settings: SearchSettings) -> list[Candidates]:
        return [scorer.candidates(q, settings) for scorer in self._scorers]

    def scores(self, q: Tensor, pids: Sequence[Sequence[int]]) -> list[Floats]:
        return [scorer.scores(q, own) for scorer, own in zip(self._scorers, pids, strict=True)]


class PartsRanker:
    """What a Searcher asks of ColBERT's ranker, of all parts.

    Raises:
        UserError: the parts are not those of the index.
    """

    def __init__(self, folder: Path, parts: Parts) -> None:
        about = index_metadata(folder)
        last = read_json(folder / f"{about['num_chunks'] - 1}.metadata.json")
        self.passages: int = last["passage_offset"] + last["num_passages"]
        self.vectors: int = about["num_embeddings"]
        self.partitions: int = about["num_partitions"]
        self._parts = parts
        self._starts = [span.start for span in parts.spans]
        if [*self._starts, self.passages] != [0, *(span.stop for span in parts.spans)]:
            raise UserError(f"the parts have the passages {list(parts.spans)}, not the {self.passages} of {folder}")

    def rank(
        self, config: Any, q: Tensor, filter_fn: Any = None, pids: Sequence[int] | None = None
    ) -> tuple[list[int], list[float]]:
        """All that were scored, best first.

        Raises:
            UserError: a filter that wants to see candidates: they are elsewhere.
        """
        if pids is None and filter_fn is not None:
            raise UserError("an index in parts takes no filter of candidates; search by pids=, which are all scored")
        wanted = self.retrieve(config, q) if pids is None else pids
        if filter_fn is not None:
            wanted = filter_fn(torch.tensor(pids, dtype=torch.int32)).tolist()
        scores = self.score_pids(q, wanted)
        order = np.argsort(-scores, kind="stable")
        return np.asarray(wanted)[order].tolist(), scores[order].tolist()

    def retrieve(self, config: Any, q: Tensor) -> Any:
        """The pids that are scored."""
        settings = SearchSettings(config.ncells, config.centroid_score_threshold, config.ndocs)
        return thrown_out(self._parts.candidates(q[:, : config.query_maxlen], settings), settings.ndocs)

    def score_pids(self, q: Tensor, pids: Sequence[int]) -> Floats:
        """MaxSim with each, float32 (n,)."""
        wanted = np.asarray(pids, np.int64)
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        found = self._parts.scores(q, [wanted[owners == part].tolist() for part in range(len(self._starts))])
        scores = np.zeros(len(wanted), np.float32)
        for part, own in enumerate(found):
            scores[owners == part] = own
        return scores
