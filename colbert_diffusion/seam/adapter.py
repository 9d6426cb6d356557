"""What ColBERT calls of a checkpoint, over our encoder and over vector files. Imports no colbert: it comes to us.

ColBERT asks for an object by a folder's name (`binding.py`), assigns its tokenizer's length and calls `docFromText`,
`queryFromText` and `cuda`. Between `sharing` and its end, one model serves every index of its checkpoint.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..common.errors import UserError
from ..config import COLBERT_FILE, VECTORS
from ..encoding.checkpoint import DiffusionCheckpoint
from ..encoding.identity import identify
from ..encoding.scoring import Vectors
from ..encoding.vectors import VectorFiles


class ColBERTCheckpoint(DiffusionCheckpoint):
    """A DiffusionCheckpoint with the surface that ColBERT calls.

    Args:
        colbert_config: ColBERT's; its dim must be the checkpoint's.
        verbose: 0 shows no progress bars.

    Raises:
        UserError: as DiffusionCheckpoint, or the config asks for another dim.
    """

    def __init__(self, path: str | Path, colbert_config: Any = None, verbose: int = 3) -> None:
        super().__init__(path, verbose=verbose)
        check_dim(colbert_config, self.config.dim, self.path)
        # ColBERT assigns .query_tokenizer.query_maxlen before every encoding (searcher.py:60).
        self.query_tokenizer = SimpleNamespace(query_maxlen=self.config.k_query)

    def cuda(self) -> "ColBERTCheckpoint":
        """ColBERT asks for this when a GPU is visible (searcher.py:45); the backbone is there since loading."""
        return self

    def docFromText(  # noqa: N802 - ColBERT's name (indexing/collection_encoder.py:26)
        self,
        docs: Sequence[str],
        bsize: int | None = None,
        keep_dims: bool | str = "flatten",
        showprogress: bool = False,
        pool_factor: int = 1,
        clustering_mode: str = "hierarchical",
        protected_tokens: int = 0,
    ) -> tuple[Tensor, list[int]]:
        """Passages -> (D (sum of lengths, dim), lengths), in input order; D float32 on CPU, float16 with a GPU.

        `bsize` and `clustering_mode` are ColBERT's and mean nothing here: batches are filled by tokens.

        Raises:
            UserError: `pool_factor` or `keep_dims` asks for what this checkpoint does not do.
        """
        check_call(keep_dims, pool_factor)
        vectors = self.encode_document(docs, show_progress_bar=showprogress and self.verbose > 0)
        return flatten(vectors, self.config.dim, self.device)

    def queryFromText(  # noqa: N802 - ColBERT's name (searcher.py:61)
        self,
        queries: Sequence[str],
        bsize: int | None = None,
        to_cpu: bool = False,
        context: object = None,
        full_length_search: bool = False,
    ) -> Tensor:
        """Queries -> float32 (n, k_query, dim), on CPU; `full_length_search` changes nothing: k is fixed.

        Readout "tokens": zeros behind each query's own vectors, which add nothing to its scores.
        """
        vectors = [torch.from_numpy(vector) for vector in self.encode_query(queries)]
        return pad_sequence(vectors, batch_first=True) if vectors else torch.empty(0, self.config.k_query, self.config.dim)


class VectorCheckpoint:
    """Vector files as a checkpoint: documents, given by pid, come from the files; queries from the model that made them."""

    def __init__(self, path: str | Path, colbert_config: Any = None, verbose: int = 3) -> None:
        self.files = VectorFiles(Path(path))
        self.verbose = verbose
        check_dim(colbert_config, self.files.dim, self.files.folder)
        self.query_tokenizer = SimpleNamespace(query_maxlen=None)

    @cached_property
    def model(self) -> ColBERTCheckpoint:
        """What made the vectors; loaded when it is first needed."""
        return _open_model(self.files.checkpoint, verbose=self.verbose)

    def cuda(self) -> "VectorCheckpoint":
        return self

    def docFromText(  # noqa: N802
        self, docs: Sequence[int], *, keep_dims: bool | str = "flatten", pool_factor: int = 1, **_: object
    ) -> tuple[Tensor, list[int]]:
        """As ColBERTCheckpoint.docFromText, for pids.

        Raises:
            UserError: texts instead of pids, or a pid that is not in the files.
        """
        check_call(keep_dims, pool_factor)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return flatten(list(self.files.read(docs)), self.files.dim, device)

    def queryFromText(self, queries: Sequence[str], **options: Any) -> Tensor:  # noqa: N802
        return self.model.queryFromText(queries, **options)


def open_checkpoint(path: str, colbert_config: Any = None, verbose: int = 3) -> ColBERTCheckpoint | VectorCheckpoint:
    """The checkpoint class for a folder of ours."""
    if VECTORS.matches(Path(path)):
        return VectorCheckpoint(path, colbert_config, verbose)
    return _open_model(path, colbert_config, verbose)


Models = MutableMapping[tuple[str, ...], ColBERTCheckpoint]  # by fingerprint (also of the head), dtype, device
_shared: ContextVar[Models | None] = ContextVar("_shared", default=None)


@contextmanager
def sharing(models: Models) -> Iterator[None]:
    """What `open_checkpoint` opens meanwhile is taken from `models` where the same is there, and put there where not."""
    token = _shared.set(models)
    try:
        yield
    finally:
        _shared.reset(token)


@contextmanager
def sharing_at_least(models: Models) -> Iterator[None]:
    """As `sharing`, unless somebody shares already."""
    with nullcontext() if _shared.get() is not None else sharing(models):
        yield


def _open_model(path: str, colbert_config: Any = None, verbose: int = 3) -> ColBERTCheckpoint:
    models = _shared.get()
    if models is None:
        return ColBERTCheckpoint(path, colbert_config, verbose)
    identity = identify(path)
    key = (identity.fingerprint, identity.head_fingerprint, identity.dtype, str(identity.device))
    model = models.get(key)
    if model is None:
        models[key] = model = ColBERTCheckpoint(path, verbose=verbose)
    check_dim(colbert_config, model.config.dim, model.path)
    return model


def flatten(vectors: Sequence[Vectors], dim: int, device: torch.device) -> tuple[Tensor, list[int]]:
    """Per-passage arrays -> ColBERT's packed (D, doclens)."""
    packed = torch.from_numpy(np.concatenate(vectors)) if vectors else torch.empty(0, dim)
    dtype = torch.float16 if device.type == "cuda" else torch.float32  # asserted at collection_indexer.py:366-370
    return packed.to(dtype), [len(v) for v in vectors]


def check_dim(colbert_config: Any, dim: int, path: Path) -> None:
    """Raises UserError when a ColBERTConfig asks for another dim: ColBERT would override one with the other silently."""
    if colbert_config is not None and colbert_config.assigned.get("dim") and colbert_config.dim != dim:
        raise UserError(
            f"the config says dim={colbert_config.dim}, {path} gives {dim}; "
            f"leave dim out of the config ({COLBERT_FILE} carries it)"
        )


def check_call(keep_dims: bool | str, pool_factor: int) -> None:
    if pool_factor != 1:
        raise UserError(f"pool_factor={pool_factor}: pooling is not done on masked positions; choose a smaller k_passage")
    if keep_dims != "flatten":
        raise UserError(f'keep_dims={keep_dims!r} is not supported, only "flatten" (ColBERT\'s indexer); use encode_document')
