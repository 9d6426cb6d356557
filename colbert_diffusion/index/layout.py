"""Every file of an index's folder, as data: what it is, who writes it, what an update does with it.

What is an index's own, what a rebuild replaces and an update links, what the manifest records: all of it derives from `KINDS`.
To add a file, add its kind here and write it in `Indexer` or `IndexUpdater`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ..texts.collection import COLLECTION_FILE
from ..texts.ids import IDS_FILE
from ..texts.lines import keep
from .lexical import LEXICAL_FILE, POSTINGS_FILE, WORDS_FILE
from .manifest import MANIFEST_FILE

REMOVED_FILE = "deleted.json"
METADATA_FILE = "passages.jsonl"
PLAN_FILES = ("metadata.json", "plan.json")  # ColBERT's, with the index's config; the first is written last
OFFSETS = ".lines"  # beside a file of lines, where each begins (`lines.py`)


@dataclass(frozen=True)
class FileKind:
    """One kind of file.

    Args:
        name: with {} where a chunk's number stands.
        what: for people.
        by: who writes it first.
        update: what an update does: links it as it is ("kept"), writes it anew ("rewritten"), or links all but the last
            chunk's and writes those of new chunks ("per chunk").
        temporary: of a build; no part of a complete index.
        lines: a line for each passage, so that offsets may lie beside it.
    """

    name: str
    what: str
    by: Literal["colbert", "us"]
    update: Literal["kept", "rewritten", "per chunk"]
    temporary: bool = False
    lines: bool = False


KINDS = (
    FileKind("{}.codes.pt", "each vector's centroid", "colbert", "per chunk"),
    FileKind("{}.residuals.pt", "what each vector differs from its centroid by, in nbits a dimension", "colbert", "per chunk"),
    FileKind("{}.metadata.json", "a chunk's passages and vectors; written last of the chunk's files", "colbert", "per chunk"),
    FileKind("doclens.{}.json", "vectors of each passage", "colbert", "per chunk"),
    FileKind("centroids.pt", "the centroids; those that an update adds stand behind the others", "colbert", "kept"),
    FileKind("buckets.pt", "the residuals' cutoffs and weights", "colbert", "kept"),
    FileKind("avg_residual.pt", "the mean residual, which only the log shows", "colbert", "kept"),
    FileKind("ivf.pid.pt", "the passages at each centroid", "colbert", "rewritten"),
    FileKind("ivf.pt", "the vectors at each centroid, of older ColBERTs", "colbert", "rewritten"),
    FileKind("plan.json", "the config and the counts that a build began with", "colbert", "rewritten"),
    FileKind("metadata.json", "the config and the counts; that it is there says that ColBERT finished", "colbert", "rewritten"),
    FileKind("sample.{}.pt", "vectors on which k-means runs", "colbert", "rewritten", temporary=True),
    FileKind(COLLECTION_FILE, "the texts, where they are no .tsv of the user's", "us", "rewritten", lines=True),
    FileKind(METADATA_FILE, "one JSON object per passage", "us", "rewritten", lines=True),
    FileKind(IDS_FILE, "the passages' own ids", "us", "rewritten", lines=True),
    FileKind(REMOVED_FILE, "pids whose passages were removed; they keep their place in the other files", "us", "rewritten"),
    FileKind(LEXICAL_FILE, "which words the index has, BM25's or predicted ones, and how many", "us", "rewritten"),
    FileKind(POSTINGS_FILE, "the inverted index of the words: for each the passages that have it", "us", "rewritten"),
    FileKind(WORDS_FILE, "BM25's words, sorted", "us", "rewritten"),
    FileKind(MANIFEST_FILE, "what the index was made from, and every file's size and hash; written last", "us", "rewritten"),
)


def kind_of(name: str) -> FileKind | None:
    """What a file of this name is in an index; None: somebody's own."""
    for kind in KINDS:
        if _pattern(kind.name).fullmatch(name) or (kind.lines and name == kind.name + OFFSETS):
            return kind
    return None


def is_own(name: str) -> bool:
    """Whether a complete index may have a file of this name."""
    kind = kind_of(name)
    return kind is not None and not kind.temporary


def is_stock(name: str) -> bool:
    """Whether ColBERT's own indexer writes a file of this name."""
    kind = kind_of(name)
    return kind is not None and kind.by == "colbert"


def chunk_of(name: str) -> int | None:
    """The chunk that a file belongs to; None: the whole index."""
    kind = kind_of(name)
    if kind is None or kind.update != "per chunk":
        return None
    found = _pattern(kind.name).fullmatch(name)
    return None if found is None else int(found[1])


def keep_offsets(folder: Path) -> None:
    """Of an index's own files of lines, for good."""
    for kind in KINDS:
        if kind.lines and (folder / kind.name).is_file():
            keep(folder / kind.name)


@lru_cache(maxsize=256)
def stored_bytes(folder: Path) -> tuple[int, int]:
    """What grows with the passages: bytes of an index's codes and residuals, and of its words."""

    def of(*patterns: str) -> int:
        return sum(file.stat().st_size for pattern in patterns for file in folder.glob(pattern))

    return of("*.codes.pt", "*.residuals.pt"), of("lexical.*")


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"(\d{1,18})".join(map(re.escape, name.split("{}"))))
