"""Queries in all forms that ColBERT's searcher takes, and files of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colbert.data import Queries

from ..texts.collection import as_texts, read_queries


def as_queries(queries: Any) -> Any:
    """ColBERT's Queries, by its own reader where that reads them: ids are numbers then (evaluation/loaders.py:22)."""
    if isinstance(queries, Queries):
        return queries
    if isinstance(queries, str | Path):
        path = str(queries)
        try:
            return Queries(path=path)
        except (ValueError, AssertionError, OSError):
            read = Queries(data=read_queries(path))
        read.path = path
        return read
    if isinstance(queries, Mapping):
        return Queries(data=dict(queries))
    return Queries(data=dict(enumerate(as_texts(queries, "queries"))))
