"""The words of an index, beside PLAID's files: BM25's, or those that the masked positions predict (DiffRetriever eq. 2).

Both are an inverted index (`postings.py`). Predicted weights are kept as they are. Of BM25 the counts and the passages'
lengths are kept, so that the statistics stay exact under updates: idf and mean length are those of the passages there are.

lexical.json          which words, and how many
lexical.safetensors   the postings
lexical.txt           BM25's words, sorted by their bytes; predicted words are the tokenizer's
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import regex
import Stemmer

from ..common.checks import is_number
from ..common.errors import UserError
from ..common.files import read_json, write_json, written_aside
from ..common.progress import progress_bar
from ..encoding.lexical import STOP_WORDS, Weights, words
from .postings import Floats, Ints, Piece, Postings, write_postings

LEXICAL_FILE = "lexical.json"
POSTINGS_FILE = "lexical.safetensors"
WORDS_FILE = "lexical.txt"
FORMAT_VERSION = 1
BLOCK = 100_000  # passages whose postings are sorted at once
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}]\p{M}*|[^\p{Han}\p{Hiragana}]+")  # a character is a word there
REMEMBERED = 1_000_000  # words whose stems are kept
MOST_COUNT = 2**16 - 1  # of a word in a passage

Source = Literal["bm25", "predicted"]


@dataclass(frozen=True)
class BM25:
    """Lucene's BM25 over lower-cased words without stop words, stemmed with Snowball's English stemmer.

    Args:
        k1: how soon more of the same word adds no more. In a passage the first tells most, so less than the .9 of the
            literature's baseline, which `evaluate --bm25` is: measured in RESULTS.md.
        b: how much a passage's length counts, 0 to 1.

    Raises:
        UserError: out of their ranges.
    """

    k1: float = 0.4
    b: float = 0.6

    def __post_init__(self) -> None:
        if not is_number(self.k1, 0, 1000) or not is_number(self.b, 0, 1):
            raise UserError(f"k1 is {self.k1!r:.40} and b {self.b!r:.40}, expected k1 from 0 to 1000 and b from 0 to 1")


BM25_SOURCE: Source = "bm25"
PREDICTED: Source = "predicted"
Lexical = BM25 | Literal["bm25", "predicted"] | None  # what `Indexer.index(lexical=)` takes


def described(lexical: Lexical) -> dict[str, Any] | None:
    """What decides an index's words, for its manifest; None: it has none.

    Raises:
        UserError: not one of the sources.
    """
    if lexical is None:
        return None
    if lexical == PREDICTED:
        return {"source": PREDICTED}
    if lexical == "bm25" or isinstance(lexical, BM25):
        return {"source": "bm25", **asdict(lexical if isinstance(lexical, BM25) else BM25())}
    raise UserError(f'lexical is {lexical!r:.60}, expected "bm25", "predicted" or None')


class Stems:
    """Texts -> BM25's words; each word is stemmed once."""

    def __init__(self) -> None:
        self._stem: Callable[[str], str] = Stemmer.Stemmer("english", 0).stemWord
        self._stems: dict[str, str] = {}

    def of(self, text: str) -> list[str]:
        return [self._of_word(part) for word in words(text) if word not in STOP_WORDS for part in UNSPACED.findall(word)]

    def _of_word(self, word: str) -> str:
        stem = self._stems.get(word)
        if stem is None:
            if len(self._stems) >= REMEMBERED:
                self._stems.clear()
            stem = self._stems[word] = self._stem(word)
        return stem


# Writing --------------------------------------------------------------------------------------------------------------------


class _Counts(NamedTuple):
    """Counted words of some passages: postings under numbers in order of appearance, the words, the passages' lengths."""

    pieces: list[Piece]
    words: list[str]
    lengths: Ints


def write_bm25(folder: Path, about: dict[str, Any], texts: Sequence[str], *, show: bool = False) -> None:
    """Count a collection's words into an index's folder; `about` as `described` gives it."""
    counted = _count(texts, 0, show)
    known, order = _sorted(counted.words)
    _write_words(folder / WORDS_FILE, known)
    pieces = [piece._replace(terms=order[piece.terms]) for piece in counted.pieces]
    write_postings(folder / POSTINGS_FILE, lambda: iter(pieces), len(known), counted.lengths, np.uint16)
    _write_about(folder, about, len(known), len(texts))


def write_predicted(
    folder: Path, about: dict[str, Any], passages: int, vocabulary: int, weights: Callable[[], Iterable[Weights]]
) -> None:
    """Invert predicted words into an index's folder.

    Args:
        weights: gives each passage's, by pid; called twice.
    """
    write_postings(folder / POSTINGS_FILE, lambda: _pieces(weights(), 0), vocabulary, None, np.float32)
    _write_about(folder, about, vocabulary, passages)


