"""Indexes by their folder, where ColBERT wants a name and a root: the one place that translates.

>>> index = build_index("my-index", ["Paris is the capital of France.", "Bread is baked from flour."])
>>> open_index(index).search("What is the capital of France?", k=1)
([0], [1], [1.98])
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from colbert.infra.config import ColBERTConfig, RunConfig
from colbert.infra.run import Run

from ..encoding.vectors import Cluster
from ..seam.scorer import scoring_by
from .indexing import Indexer
from .lexical import Lexical
from .parts import Parts, PartsRanker
from .searching import Searcher


def build_index(
    path: str | Path,
    passages: Any,
    checkpoint: str | Path | None = None,
    *,
    nbits: int | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    lexical: Lexical = None,
    overwrite: bool | str = False,
    nranks: int = 1,
    cluster: Cluster | None = None,
    verbose: int = 1,
) -> Path:
    """Build an index in a folder and return its absolute path.

    Args:
        path: the folder; relative ones are of the current folder.
        passages: as `Indexer.index` takes them: a list, a `.tsv`, a `.jsonl`, a BEIR folder.
        checkpoint: a checkpoint, or a folder of vector files; None: the small default checkpoint.
        nbits: None: the checkpoint's recommendation.
        metadata, lexical, overwrite: as `Indexer.index`.
        nranks: processes that share the work; above 1 a script needs a `__main__` guard.
        cluster: machines that do (`distributed.RayCluster`).
        verbose: 0 says nothing.

    Raises:
        UserError: as `Indexer`.

    >>> build_index("my-index", ["Paris is the capital of France.", "Bread is baked from flour."])
    PosixPath('/home/me/my-index')
    """
    folder = Path(path).absolute()
    config = ColBERTConfig() if nbits is None else ColBERTConfig(nbits=nbits)
    with Run().context(RunConfig(index_root=str(folder.parent), nranks=nranks)):
        indexer = Indexer(None if checkpoint is None else str(checkpoint), config, verbose=verbose)
        built = indexer.index(folder.name, passages, overwrite=overwrite, metadata=metadata, lexical=lexical, cluster=cluster)
    return Path(built)


def open_index(
    path: str | Path,
    *,
    checkpoint: str | Path | None = None,
    collection: Any = None,
    verify: bool = False,
    parts: Callable[[Path], Parts] | None = None,
    verbose: int = 0,
) -> Searcher:
    """Open the index in a folder; other arguments as `Searcher`.

    Args:
        parts: the folder -> where its vectors are; None: in this process.

    Raises:
        UserError: as `Searcher`.

    >>> open_index("my-index").search("capital of France", k=1)
    ([0], [1], [3.52])
    """
    folder = Path(path).absolute()
    given = None if checkpoint is None else str(checkpoint)
    with nullcontext() if parts is None else scoring_by(lambda path: PartsRanker(path, parts(path))):
        return Searcher(folder.name, given, collection, index_root=str(folder.parent), verbose=verbose, verify=verify)
