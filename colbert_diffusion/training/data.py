"""Training examples, streamed from files: Tevatron, plain pairs, ColBERT's triples. Knows nothing about models.

Lines are read and shuffled as bytes and parsed when they are drawn: a buffer of them is small, skipping is fast, and
a fault in a line is raised when it is reached, with its file and number.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..common.checks import is_number
from ..common.errors import UserError
from ..common.files import parse_json
from ..texts.alike import Quoted
from ..texts.collection import read_collection, read_queries
from ..texts.lines import Line, decode, raw_lines, text_lines


@dataclass(frozen=True)
class Example:
    """A query with its passages, the positive first, then hard negatives; perhaps a teacher's score for each."""

    query: str
    passages: tuple[str, ...]
    scores: tuple[float, ...] | None = None


class Source(Protocol):
    """A file of examples. Iterating it again reads it again."""

    def __iter__(self) -> Iterator[Example]: ...

    def lines(self) -> Iterator[Line]: ...

    def parse(self, line: Line) -> Example: ...


Parse = Callable[[str], Example]  # one line -> its example; raises UserError with the reason alone

GLANCE = 10_000  # lines of a table that are looked at before it is used
_NUMBERS = re.compile(r"[0-9]+(\t[0-9]+)+")
_HEADING = re.compile(r"(query|question|anchor|positive|negative(_[0-9]+)?|pos|neg|passage|text|sentence[0-9]?)", re.IGNORECASE)


def read_source(
    path: str | Path,
    *,
    queries: str | Path | None = None,
    collection: str | Path | None = None,
    negatives: int | None = None,
) -> Source:
    """Open a file of examples. Its first line tells the kind; every file may be gzipped.

    - Tevatron: JSON objects `{"query", "positive_passages": [{"title", "text"}, ...], "negative_passages": [...]}`.
      A passage is `title text`; of several positives the first is taken and the others are left out.
    - pairs: JSON objects with `query` (or `anchor`), `positive` (or FlagEmbedding's `pos`), and perhaps `negatives`,
      `negative` (or `neg`), `negative_1`, `negative_2`, ..., each a text or a list of them, and `scores` (a list, one per
      passage). Of several positives the first is taken.
    - pairs and triples of texts: `query <tab> positive`, further columns are negatives; perhaps a line of headings.
    - MS MARCO's triples of ids: `qid <tab> pid <tab> pid`, numbers alone.
    - ColBERT's triples of ids: JSON lists `[qid, pid, pid, ...]` or, with a teacher's scores,
      `[qid, [pid, score], [pid, score], ...]` (colbert/data/examples.py:29, training/lazy_batcher.py:55). The first
      passage is the positive (training/training.py:77 and :119), whatever its score: the order is the file's.

    A negative with the positive's own text, as MS MARCO's repeated passages give, is left out.

    Args:
        queries: for triples of ids, as `collection.read_queries`.
        collection: for triples of ids, as `collection.read_collection`; passages are read when they are needed.
        negatives: keep at most this many per example, the first ones; None keeps all.

    Raises:
        UserError: no such file, an empty one, ids without `queries` and `collection`, or these without ids. While
            iterating: a malformed line, by file and number, or a damaged gzip file.
    """
    path = Path(path)
    kind = _kind(path)
    if kind in _TEXTS:
        if queries is not None or collection is not None:
            raise UserError(f"{path} holds texts, not ids: leave queries and collection out")
        return _File(path, _TEXTS[kind], negatives, kind == "columns" and _begins_with_headings(path))
    if queries is None or collection is None:
        raise UserError(f"{path} holds ids: give the queries (qid <tab> query) and the collection (pid <tab> text)")
    return _File(path, _Triples(read_queries(queries), read_collection(collection)), negatives)


@dataclass(frozen=True)
class _File:
    """The one kind of source: a path and what its lines mean."""

    path: Path
    meaning: Parse
    negatives: int | None
    headed: bool = False  # its first line names the columns

    def __iter__(self) -> Iterator[Example]:
        return map(self.parse, self.lines())

    def lines(self) -> Iterator[Line]:
        return itertools.islice(raw_lines(self.path), int(self.headed), None)

    def parse(self, line: Line) -> Example:
        try:
            example = self.meaning(decode(line.number, line.raw))
            _check(example)
        except UserError as error:
            raise UserError(f"{self.path}, line {line.number}: {error}") from error
        positive, most = example.passages[0], None if self.negatives is None else self.negatives + 1
        kept = [place for place, text in enumerate(example.passages) if place == 0 or text != positive][:most]
        if len(kept) == len(example.passages):
            return example
        scores = example.scores and tuple(example.scores[place] for place in kept)
        return replace(example, passages=tuple(example.passages[place] for place in kept), scores=scores)


