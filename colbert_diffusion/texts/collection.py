"""Reading collections and queries: ColBERT's TSV, JSONL, BEIR folders. Knows nothing about models.

Every fault is one line with file and line number, raised before any work is done on the texts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

from ..common.errors import UserError
from ..common.fingerprint import of_texts
from .alike import Alike
from .entries import HEADINGS, Entry, Parse, parse_json, parse_json_query, parse_tsv, parse_tsv_passage, parse_tsv_query, unseen
from .lines import BOM, PACKED, LineFile, decode, found, raw_lines, unpacked
from .lookup import Lookup

COLLECTION_FILE = "collection.tsv"  # in an index: the copy of a collection that is no TSV of its own


class Skipped(NamedTuple):
    """A line that could not be read: its number from 1, why, and its bytes."""

    line: int
    reason: str
    raw: bytes


class Passages(Sequence[str]):
    """A collection on disk, by pid: each passage is read when it is asked for. A copy of it is itself, pickled it is a path.

    Every line is checked when the file is opened for the first time; the file stays open; see `LineFile`.

    Args:
        sha256: of the file, where an index's manifest has it.

    Raises:
        UserError: a malformed line, by file and number, or no passages.
    """

    def __init__(self, path: Path, sha256: str | None = None, lines: LineFile | None = None) -> None:
        self.path = path
        self._parse: Parse = parse_tsv_passage if path.suffix == ".tsv" else parse_json
        check = None if sha256 is not None else _Check(path, self._parse)  # an index's own was written as it is read
        self._lines = lines or LineFile(path, check, sha256)
        if not len(self._lines):
            raise UserError(f"{path} has no passages")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._lines.size

    @property
    def sha256(self) -> str:
        """Of the file; kept with large ones, else read now."""
        return self._lines.sha256

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._entry(index % len(self) if -len(self) <= index < len(self) else index).text

    def _entry(self, pid: int) -> Entry:
        return self._parse(pid + 1, decode(pid + 1, self._lines[pid]))

    def __iter__(self) -> Iterator[str]:
        return (entry.text for entry in self._entries())

    def key(self, pid: int) -> str:
        """A passage's id in the file."""
        return self._entry(pid).key

    def keys(self) -> Iterator[str]:
        """The ids in the file, in the pids' order."""
        return (entry.key for entry in self._entries())

    def _entries(self) -> Iterator[Entry]:
        return (self._parse(number, decode(number, line)) for number, line in enumerate(self._lines, 1))

    def __reduce__(self) -> tuple[Any, ...]:
        return Passages, (self.path, None, self._lines)

    def __deepcopy__(self, memo: object) -> "Passages":
        return self

    @cached_property
    def fingerprint(self) -> str:
        return of_texts(self)


class Documents(Mapping[str, str]):
    """A collection by the ids in its file; in memory are 16 bytes a passage.

    Raises:
        UserError: an id occurs twice.
    """

    def __init__(self, passages: Passages) -> None:
        self.texts = passages
        self.ids = _Keys(passages)
        self._lookup = Lookup(passages.keys(), len(passages), passages.key)
        if self._lookup.repeats():
            raise UserError(f"{passages.path}: an id occurs twice")

    def __getitem__(self, key: str) -> str:
        place = self._lookup.find(key)
        if place is None:
            raise KeyError(key)
        return self.texts[place]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._lookup.find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return self.texts.keys()

    def __len__(self) -> int:
        return len(self.texts)


class _Keys(Sequence[str]):
    """The ids of passages, by pid. An id is read from the file and parsed once, however many queries find its passage."""

    def __init__(self, passages: Passages) -> None:
        self._passages = passages
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._passages)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._passages.key(pid) for pid in range(*index.indices(len(self)))]
        known = self._known.get(index)
        if known is None:
            known = self._known[index] = self._passages.key(index)
        return known

    def __iter__(self) -> Iterator[str]:
        return self._passages.keys()


class Held(list[str]):
    """Passages in memory. A copy of it is itself: ColBERT copies its config, the collection included."""

    def __deepcopy__(self, memo: object) -> "Held":
        return self

    @cached_property
    def fingerprint(self) -> str:
        return of_texts(self)


def as_texts(texts: Any, kind: str = "passages") -> Sequence[str]:
    """Texts in memory or on disk, from whatever holds them in an order: list, tuple, array, Series, column, generator.

    The same for indexing, updating, encoding and reranking. A `Passages` or `Held` stays what it is.

    Raises:
        UserError: one text, a mapping or table (whose iteration gives keys or column names), a set, or an item that is no
            text.
    """
    if isinstance(texts, Passages | Held):
        return texts
    name = type(texts).__name__
    if isinstance(texts, str | bytes):
        raise UserError(
            f"{kind}: expected a list of texts, not one {'string' if isinstance(texts, str) else name}; pass [text]"
        )
    if isinstance(texts, Mapping):
        raise UserError(f"{kind}: a {name} of ids to texts; pass list(x.values()), and keep list(x) for the ids")
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise UserError(f'{kind}: a {name} of columns; pass its column of texts, as x["text"]')
    if isinstance(texts, set | frozenset):
        raise UserError(f"{kind}: a {name}, which has no order; pass sorted(x)")
    try:
        held = Held(texts)
    except TypeError as error:
        raise UserError(f"{kind}: a {name}, expected a list of texts") from error
    for position, text in enumerate(held):
        if not isinstance(text, str):
            one = {"queries": "query"}.get(kind, kind.removesuffix("s"))
            raise UserError(f"{one} {position} is {text!r:.40} of type {type(text).__name__}, expected a string")
    return held


