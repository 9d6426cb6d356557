"""Words: what a text is about, and which of its words the masked positions predict (DiffRetriever eq. 2). Knows no indexes.

Eq. 2 scores a masked position's prediction only at words that the text itself has: lower-cased, without stop words, each word
tokenised alone. The reference takes NLTK's words and stop words; here a word is a run of letters, digits and the marks that
belong to them, in any script, so that hyphens divide words and no punctuation is left.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
import regex
import torch
from scipy.sparse import csr_array
from torch import Tensor

from .heads import PredictionHead

STOP_WORDS = frozenset(
    "a about above after again against all also am an and any are as at be because been before being below between both "
    "but by can cannot could did do does doing done down during each either else ever every few for from further get got "
    "had has have having he her here hers herself him himself his how however i if in into is it its itself just less "
    "let like may me might mine more most much must my myself neither no nor not now of off often on once one only onto "
    "or other others our ours ourselves out over own per rather s same shall she should since so some such t than that "
    "the their theirs them themselves then there these they this those through thus to too under until up upon us very "
    "was we were what when where whether which while who whom whose why will with within without would yet you your "
    "yours yourself yourselves".split()
)
WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
REMEMBERED = 200_000  # words whose ids are kept


def words(text: str) -> list[str]:
    """The text's words, lower-cased and composed (NFC), in order, repeats and stop words included.

    >>> words("A naïve café, 東京!")
    ['a', 'naïve', 'café', '東京']
    """
    found: list[str] = WORD.findall(normalize("NFC", text).lower())
    return found


def content_words(text: str) -> list[str]:
    """`words` without stop words and single letters of scripts that have capitals, in order, repeats included.

    >>> content_words("The Cat's hat: 42 (x)")
    ['cat', 'hat', '42']
    """
    return [word for word in words(text) if word not in STOP_WORDS and (len(word) > 1 or word.upper() == word)]


class ContentIds:
    """Texts -> the token ids of their content words; each word is tokenised once per object.

    Args:
        tokenize: texts -> ids without added tokens (`Backbone.tokenize`).
        never: ids that are no words (the mask, unknown).
    """

    def __init__(self, tokenize: Callable[[Sequence[str]], list[list[int]]], never: Iterable[int | None]) -> None:
        self._tokenize, self._never = tokenize, frozenset(never)
        self._ids: dict[str, frozenset[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[frozenset[int]]:
        words_of = [set(content_words(text)) for text in texts]
        unseen = sorted(set().union(*words_of) - self._ids.keys()) if words_of else []
        if len(self._ids) > REMEMBERED:
            self._ids.clear()
            unseen = sorted(set().union(*words_of))
        for word, ids in zip(unseen, self._tokenize(unseen), strict=True):
            self._ids[word] = frozenset(ids) - self._never
        return [frozenset[int]().union(*(self._ids[word] for word in of_text)) for of_text in words_of]


class Weights(NamedTuple):
    """A text's words: vocabulary ids, int32, ascending, and their weights above 0, float32."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class WordReader:
    """States -> the weights of eq. 2: max over the k positions of log(1 + ReLU(logit)).

    Args:
        content: None keeps every word of the vocabulary, not the text's own alone.
    """

    head: PredictionHead
    content: ContentIds | None

    def of(self, texts: Sequence[str]) -> list[frozenset[int]] | None:
        """What may be kept of each text; None: everything."""
        return None if self.content is None else self.content(texts)

    def read(self, states: Tensor, kept: Sequence[frozenset[int]] | None) -> list[Weights]:
        """One batch: (n, k, hidden) and each text's ids -> its weights.

        Only the columns of words that some text of the batch has are computed: an output matrix of 152,000 words costs
        as much as several layers.
        """
        if kept is None:
            return [_above_zero(None, self._activations(own[None], None)[0]) for own in states]
        columns = sorted(frozenset[int]().union(*kept))
        if not columns:
            return [Weights(np.zeros(0, np.int32), np.zeros(0, np.float32))] * len(kept)
        found = self._activations(states, torch.tensor(columns, device=states.device))
        ids, place = np.array(columns, np.int32), {word: i for i, word in enumerate(columns)}
        own = [[place[word] for word in sorted(of_text)] for of_text in kept]
        return [_above_zero(ids[places], row[places]) for places, row in zip(own, found, strict=True)]

    def _activations(self, states: Tensor, columns: Tensor | None) -> npt.NDArray[np.float32]:
        logits = self.head(states, columns)
        activations: npt.NDArray[np.float32] = logits.amax(dim=1).float().relu().log1p().cpu().numpy()
        return activations


def _above_zero(ids: npt.NDArray[np.int32] | None, values: npt.NDArray[np.float32]) -> Weights:
    (places,) = np.nonzero(values)
    return Weights(places.astype(np.int32) if ids is None else ids[places], values[places])


def as_matrix(rows: Sequence[Weights], vocabulary: int) -> csr_array:
    """float32 (texts, vocabulary)."""
    starts = np.cumsum([0, *(len(row.ids) for row in rows)])
    ids = np.concatenate([row.ids for row in rows]) if rows else np.zeros(0, np.int32)
    weights = np.concatenate([row.weights for row in rows]) if rows else np.zeros(0, np.float32)
    return csr_array((weights, ids, starts), shape=(len(rows), vocabulary), dtype=np.float32)