def _check(example: Example) -> None:
    if not all(isinstance(text, str) for text in (example.query, *example.passages)):
        raise UserError("a query or passage is no string")
    if not example.query.strip() or not example.passages[0].strip():
        raise UserError(f"the {'positive' if example.query.strip() else 'query'} is empty; remove the line")
    if not all(text.strip() for text in example.passages):
        raise UserError("a negative is empty (a trailing tab, or two in a row?); remove it")
    if example.scores is None:
        return
    if len(example.scores) != len(example.passages):
        raise UserError(f"{len(example.scores)} scores for {len(example.passages)} passages; give one for each")
    if not all(is_number(score) for score in example.scores):
        raise UserError("a score is no finite number")


def _kind(path: Path) -> str:
    """What a file's lines are, by its first: "ids", "objects" or "columns"."""
    for number, line in text_lines(path):
        if _NUMBERS.fullmatch(line):
            return "ids"
        if not line.lstrip().startswith("["):
            return "objects" if line.lstrip().startswith("{") else "columns"
        try:
            parse_json(line)
        except ValueError as error:
            remedy = "; a JSON array over many lines? Write one record in each (jq -c '.[]')"
            raise UserError(f"{path}, line {number}: not JSON ({error}){remedy}") from error
        return "ids"
    raise UserError(f"{path} has no examples")


def _begins_with_headings(path: Path) -> bool:
    """Also looks whether a table's texts were quoted by another program, as far as a glance tells."""
    quoted, headed = Quoted(), False
    for number, raw, _ in itertools.islice(raw_lines(path), GLANCE):
        columns = raw.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        headed = headed or (number == 1 and len(columns) > 1 and all(_HEADING.fullmatch(column) for column in columns))
        quoted.see(number, columns)
    quoted.finish(path)
    return headed


def _parse_columns(line: str) -> Example:
    query, *passages = line.split("\t")
    if not passages:
        raise UserError(f"{'only one column' if line.strip() else 'an empty line'}, expected query <tab> passage")
    return Example(query, tuple(passages))


def _parse_object(line: str) -> Example:
    record = _json(line)
    if not isinstance(record, dict):
        raise UserError(f"a JSON {type(record).__name__}, expected an object as on line 1")
    query = record.get("query", record.get("anchor"))
    if not isinstance(query, str):
        raise UserError('no string under "query" (or "anchor")')
    if "positive_passages" in record:
        positives = _list(record, "positive_passages")
        if not positives:
            raise UserError('"positive_passages" is empty; remove the line')
        texts = [_titled(passage) for passage in (positives[0], *_list(record, "negative_passages"))]
        return Example(query, tuple(texts))
    positives = [text for name in ("positive", "pos") for text in _texts(record, name)]
    if not positives:
        raise UserError('no text under "positive" (nor a list under "positive_passages")')
    numbered = sorted((int(name[9:]), name) for name in record if re.fullmatch(r"negative_[0-9]{1,9}", name))
    names = ("negatives", "negative", "neg", *(name for _, name in numbered))
    scores = tuple(_list(record, "scores")) if record.get("scores") is not None else None
    return Example(query, (positives[0], *(text for name in names for text in _texts(record, name))), scores)


def _texts(record: Mapping[str, Any], name: str) -> list[Any]:
    """A text, or a list of them."""
    return [record[name]] if isinstance(record.get(name), str) else _list(record, name)


_TEXTS: Mapping[str, Parse] = {"objects": _parse_object, "columns": _parse_columns}


def _list(record: Mapping[str, Any], name: str) -> list[Any]:
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f'"{name}" is a JSON {type(value).__name__}, expected a list')
    return value


def _titled(passage: Any) -> str:
    text = passage.get("text") if isinstance(passage, dict) else None
    title = (passage.get("title") or "") if isinstance(passage, dict) else ""
    if not isinstance(text, str) or not isinstance(title, str):
        raise UserError('a passage without a string under "text"')
    return f"{title} {text}" if title else text


