"""BM25 by bm25s: the lexical baseline."""

from collections.abc import Sequence

import numpy as np

from ..common.optional import extra, need
from ..common.progress import note, progress_bar
from .benchmarks import Benchmark
from .runs import Run, best

K1, B = 0.9, 0.4  # Anserini's, the literature's baseline
WORD = r"\w+"  # single letters count: "C" is a language; no stop words are left out
SLICE = 10_000  # texts tokenised at a time


def bm25_run(benchmark: Benchmark, depth: int = 1000) -> Run:
    """Lucene's BM25 (k1 .9, b .4) over lower-cased words, stemmed with Snowball's English stemmer.

    A document that shares no word with the query is not found.

    Raises:
        MissingPackageError: bm25s or PyStemmer is not installed.
    """
    bm25s = need("bm25s", "BM25", extra("evaluate"))
    stemmer = need("Stemmer", "BM25", extra("evaluate")).Stemmer("english")
    settings = {"token_pattern": WORD, "stopwords": [], "stemmer": stemmer, "return_ids": False, "show_progress": False}

    def tokens(texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = []
        with progress_bar(len(texts), "tokenize") as progress:
            for start in range(0, len(texts), SLICE):
                found += bm25s.tokenize(texts[start : start + SLICE], **settings)
                progress.update(len(found) - start)
        return found

    words_of = tokens(benchmark.texts)
    note(f"{len(words_of):,} passages: indexing with bm25s")
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.index(words_of, show_progress=False)
    run: Run = {}
    ids = benchmark.document_ids
    with progress_bar(len(benchmark.queries), "bm25") as progress:
        for qid, words in zip(benchmark.queries, tokens(list(benchmark.queries.values())), strict=True):
            scores = index.get_scores(words) if words else np.zeros(len(ids), np.float32)
            run[qid] = [(document, score) for document, score in best(scores, ids, depth) if score > 0]
            progress.update(1)
    return run