def update_lexical(
    old: Path, new: Path, added: Sequence[str], weights: Callable[[], Iterable[Weights]], gone: Collection[int]
) -> None:
    """Write the words of an updated index: the old ones, those of the added passages, without those of the removed.

    Args:
        added: their texts, for BM25; a removed one's is empty.
        weights: gives their predicted words.
    """
    about = read_about(old)
    before, terms = about["passages"], about["terms"]
    bm25 = about["source"] == "bm25"
    there = _postings(old, about)
    without = np.array(sorted(pid for pid in gone if pid < before), np.int64)
    if not bm25:
        pieces = _chained(lambda: there.pieces(without), lambda: _pieces(weights(), before))
        write_postings(new / POSTINGS_FILE, pieces, terms, None, np.float32)
    else:
        counted = _count(added, before, show=False)
        old_words = Words(old / WORDS_FILE)
        known, order = _sorted([*old_words, *counted.words])
        _write_words(new / WORDS_FILE, known)
        fresh = [piece._replace(terms=order[len(old_words) :][piece.terms]) for piece in counted.pieces]
        lengths = np.concatenate([there.lengths if there.lengths is not None else [], counted.lengths]).astype(np.uint32)
        lengths[sorted(gone)] = 0
        pieces = _chained(lambda: there.pieces(without, order[: len(old_words)]), lambda: iter(fresh))
        write_postings(new / POSTINGS_FILE, pieces, len(known), lengths, np.uint16)
        terms = len(known)
    _write_about(new, about, terms, before + len(added))


def _chained(*parts: Callable[[], Iterator[Piece]]) -> Callable[[], Iterator[Piece]]:
    def both() -> Iterator[Piece]:
        for part in parts:
            yield from part()

    return both


def _count(texts: Sequence[str], first: int, show: bool) -> _Counts:
    """Word counts of passages, whose pids begin at `first`."""
    stems, numbers, pieces = Stems(), dict[str, int](), list[Piece]()
    lengths = np.zeros(len(texts), np.uint32)
    with progress_bar(len(texts), "count words", show=show) as progress:
        for start in range(0, len(texts), BLOCK):
            terms, pids, values = list[int](), list[int](), list[int]()
            for pid, text in enumerate(texts[start : start + BLOCK], start):
                found = stems.of(text)
                lengths[pid] = len(found)
                for stem, count in Counter(found).items():
                    terms.append(numbers.setdefault(stem, len(numbers)))
                    pids.append(first + pid)
                    values.append(min(count, MOST_COUNT))
                progress.update(1)
            pieces.append(Piece(np.array(terms, np.int32), np.array(pids, np.int32), np.array(values, np.uint16)))
    return _Counts(pieces, list(numbers), lengths)


def _pieces(weights: Iterable[Weights], first: int) -> Iterator[Piece]:
    """Blocks of passages' weights as postings."""
    ids, pids, values = list[Ints](), list[Ints](), list[Ints]()
    for pid, own in enumerate(weights, first):
        ids.append(own.ids)
        pids.append(np.full(len(own.ids), pid, np.int32))
        values.append(own.weights)
        if len(ids) == BLOCK:
            yield Piece(*map(np.concatenate, (ids, pids, values)))
            ids, pids, values = [], [], []
    if ids:
        yield Piece(*map(np.concatenate, (ids, pids, values)))


def _sorted(found: Sequence[str]) -> tuple[list[str], Ints]:
    """The different words by their bytes, and for each of `found` its place among them."""
    known = sorted(set(found), key=_bytes)
    place = {word: i for i, word in enumerate(known)}
    return known, np.array([place[word] for word in found], np.int32)


