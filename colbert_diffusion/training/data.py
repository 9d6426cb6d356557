"""Training examples, streamed from files: Tevatron, plain pairs, ColBERT's triples. Knows nothing about models.

Lines are read and shuffled as bytes and parsed when they are drawn: a buffer of them is small, skipping is fast, and
a fault in a line is raised when it is reached, with its file and number.
"""

import gzip
import hashlib
import itertools
import json
import os
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..checks import is_number
from ..collection import read_collection
from ..errors import UserError


@dataclass(frozen=True)
class Example:
    """A query with its passages, the positive first, then hard negatives; perhaps a teacher's score for each."""

    query: str
    passages: tuple[str, ...]
    scores: tuple[float, ...] | None = None


class Line(NamedTuple):
    number: int  # from 1
    raw: bytes
    share: float  # of the file read so far, 0 to 1


class Source(Protocol):
    """A file of examples. Iterating it again reads it again."""

    def __iter__(self) -> Iterator[Example]: ...

    def lines(self) -> Iterator[Line]: ...

    def parse(self, line: Line) -> Example: ...


Parse = Callable[[str], Example]  # one line -> its example; raises UserError with the reason alone


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
    - pairs: JSON objects with `query` (or `anchor`), `positive`, and perhaps `negatives` (a list), `negative`,
      `negative_1`, `negative_2`, ... and `scores` (a list, one per passage).
    - pairs and triples of texts: `query <tab> positive`, further columns are negatives.
    - ColBERT's triples of ids: JSON lists `[qid, pid, pid, ...]` or, with a teacher's scores,
      `[qid, [pid, score], [pid, score], ...]` (colbert/data/examples.py:29, training/lazy_batcher.py:55). The first
      passage is the positive (training/training.py:77 and :119), whatever its score: the order is the file's.

    Args:
        queries: for triples of ids, a TSV `qid <tab> query`.
        collection: for triples of ids, as `collection.read_collection`; passages are read when they are needed.
        negatives: keep at most this many per example, the first ones; None keeps all.

    Raises:
        UserError: no such file, an empty one, ids without `queries` and `collection`, or these without ids. While
            iterating: a malformed line, by file and number, or a damaged gzip file.
    """
    path = Path(path)
    first = next(_lines(path), None)
    if first is None:
        raise UserError(f"{path} has no examples")
    if not first.raw.lstrip().startswith(b"["):
        if queries is not None or collection is not None:
            raise UserError(f"{path} holds texts, not ids: leave queries and collection out")
        return _File(path, _parse_object if first.raw.lstrip().startswith(b"{") else _parse_columns, negatives)
    if queries is None or collection is None:
        raise UserError(f"{path} holds ids: give the queries (qid <tab> query) and the collection (pid <tab> text)")
    return _File(path, _Triples(_read_queries(Path(queries)), read_collection(collection)), negatives)


@dataclass(frozen=True)
class _File:
    """The one kind of source: a path and what its lines mean."""

    path: Path
    meaning: Parse
    negatives: int | None

    def __iter__(self) -> Iterator[Example]:
        return map(self.parse, self.lines())

    def lines(self) -> Iterator[Line]:
        return _lines(self.path)

    def parse(self, line: Line) -> Example:
        try:
            example = self.meaning(_decode(line.raw))
            _check(example)
        except UserError as error:
            raise UserError(f"{self.path}, line {line.number}: {error}") from error
        if self.negatives is None:
            return example
        kept = self.negatives + 1
        return replace(example, passages=example.passages[:kept], scores=example.scores and example.scores[:kept])


def _check(example: Example) -> None:
    if not all(isinstance(text, str) for text in (example.query, *example.passages)):
        raise UserError("a query or passage is no string")
    if not example.query.strip() or not example.passages[0].strip():
        raise UserError(f"the {'positive' if example.query.strip() else 'query'} is empty; remove the line")
    if example.scores is None:
        return
    if len(example.scores) != len(example.passages):
        raise UserError(f"{len(example.scores)} scores for {len(example.passages)} passages; give one for each")
    if not all(is_number(score) for score in example.scores):
        raise UserError("a score is no finite number")


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
    if not isinstance(record.get("positive"), str):
        raise UserError('no string under "positive" (nor a list under "positive_passages")')
    numbered = sorted((int(name[9:]), name) for name in record if re.fullmatch(r"negative_[0-9]{1,9}", name))
    single = [record[name] for name in ("negative", *(name for _, name in numbered)) if name in record]
    scores = tuple(_list(record, "scores")) if record.get("scores") is not None else None
    return Example(query, (record["positive"], *_list(record, "negatives"), *single), scores)


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
        record = _json(line)
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

    def _passage(self, pid: Any) -> str:
        if not is_number(pid, 0, len(self.passages) - 1, whole=True):
            raise UserError(f"pid {pid!r:.40} is not in the collection, which has pids 0..{len(self.passages) - 1}")
        return self.passages[pid]


def _read_queries(path: Path) -> dict[str, str]:
    """Queries by id; only the first two columns count, as for ColBERT (evaluation/loaders.py:22)."""
    queries: dict[str, str] = {}
    for line in _lines(path):
        try:
            qid, tab, rest = _decode(line.raw).partition("\t")
            if not tab or qid in queries:
                raise UserError(f"query id {qid:.40} occurs twice" if tab else "expected qid <tab> query")
        except UserError as error:
            raise UserError(f"{path}, line {line.number}: {error}") from error
        queries[qid] = rest.partition("\t")[0]
    return queries


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


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a file, gzipped or not, with their ends."""
    number = 0
    zipped = _is_gzip(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            for number, raw in enumerate(gzip.GzipFile(fileobj=file) if zipped else file, 1):
                yield Line(number, raw, file.tell() / size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged behind line {number} ({error}); fetch or write it again") from error


def _is_gzip(path: Path) -> bool:
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file")
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error.reason}); convert it, e.g. with iconv") from error


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg}); every line is of one kind") from error


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
    for line in _lines(Path(path)):
        text = _decode(line.raw).strip()
        if not re.fullmatch("[0-9a-f]{16}", text):
            raise UserError(f"{path}, line {line.number}: {text!r:.40} is not 16 hex digits")
        hashes.add(text)
    return hashes


def is_excluded(text: str, exclusions: set[str]) -> bool:
    """Whether `exclusions` has the text: the first 16 hex digits of the SHA-256 of its normalised first 80 characters.

    Normalised: lower case, every run of anything but a-z0-9 one space, none at the ends. Texts of which fewer than 20
    characters are left say too little and are never excluded.
    """
    prefix = re.sub("[^a-z0-9]+", " ", text.lower()).strip()[:80]
    return len(prefix) >= 20 and hashlib.sha256(prefix.encode()).hexdigest()[:16] in exclusions
