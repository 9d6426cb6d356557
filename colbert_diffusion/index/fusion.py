"""Dense and lexical scores of the same passages in one. Knows neither indexes nor models.

Measured on faq and semanlink_arxiv (where the default weights were chosen) and on wiki_vital (where nothing was): RESULTS.md.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ..common.checks import is_number
from ..common.errors import UserError
from ..config import HEAVIEST

Rule = Literal["scaled", "minmax", "rrf"]
RRF = 60  # Cormack, Clarke and Buettcher 2009
WEIGHT = 0.3  # of the words found beside a mean MaxSim, for "scaled": BM25's and predicted ones alike

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Fusion:
    """How two scores become one.

    Args:
        rule: "scaled": MaxSim / k_query + weight x share^2, share being lexical / what a passage with all of the query's words
            could score: the mean similarity of the query's vectors, and how much of its words was found. No list, so that
            neither filters nor depth change a score. "minmax": both scaled to 0..1 over the retrieved union, lexical times
            weight, dense times 1 - weight: equal weights are DiffRetriever eq. 3. "rrf": reciprocal ranks in both lists.
        weight: of the words, from 0 on; for "minmax" and "rrf" up to 1.

    Raises:
        UserError: an unknown rule, or a weight out of its range.
    """

    rule: Rule = "scaled"
    weight: float = WEIGHT

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise UserError(f'fusion rule "{self.rule}" is unknown; choose one of {list(get_args(Rule))}')
        most = HEAVIEST if self.rule == "scaled" else 1
        if not is_number(self.weight, 0, most):
            raise UserError(f"the weight of the words is {self.weight!r:.40}, expected 0 to {most}")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def depth(self, k: int) -> int:
        """How many passages of each side are looked at for the k best of both."""
        least = 20 if self.rule == "scaled" else 100
        return max(k, min(2 * k, 1000), least)

    def fuse(self, dense: Floats, lexical: Floats, k_query: int, most: float, retrieved: tuple[Floats, Floats]) -> Floats:
        """The scores of passages, float64 (n,).

        Args:
            dense, lexical: their scores, (n,): MaxSim, and what the words give.
            most: what the query's words could give a passage (`LexicalIndex.most`).
            retrieved: which of them are in the dense and in the lexical list, bool (n,), for "rrf".
        """
        dense, lexical = dense.astype(np.float64), lexical.astype(np.float64)
        if self.rule == "scaled":
            return dense / k_query + self.weight * found_words(lexical, most)
        one, other = (
            (_minmax(dense), _minmax(lexical))
            if self.rule == "minmax"
            else (_reciprocal(dense, retrieved[0]), _reciprocal(lexical, retrieved[1]))
        )
        fused: Floats = (1 - self.weight) * one + self.weight * other
        return fused


class Both(NamedTuple):
    """What vectors and words found for a query: the union of two lists, with both scores of each passage."""

    pids: Floats
    dense: Floats
    lexical: Floats
    k_query: int
    most: float  # what the query's words could give a passage
    by_vectors: Floats  # bool: which of them are in the vectors' list
    by_words: Floats  # and in the words'

    def best(self, fusion: Fusion, k: int) -> tuple[list[int], list[float]]:
        """The k best pids by both and their scores, ties by pid."""
        fused = fusion.fuse(self.dense, self.lexical, self.k_query, self.most, (self.by_vectors, self.by_words))
        order = np.lexsort((self.pids, -fused))[:k]
        return self.pids[order].tolist(), fused[order].tolist()


def found_words(lexical: Floats, most: float | Floats) -> Floats:
    """How much of a query's words passages have, 0 to 1: the share of what could be scored, squared.

    Squared, since nearly all of the words tell much and half of them little, which the vectors tell better: where passages
    answer in other words (faq), the best match has some .6 of a query's words, where they repeat them nearly all.
    """
    found: Floats = np.square(lexical / np.where(np.greater(most, 0), most, np.inf))
    return found


def fusion_of(about: Any) -> Fusion | None:
    """As a manifest has it; None: there is none. Raises UserError when it is damaged."""
    if about is None:
        return None
    if not isinstance(about, dict) or set(about) - {"rule", "weight"}:
        raise UserError(f"the index's fusion is {about!r:.60}, expected a rule and a weight; tune it again or rebuild it")
    return Fusion(**about)


def _minmax(scores: Floats) -> Floats:
    least, most = (scores.min(), scores.max()) if len(scores) else (0, 0)
    scaled: Floats = (scores - least) / (most - least) if most > least else np.zeros(len(scores))
    return scaled


def _reciprocal(scores: Floats, there: Floats) -> Floats:
    """1 / (60 + rank) in the list, 0 outside of it; ties in order."""
    found = np.zeros(len(scores))
    order = np.argsort(-np.where(there, scores, -np.inf), kind="stable")[: int(there.sum())]
    found[order] = 1 / (RRF + 1 + np.arange(len(order)))
    return found