def collection_fingerprint(texts: Sequence[str]) -> str:
    """The hash of the texts in their order; a collection is hashed once."""
    return texts.fingerprint if isinstance(texts, Passages | Held) else of_texts(texts)


class _Check:
    """Says what is wrong with a file's lines, seen one after another, with the file's name."""

    def __init__(self, path: Path, parse: Parse) -> None:
        self.path = path
        self.parse = parse
        self._alike = Alike(path)

    def __call__(self, number: int, raw: bytes) -> None:
        try:
            if number == 1 and raw.startswith(BOM) and self.path.suffix == ".tsv":
                raise UserError("starts with a byte order mark, which ColBERT's reader cannot pass; remove it (tail -c +4)")
            line = decode(number, raw)
            self._alike.see(number, line, self.parse(number, line).has_id)
        except UserError as error:
            raise UserError(f"{self.path}, line {number}: {error}") from error

    def finish(self) -> None:
        self._alike.finish()


def read_collection(path: str | Path, skipped: list[Skipped] | None = None) -> Sequence[str]:
    """Passages by pid (their position), read from the file when they are asked for; .gz and .zst are unpacked beside it.

    A `.tsv` has `pid <tab> text [<tab> title]` with pids 0, 1, 2, ... and gives `title | text`, as ColBERT reads it
    (evaluation/loaders.py:161); a `.jsonl`, or a BEIR folder's `corpus.jsonl`, has objects with `text` (or
    `contents`) and perhaps `title`, and gives `title text`, as BEIR does.

    Args:
        skipped: where given, bad lines are collected there instead of raised, pids count the lines that are left, and
            all passages are held in memory.

    Raises:
        UserError: unknown kind of file, a malformed line, or no passages.
    """
    path = _find(Path(path), "corpus.jsonl")
    if skipped is None:
        return Passages(path)
    parse: Parse = unseen(set()) if path.suffix == ".tsv" else parse_json
    texts = [entry.text for entry in _entries(path, parse, skipped)]
    if not texts:
        raise UserError(f"{path} has no passages")
    return texts


def read_queries(path: str | Path) -> dict[str, str]:
    """Queries by id: `.tsv` with `qid <tab> text`, `.jsonl` with `_id` and `text`, or a BEIR folder.

    Raises:
        UserError: as `read_collection`, or an id that occurs twice.
    """
    path = _find(Path(path), "queries.jsonl")
    return _by_id(path, "query", "queries", parse_tsv_query if path.suffix == ".tsv" else parse_json_query)


def read_documents(path: str | Path) -> Mapping[str, str]:
    """Passages by the id in the file, in file order; texts as `read_collection` gives them, ids any that are unique.

    Read from the file when they are asked for; those of a `.tsv` whose ids do not count its lines are held in memory.

    Raises:
        UserError: as `read_collection`, or an id that occurs twice.
    """
    path = _find(Path(path), "corpus.jsonl")
    try:
        return Documents(Passages(path))
    except UserError:  # which is raised again, by line, where it is more than such ids
        return _by_id(path, "document", "passages", parse_tsv if path.suffix == ".tsv" else parse_json)


def _by_id(path: Path, kind: str, plural: str, parse: Parse) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, (key, text, _) in enumerate(_entries(path, parse), 1):
        if number == 1 and {key, text} <= HEADINGS:
            continue
        if key in texts:
            raise UserError(f"{path}, line {number}: {kind} id {key} occurs twice; make the ids unique")
        texts[key] = text
    if not texts:
        raise UserError(f"{path} has no {plural}")
    return texts


def _find(path: Path, in_folder: str) -> Path:
    """The file to read, unpacked."""
    if path.is_dir():
        path = found(path / in_folder)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .tsv, a .jsonl or a BEIR folder (with {in_folder})")
    inner = path.with_suffix("") if path.suffix in PACKED else path
    if inner.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"{path}: unknown kind of file; give a .tsv or .jsonl (.gz, .zst), or a BEIR folder")
    return unpacked(path)


def _entries(path: Path, parse: Parse, skipped: list[Skipped] | None = None) -> Iterator[Entry]:
    """Each line's entry; lines end at newlines only and are strictly UTF-8."""
    alike = Alike(path)
    for number, raw, _ in raw_lines(path):
        try:
            line = decode(number, raw)
            entry = parse(number, line)
            alike.see(number, line, entry.has_id)
            yield entry
        except UserError as error:
            if skipped is None:
                raise UserError(f"{path}, line {number}: {error}") from error
            skipped.append(Skipped(number, str(error), raw))
    alike.finish()


def write_tsv(path: Path, texts: Iterable[str]) -> None:
    """Write a collection that ColBERT's own reader opens; tabs and line breaks inside a text become spaces."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for pid, text in enumerate(texts):
            file.write(f"{pid}\t{_one_line(text)}\n")


def _one_line(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").translate(_BREAKS)


_BREAKS = str.maketrans("\t\n\r", "   ")