def _bytes(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")


def _write_words(path: Path, known: Iterable[str]) -> None:
    with written_aside(path) as aside, aside.open("wb") as file:
        file.writelines(_bytes(word) + b"\n" for word in known)


def _write_about(folder: Path, about: dict[str, Any], terms: int, passages: int) -> None:
    """Last of the three."""
    write_json(folder / LEXICAL_FILE, {**about, "format_version": FORMAT_VERSION, "terms": terms, "passages": passages})


# Reading --------------------------------------------------------------------------------------------------------------------


def read_about(folder: Path) -> dict[str, Any]:
    """What an index's words are.

    Raises:
        UserError: damaged, or of another format version.
    """
    path = folder / LEXICAL_FILE
    about = read_json(path)
    whole = all(is_number(about.get(name), 0, 2**31, whole=True) for name in ("terms", "passages"))
    if about.get("format_version") != FORMAT_VERSION or about.get("source") not in ("bm25", "predicted") or not whole:
        raise UserError(f"{path} is damaged or of another version; restore it or rebuild the index")
    if about["source"] == "bm25":
        BM25(about.get("k1", math.nan), about.get("b", math.nan))
    return about


def has_predicted(folder: Path) -> bool:
    """Whether an index has words that were predicted: an update must predict those of its passages too."""
    return (folder / LEXICAL_FILE).is_file() and read_about(folder)["source"] == PREDICTED


def _postings(folder: Path, about: dict[str, Any]) -> Postings:
    bm25 = about["source"] == "bm25"
    valued = "uint16" if bm25 else "float32"
    found = Postings(folder / POSTINGS_FILE, about["passages"], valued=valued, measured=bm25)
    if found.terms != about["terms"]:
        raise UserError(f"{found.path} has {found.terms} terms, {LEXICAL_FILE} says {about['terms']}; rebuild the index")
    return found


class Words(Sequence[str]):
    """The lines of a sorted file, found by bisection: nothing is built, and 100,000 words are 0.8 MB."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        ends = np.flatnonzero(np.frombuffer(self._content, np.uint8) == ord("\n"))
        self._starts = np.concatenate([[0], ends + 1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, place: Any) -> Any:
        return self._at(place).decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def _at(self, place: int) -> bytes:
        return self._content[self._starts[place] : self._starts[place + 1] - 1]

    def find(self, word: str) -> int | None:
        """A word's place; None: it is not there."""
        wanted = _bytes(word)
        place = bisect_left(range(len(self)), wanted, key=self._at)
        return place if place < len(self) and self._at(place) == wanted else None


class Query(NamedTuple):
    """A query's terms, ascending, and their weights."""

    terms: Ints
    weights: Floats


class LexicalIndex:
    """The words of an opened index.

    Args:
        removed: how many of its passages were removed.

    Raises:
        UserError: damaged, or of another number of passages.
    """

    def __init__(self, folder: Path, passages: int, removed: int) -> None:
        about = read_about(folder)
        if about["passages"] != passages:
            raise UserError(f"{folder / LEXICAL_FILE} is of {about['passages']} passages, the index has {passages}; rebuild it")
        self.source: Source = about["source"]
        self._postings = _postings(folder, about)
        self._live = passages - removed
        self._norms: Floats | None = None
        self._words: Words | None = None
        lengths = self._postings.lengths
        if lengths is not None:
            self._words, self._stems = Words(folder / WORDS_FILE), Stems()
            if len(self._words) != self._postings.terms:
                raise UserError(f"{folder / WORDS_FILE} has {len(self._words)} words for {self._postings.terms} terms; rebuild")
            mean = max(1.0, float(lengths.sum(dtype=np.int64)) / max(1, self._live))
            self._norms = (about["k1"] * (1 - about["b"] + about["b"] * lengths / mean)).astype(np.float32)

    @property
    def vocabulary(self) -> int:
        return self._postings.terms

    def of_text(self, text: str) -> Query:
        """A query's words for BM25: each in the index, by idf and how often it is asked."""
        counts = Counter[int]()
        for stem in self._stems.of(text):
            place = None if self._words is None else self._words.find(stem)
            if place is not None:
                counts[place] += 1
        terms = sorted(counts)
        weights = [counts[term] * self._idf(term) for term in terms]
        return Query(np.array(terms, np.int64), np.array(weights, np.float32))

    def _idf(self, term: int) -> float:
        frequency = self._postings.frequency(term)
        return math.log(1 + (self._live - frequency + 0.5) / (frequency + 0.5))

    def scores(self, query: Query) -> Floats:
        """Every passage's score, float32 (passages,); 0 where none of the words is."""
        return self._postings.scores(query.terms, query.weights, self._norms)

    def most(self, query: Query) -> float:
        """What a passage with all of the query's words could score: BM25's values are below 1, others have a largest one."""
        if self._norms is not None:
            return float(query.weights.sum(dtype=np.float64))
        largest = (self._postings.largest_value(term) for term in query.terms.tolist())
        return sum((weight * value for weight, value in zip(query.weights.tolist(), largest, strict=True)), 0.0)

    def matches(self, query: Query, pid: int) -> list[tuple[int, float]]:
        """Which of the query's terms a passage has, and what each adds to its score, most first."""
        found = list[tuple[int, float]]()
        for term, weight in zip(query.terms.tolist(), query.weights.tolist(), strict=True):
            value = self._postings.value(term, pid)
            if value:
                norm = None if self._norms is None else float(self._norms[pid])
                found.append((term, weight * (value if norm is None else value / (value + norm))))
        return sorted(found, key=lambda pair: -pair[1])

    def word(self, term: int) -> str | None:
        """BM25's word of a term; None: the tokenizer knows it."""
        return None if self._words is None else self._words[term]
