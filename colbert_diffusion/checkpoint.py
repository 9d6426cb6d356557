"""DiffusionCheckpoint: a checkpoint folder as an encoder, with the surface that ColBERT calls. Never imports colbert."""

import warnings
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
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

from .backbones.loading import load_backbone
from .collection import as_texts
from .config import COLBERT_FILE, VECTORS, Side
from .encoder import Encoder
from .errors import CutTextWarning, UserError
from .heads import PredictionHead, load_head
from .identity import identify
from .progress import Progress, progress_bar
from .projection import Vectors, load_projection
from .vectors import VectorFiles


def default_checkpoint() -> str:
    """Path of the small checkpoint that ships with the package."""
    return str(Path(__file__).parent / "models" / "small")


class DiffusionCheckpoint:
    """A diffusion language model that reads a text once and gives k vectors.

    Args:
        path: checkpoint folder, released DiffRetriever folder, or hub id of either.
        colbert_config: ColBERT passes its config here; its dim must be the checkpoint's.
        verbose: ColBERT passes it; 0 shows no progress bars.
        device: None: the GPU if there is one.
        dtype: "float32", "bfloat16" or "float16"; None: the checkpoint's own word, else float32 on CPU and
            bfloat16 on GPU.
        batch_tokens: tokens of one padded batch; None: by device.

    Raises:
        UserError: not a checkpoint, or anything in it that would give wrong vectors.
    """

    def __init__(
        self,
        path: str | Path,
        colbert_config: Any = None,
        verbose: int = 3,
        *,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.identity = identify(path, device=device, dtype=dtype)
        self.path, self.config = self.identity.path, self.identity.config
        self.verbose = verbose
        self._told: set[Side] = set()  # that texts are cut
        check_dim(colbert_config, self.config.dim, self.path)
        backbone = load_backbone(
            self.identity.backbone_path,
            family=self.config.family,
            checkpoint=self.path,
            dtype=getattr(torch, self.identity.dtype),
            device=self.identity.device,
        )
        projection = load_projection(self.config, self.path, backbone.hidden_size)
        self.encoder = Encoder(backbone, self.config, projection, batch_tokens)
        # ColBERT assigns .query_tokenizer.query_maxlen before every encoding (searcher.py:60).
        self.query_tokenizer = SimpleNamespace(query_maxlen=self.config.k_query)

    def __repr__(self) -> str:
        c = self.config
        return f"DiffusionCheckpoint({str(self.path)!r}, k_query={c.k_query}, k_passage={c.k_passage}, dim={c.dim})"

    @property
    def device(self) -> torch.device:
        return self.encoder.backbone.device

    def encode_query(self, queries: Sequence[str], *, show_progress_bar: bool = False) -> list[Vectors]:
        """Encode queries: one float32 array (k_query, dim) each, L2-normalised, in input order.

        Raises:
            UserError: a single string instead of a list, or an item that is not a string.
        """
        return self._encode_all(queries, "query", show_progress_bar)

    def encode_document(self, documents: Sequence[str], *, show_progress_bar: bool = False) -> list[Vectors]:
        """Encode passages: one float32 array (k_passage, dim) each, L2-normalised, in input order.

        Raises:
            UserError: a single string instead of a list, or an item that is not a string.
        """
        return self._encode_all(documents, "passage", show_progress_bar)

    def iter_document(self, documents: Iterable[str], progress: Progress | None = None) -> Iterator[Vectors]:
        """As `encode_document`, one by one from any iterable and in bounded memory; `cut_documents` tells what was cut."""
        return self.encoder.encode(documents, "passage", progress=progress)

    def cut_documents(self) -> str | None:
        """How many passages so far are longer than what is read of each, and how much of them; None: none is."""
        return self.encoder.cut_texts("passage")

    def _encode_all(self, texts: Sequence[str], side: Side, show_progress_bar: bool) -> list[Vectors]:
        texts = as_texts(texts, "queries" if side == "query" else "passages")
        with progress_bar(len(texts), f"encode {side}", show=show_progress_bar) as progress:
            vectors = list(self.encoder.encode(texts, side, progress=progress))
        if side not in self._told and (cut := self.encoder.cut_texts(side)):
            self._told.add(side)
            warnings.warn(cut, CutTextWarning, stacklevel=3)
        return vectors

    def rerank(self, query: str, passages: Sequence[str]) -> list[tuple[int, float]]:
        """Exact MaxSim (DiffRetriever eq. 1): [(position in `passages`, score), ...], best first, ties in input order.

        The score is the sum over the query's vectors of the largest dot product with a passage vector, not divided
        by k_query and not floored at 0.
        """
        [q] = self.encode_query([query])
        scores = [float((q @ d.T).max(axis=1).sum()) for d in self.encode_document(passages)]
        return sorted(enumerate(scores), key=lambda pair: -pair[1])

    @cached_property
    def head(self) -> PredictionHead | None:
        """The prediction head: the checkpoint's own, else its backbone's, else None."""
        return load_head(self.encoder.backbone, self.path, self.identity.backbone_path)

    def predict_words(self, texts: Sequence[str], side: Side = "passage", top: int = 10) -> list[list[list[str]]]:
        """What the masked positions say: for each text, for each position, the `top` likeliest tokens, best first.

        Raises:
            UserError: there is no prediction head, or the readout has no masked positions.
        """
        if self.head is None:
            raise UserError(f"{self.path} has no prediction head (nor has its backbone): its positions predict no words")
        if not self.encoder.readout.appends_masks:
            raise UserError(f'{self.path}: readout "{self.config.readout}" has no masked positions that predict words')
        tokenizer = self.encoder.backbone.tokenizer
        predicted = (logits.topk(top).indices.tolist() for logits in self.encoder.logits(texts, side, self.head))
        return [[[str(tokenizer.decode([token])).strip() for token in position] for position in text] for text in predicted]

    # What ColBERT calls ---------------------------------------------------------------------------------------

    def cuda(self) -> "DiffusionCheckpoint":
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
    def model(self) -> DiffusionCheckpoint:
        """What made the vectors; loaded when it is first needed."""
        return _open_model(self.files.checkpoint, verbose=self.verbose)

    def cuda(self) -> "VectorCheckpoint":
        return self

    def docFromText(  # noqa: N802
        self, docs: Sequence[int], *, keep_dims: bool | str = "flatten", pool_factor: int = 1, **_: object
    ) -> tuple[Tensor, list[int]]:
        """As DiffusionCheckpoint.docFromText, for pids.

        Raises:
            UserError: texts instead of pids, or a pid that is not in the files.
        """
        check_call(keep_dims, pool_factor)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return flatten(list(self.files.read(docs)), self.files.dim, device)

    def queryFromText(self, queries: Sequence[str], **options: Any) -> Tensor:  # noqa: N802
        return self.model.queryFromText(queries, **options)


def open_checkpoint(path: str, colbert_config: Any = None, verbose: int = 3) -> DiffusionCheckpoint | VectorCheckpoint:
    """The checkpoint class for a folder of ours."""
    if VECTORS.matches(Path(path)):
        return VectorCheckpoint(path, colbert_config, verbose)
    return _open_model(path, colbert_config, verbose)


Models = MutableMapping[tuple[str, ...], DiffusionCheckpoint]  # by fingerprint (also of the head), dtype, device
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


def _open_model(path: str, colbert_config: Any = None, verbose: int = 3) -> DiffusionCheckpoint:
    models = _shared.get()
    if models is None:
        return DiffusionCheckpoint(path, colbert_config, verbose)
    identity = identify(path)
    key = (identity.fingerprint, identity.head_fingerprint, identity.dtype, str(identity.device))
    model = models.get(key)
    if model is None:
        models[key] = model = DiffusionCheckpoint(path, verbose=verbose)
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
