"""Content words: what a text is about, as token ids. Knows tokenizers, not models.

DiffRetriever eq. 2 scores a masked position's prediction only at words that the text itself has: lower-cased, without
stop words, each word tokenised alone.
"""

import re
from collections.abc import Callable, Iterable, Sequence

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
WORD = re.compile(r"[^\W_]+")


def content_words(text: str) -> list[str]:
    """The text's words, lower-cased, without stop words and single letters, in order, repeats included."""
    return [word for word in WORD.findall(text.lower()) if len(word) > 1 and word not in STOP_WORDS]


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
        words = [set(content_words(text)) for text in texts]
        unseen = sorted(set().union(*words) - self._ids.keys()) if words else []
        for word, ids in zip(unseen, self._tokenize(unseen), strict=True):
            self._ids[word] = frozenset(ids) - self._never
        return [frozenset[int]().union(*(self._ids[word] for word in of_text)) for of_text in words]
