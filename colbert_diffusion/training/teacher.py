"""What is distilled: a checkpoint's vectors, computed once per text and kept on disk for every later run, and words."""

import hashlib
import math
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import Side
from ..encoding.identity import CheckpointIdentity, identify
from ..encoding.scoring import Vectors
from ..evaluation.bm25 import K1, B
from ..index.lexical import BM25, Stems
from .model import LiveCheckpoint, autocasts
from .recipe import Recipe

LOOKUP = 500  # keys of one query; SQLite takes 999 at least


class Teacher:
    """A checkpoint's vectors, of texts cut to the lengths that the student sees.

    Args:
        checkpoint: folder or hub id.
        cache: folder for the file of vectors already computed; several runs and processes share it.
    """

    def __init__(self, checkpoint: str, recipe: Recipe, device: torch.device, cache: Path) -> None:
        dtype = "bfloat16" if autocasts(recipe, device) else "float32"
        self.identity: CheckpointIdentity = identify(checkpoint, device=device, dtype=dtype)
        bounds = {"query_max_length": recipe.query_tokens, "passage_max_length": recipe.passage_tokens}
        self.config = replace(self.identity.config, length_bound="text", **bounds)  # type: ignore[arg-type]
        self._model: LiveCheckpoint | None = None
        cache.mkdir(parents=True, exist_ok=True)
        name = f"teacher-{self.identity.fingerprint}-{recipe.query_tokens}-{recipe.passage_tokens}-{dtype}.sqlite"
        self._cache = sqlite3.connect(cache / name, timeout=60, isolation_level=None)
        self._cache.execute("PRAGMA journal_mode = WAL")
        self._cache.execute("PRAGMA synchronous = NORMAL")  # a lost vector is computed again
        self._cache.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def vectors(self, texts: Sequence[str], side: Side) -> list[Tensor]:
        """float32 (k or fewer, dim) per text, L2-normalised up to float16's rounding."""
        keys = [hashlib.sha256(f"{side}\0{text}".encode("utf-8", "surrogatepass")).digest()[:16] for text in texts]
        known = self._lookup(sorted(set(keys)))
        unknown = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        computed = dict(zip(unknown, self._encode(list(unknown.values()), side), strict=True)) if unknown else {}
        known |= {key: vector.astype(np.float16).tobytes() for key, vector in computed.items()}
        self._cache.execute("BEGIN IMMEDIATE")
        self._cache.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", [(key, known[key]) for key in computed])
        self._cache.execute("COMMIT")
        stored = (np.frombuffer(known[key], dtype=np.float16).reshape(-1, self.config.dim) for key in keys)
        return [torch.from_numpy(vectors.astype(np.float32)).to(self.identity.device) for vectors in stored]

    def _lookup(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), LOOKUP):
            some = keys[start : start + LOOKUP]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, value FROM vectors WHERE key IN ({marks})"  # noqa: S608 - marks are "?" alone
            found.update(self._cache.execute(query, some))
        return found

    def _encode(self, texts: Sequence[str], side: Side) -> list[Vectors]:
        if self._model is None:  # a run whose texts are all known never loads it
            self._model = LiveCheckpoint.load(self.identity, self.config)
        return self._model.encode_query(texts) if side == "query" else self._model.encode_document(texts)


class WordTeacher:
    """BM25 among the passages of a batch: what of its own has a passage that the query asks for?

    Document frequencies are the batch's: where passages are alike, their common words say nothing of which is meant.
    """

    def __init__(self) -> None:
        self._stems, self._settings = Stems(), BM25(K1, B)

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> Tensor:
        """float32 (queries, passages), each query's divided by its best; 0 where it shares no word with any."""
        counts = [Counter(self._stems.of(text)) for text in passages]
        lengths = [counted.total() for counted in counts]
        mean = sum(lengths) / len(lengths) or 1
        k1, b = self._settings.k1, self._settings.b
        postings: dict[str, dict[int, float]] = {}
        for column, (counted, length) in enumerate(zip(counts, lengths, strict=True)):
            for word, count in counted.items():
                postings.setdefault(word, {})[column] = count / (count + k1 * (1 - b + b * length / mean))
        scores = torch.zeros(len(queries), len(passages))
        for row, query in enumerate(queries):
            for word in self._stems.of(query):
                found = postings.get(word, {})
                idf = math.log(1 + (len(passages) - len(found) + 0.5) / (len(found) + 0.5))
                for column, weight in found.items():
                    scores[row, column] += idf * weight
        best = scores.amax(dim=1, keepdim=True)
        return scores / best.where(best > 0, 1)
