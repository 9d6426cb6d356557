"""One line of a file of texts -> its id and its text. Knows no files: reasons are given without a place."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..common import files
from ..common.errors import UserError

TEXT_NAMES = ("text", "contents", "body", "passage")  # of BEIR, Pyserini, Elasticsearch and MS MARCO's second version
QUERY_NAMES = ("text", "query", "question")  # of BEIR, Tevatron and LoTTE
ID_NAMES = ("_id", "id", "pid", "docid", "doc_id", "docno", "qid", "query_id")  # a passage's before its document's
HEADINGS = frozenset({*TEXT_NAMES, *QUERY_NAMES, *ID_NAMES, "title"})  # of a header line's columns


class Entry(NamedTuple):
    key: str
    text: str
    has_id: bool = True  # its own, not its place in the file


Parse = Callable[[int, str], Entry]  # (line number from 1, line) -> entry; raises UserError with the reason alone


def parse_tsv(number: int, line: str) -> Entry:
    """`id <tab> text`, perhaps with a title behind it, which ColBERT puts before the text (evaluation/loaders.py:161)."""
    if "\r" in line:
        raise UserError("a bare carriage return; ColBERT would split the line there: remove it")
    key, tab, rest = line.strip(" ").partition("\t")
    if not tab:
        raise UserError(f"{'only one column' if line.strip() else 'an empty line'}, expected id <tab> text")
    text, *titles = rest.split("\t")
    if len(titles) > 1:
        raise UserError(
            f"{len(titles) + 2} columns, expected id <tab> text, perhaps <tab> title; remove the others (cut -f 1-3)"
        )
    if titles and not titles[0]:
        raise UserError("a trailing tab: ColBERT would read an empty title behind it; remove it")
    return Entry(key, f"{titles[0]} | {text}" if titles else text)


def parse_tsv_query(number: int, line: str) -> Entry:
    """A third column of queries is an answer, a language or a date as often as anything: never part of the question."""
    if line.count("\t") > 1:
        raise UserError(f"{line.count(chr(9)) + 1} columns, expected two: id <tab> query; remove the others (cut -f 1,2)")
    return parse_tsv(number, line)


def parse_json_query(number: int, line: str) -> Entry:
    """A query's title is a narrative or a topic's name: BEIR does not ask it either."""
    return parse_json(number, line, QUERY_NAMES, titled=False)


def parse_tsv_passage(number: int, line: str) -> Entry:
    """As ColBERT asks for passages: the id is the line's number from 0."""
    entry = parse_tsv(number, line)
    if entry.key != str(number - 1):
        raise UserError(
            f"pid {entry.key!r:.40}, expected {number - 1}: pids count the lines from 0, without gaps, repeats or a header"
        )
    return entry


def unseen(seen: set[str]) -> Parse:
    """A parser for collections with bad lines: any pid that is a number and new."""

    def parse(number: int, line: str) -> Entry:
        entry = parse_tsv(number, line)
        if not entry.key.isdigit() or entry.key in seen:
            raise UserError(f"pid {entry.key!r:.40} is {'repeated' if entry.key in seen else 'no number'}")
        seen.add(entry.key)
        return entry

    return parse


def parse_json(number: int, line: str, names: tuple[str, ...] = TEXT_NAMES, *, titled: bool = True) -> Entry:
    """An object with a string under the first of `names` that it has, perhaps a title and an id."""
    try:
        entry: Any = files.parse_json(line)
    except ValueError as error:
        raise UserError(f"{f'not JSON ({error})' if line.strip() else 'an empty line'}; every line holds one object") from error
    text = next((entry[name] for name in names if name in entry), None) if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise UserError(f'no string under "{names[0]}" (or {" or ".join(names[1:])})')
    title = entry.get("title") if titled else None
    if title is not None and not isinstance(title, str):
        raise UserError(f'"title" is {title!r:.40}, expected a string')
    identifier = _json_id(entry)
    text = f"{title} {text}" if title else text
    return Entry(str(number - 1), text, False) if identifier is None else Entry(identifier, text)


def _json_id(entry: Mapping[str, Any]) -> str | None:
    """The id under the first of the usual names; None where there is none."""
    for name in ID_NAMES:
        if name in entry:
            identifier = entry[name]
            if isinstance(identifier, bool) or not isinstance(identifier, str | int):
                raise UserError(f'"{name}" is {identifier!r:.40}, expected a string or a whole number')
            return str(identifier)
    return None