@dataclass(frozen=True)
class _Triples:
    """What a line of ids means."""

    queries: Mapping[str, str]
    passages: Sequence[str]

    def __call__(self, line: str) -> Example:
        record = line.split("\t") if _NUMBERS.fullmatch(line) else _json(line)
        if not isinstance(record, list) or len(record) < 2:
            raise UserError("expected a list [qid, pid, ...] with at least one passage")
        qid, *entries = record
        if str(qid) not in self.queries:
            raise UserError(f"qid {qid!s:.40} is not among the {len(self.queries):,} queries")
        if not isinstance(entries[0], list):
            return Example(self.queries[str(qid)], tuple(map(self._passage, entries)))
        if not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
            scored = sum(isinstance(entry, list) and len(entry) == 2 for entry in entries)
            raise UserError(f"{scored} scores for {len(entries)} passages; give [pid, score] for each")
        pids, scores = zip(*entries, strict=True)
        return Example(self.queries[str(qid)], tuple(map(self._passage, pids)), scores)

    def _passage(self, given: Any) -> str:
        pid = int(given) if isinstance(given, str) and re.fullmatch("[0-9]{1,18}", given) else given
        if not is_number(pid, 0, len(self.passages) - 1, whole=True):
            raise UserError(f"pid {given!r:.40} is not in the collection, which has pids 0..{len(self.passages) - 1}")
        text: str = self.passages[pid]
        return text


class Stream:
    """Examples for training without end: epoch after epoch over all sources, each epoch in another order.

    Sources are read side by side so that all end together: the next line is of the one of whose bytes the smallest
    share has been read. A buffer of lines shuffles them: an example moves some `buffer` places, so a file that is
    sorted by topic should be shuffled beforehand. Equal arguments and files give equal streams; the global random
    states stay untouched.

    Args:
        buffer: lines held in memory; each is about as large as in its file.
    """

    def __init__(self, sources: Sequence[Source], *, seed: int, buffer: int = 16384) -> None:
        if not sources or buffer < 1:
            raise UserError(f"{len(sources)} sources and a buffer of {buffer}: a stream needs at least one of each")
        self.sources = tuple(sources)
        self.seed = seed
        self.buffer = buffer

    def __iter__(self) -> Iterator[Example]:
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[Example]:
        """The stream from its example `start`, from 0, on. What comes before it is read, but not parsed.

        Raises:
            UserError: as `read_source` says, when a bad line is reached.
        """
        drawn = itertools.chain.from_iterable(self._epoch(epoch) for epoch in itertools.count())
        for source, line in itertools.islice(drawn, start, None):
            yield source.parse(line)

    def _epoch(self, epoch: int) -> Iterator[tuple[Source, Line]]:
        """Every line once."""
        generator = random.Random(f"{self.seed} {epoch}")
        held: list[tuple[Source, Line]] = []
        for drawn in self._interleaved():
            if len(held) < self.buffer:
                held.append(drawn)
                continue
            place = generator.randrange(len(held))
            yield held[place]
            held[place] = drawn
        if not held:
            raise UserError("the sources have no examples left; were their files changed?")
        generator.shuffle(held)
        yield from held

    def _interleaved(self) -> Iterator[tuple[Source, Line]]:
        reading = {place: source.lines() for place, source in enumerate(self.sources)}
        progress = {place: (0.0, 0, place) for place in reading}  # share, lines: small gzip files are read at one stroke
        while reading:
            _, taken, place = min(progress.values())
            line = next(reading[place], None)
            if line is None:
                del reading[place], progress[place]
                continue
            progress[place] = (line.share, taken + 1, place)
            yield self.sources[place], line


def _json(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise UserError(f"{f'not JSON ({error})' if line.strip() else 'an empty line'}; every line is of one kind") from error


def data_hash(path: str | Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file's bytes, for provenance."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_exclusions(path: str | Path) -> set[str]:
    """Hashes of texts that may not be trained on, one per line, as `is_excluded` computes them.

    Raises:
        UserError: a line that is not 16 hex digits.
    """
    hashes = set()
    for number, line in text_lines(Path(path)):
        text = line.strip()
        if not re.fullmatch("[0-9a-f]{16}", text):
            raise UserError(f"{path}, line {number}: {text!r:.40} is not 16 hex digits")
        hashes.add(text)
    return hashes


def is_excluded(text: str, exclusions: set[str]) -> bool:
    """Whether `exclusions` has the text: the first 16 hex digits of the SHA-256 of its normalised first 80 characters.

    Normalised: lower case, every run of anything but a-z0-9 one space, none at the ends. Texts of which fewer than 20
    characters are left say too little and are never excluded.
    """
    prefix = re.sub("[^a-z0-9]+", " ", text.lower()).strip()[:80]
    return len(prefix) >= 20 and hashlib.sha256(prefix.encode()).hexdigest()[:16] in exclusions
