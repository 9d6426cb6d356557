"""What a checkpoint folder says about itself, and which files make one. Knows neither models nor ids.

The folder's layout is data (`CHECKPOINT`, `RELEASED`, `VECTORS`): what a folder is, is a comparison.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .common.checks import is_number, listed
from .common.errors import UserError
from .common.files import read_json, write_json

FORMAT_VERSION = 1

Side = Literal["query", "passage"]
LengthBound = Literal["prompt", "text"]
Part = str | tuple[int, ...]  # text for the tokenizer, or token ids as they are

CONFIG_FILE = "diffusion.json"
COLBERT_FILE = "artifact.metadata"  # ColBERT's own: infra/config/base_config.py:70
RELEASED_FILE = "retriever_config.json"
VECTORS_FILE = "vectors.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
PROJECTION_FILE = "projection.safetensors"
PROJECTIONS = ("none", "pca", "learned", "rotated")
HEAD_FILE = "head.safetensors"


NBITS = (1, 2, 4, 8)  # per dimension of a residual, as ColBERT packs them
HEAVIEST = 1000  # weight of the words beside vectors
WORD_WEIGHTS = ("bm25_weight", "predicted_weight")

MOST = 2**20  # of a length, a size or a prompt; far more than any model here takes
TOKENS = 2**24  # rows of an embedding
NUMBERS = {
    "k_query": (1, 2**16),
    "k_passage": (1, 2**16),
    "masks_query": (1, 2**16),
    "masks_passage": (1, 2**16),
    "query_max_length": (1, MOST),
    "passage_max_length": (1, MOST),
    "dim": (1, 2**16),
    "mask_token_id": (0, TOKENS - 1),
    "mask_position": (0, MOST),
    "read_offset": (-1, 0),
    "format_version": (1, 1),
}
OPTIONAL = {"masks_query", "masks_passage", "mask_token_id", "mask_position", "family", "revision", "dtype"}
LATER = {"cover_above"}  # fields that the first files of this format do not have


@dataclass(frozen=True)
class FolderLayout:
    """A kind of folder: it is one when every file of `marks` is there."""

    kind: str
    marks: frozenset[str]

    def matches(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in self.marks)


CHECKPOINT = FolderLayout("diffusion checkpoint", frozenset({CONFIG_FILE}))
VECTORS = FolderLayout("vector files", frozenset({VECTORS_FILE}))
RELEASED = FolderLayout("released DiffRetriever checkpoint", frozenset({RELEASED_FILE, ADAPTER_CONFIG_FILE}))
LAYOUTS = (VECTORS, CHECKPOINT, RELEASED)


COLBERT_FIELDS: Mapping[str, type] = {
    "dim": int,
    "query_maxlen": int,
    "doc_maxlen": int,
    "nbits": int,
    "similarity": str,
    "mask_punctuation": bool,
}


def check_colbert_file(folder: Path) -> None:
    """A checkpoint's `artifact.metadata` decides six settings of ColBERT's; every other one, paths included, is the user's.

    Raises:
        UserError: it has other fields, or values out of their range.
    """
    path = folder / COLBERT_FILE
    if not path.is_file():
        return
    content = read_json(path)
    if unknown := sorted(set(content) - set(COLBERT_FIELDS)):
        raise UserError(
            f"{path} has fields {listed(unknown)} that no checkpoint decides; remove them, {[*COLBERT_FIELDS]} may stay"
        )

    for name, value in content.items():
        kind = COLBERT_FIELDS[name]
        if type(value) is not kind or (kind is int and not is_number(value, 1, MOST, whole=True)):
            expected = f"a whole number from 1 to {MOST:,}" if kind is int else f"a {kind.__name__}"
            raise UserError(f"{path} gives {name} {value!r:.40}, expected {expected}")


def layout_of(folder: str | Path) -> FolderLayout | None:
    """Which of our layouts `folder` has, or None."""
    return next((layout for layout in LAYOUTS if layout.matches(Path(folder))), None)


@dataclass(frozen=True)
class PromptParts:
    """What stands around a text: prefix | text | suffix | masks | tail. Each as text or as token ids."""

    prefix: Part = ""
    suffix: Part = ""
    tail: Part = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PromptParts":
        if not isinstance(content, Mapping):
            raise TypeError(f"a prompt is an object with prefix, suffix and tail, not {content!r:.40}")
        return cls(**{name: part if isinstance(part, str) else tuple(part) for name, part in content.items()})

    def check(self, name: str) -> None:
        """Raises UserError for what is neither a text nor token ids."""
        for field_ in fields(self):
            part = getattr(self, field_.name)
            if isinstance(part, str) and len(part) <= MOST:
                continue
            if not isinstance(part, tuple) or len(part) > MOST or not all(type(i) is int and 0 <= i < TOKENS for i in part):
                raise UserError(f"{name}: {field_.name} is {part!r:.60}, expected a text or token ids from 0 to {TOKENS - 1:,}")


@dataclass(frozen=True)
class DiffusionConfig:
    """Everything an encoder needs to know beyond the weights; stored as `diffusion.json`.

    Args:
        backbone: hub id, path (relative: to the checkpoint folder, then its parent) or
            `package:<module>/<subpath>` for weights that a pip package ships.
        family: name in `backbones.FAMILIES`; None: decided by the backbone's model_type.
        revision: hub revision of the backbone; None: the hub's default.
        readout: name in `readouts.READOUTS`.
        k_query, k_passage: vectors per query and passage.
        nested: True when trained so that the first vectors and dimensions are good vectors by themselves.
        masks_query, masks_passage: masks appended, where that is more than k: a nested checkpoint always gets
            the trained number and keeps the first k. None: k.
        read_offset: 0 reads the masked positions themselves (DiffRetriever), -1 the states one before them
            (the states that predict them in models with shifted logits).
        query_prompt, passage_prompt: see `PromptParts`; ids win over any template.
        query_max_length, passage_max_length: in tokens; masks and tail are never counted.
        length_bound: what the maximum counts: "prompt" = prefix + text + suffix, "text" = the text alone.
        mask_token_id: what the checkpoint was trained with; None: the backbone's own.
        mask_position: position of the first mask, whatever the text's length, so that absolute position embeddings tell
            the masks apart; None: the one after the suffix (DiffRetriever; RoPE knows distances only).
        merge_above: passage vectors closer than this cosine are merged (`allocation.merge`); None: none are.
        cover_above: a passage keeps the fewest vectors that all its k have this mean cosine with (`allocation.cover`); None: k.
        dim: size of a vector.
        projection: "none", "pca", "learned" or "rotated" (the first dimensions say no more than the last, so that they are
            no vectors by themselves); anything but "none" is read from `projection.safetensors`.
        dtype: torch dtype name on CPU and GPU alike; None: float32 on CPU, bfloat16 on GPU.
        search: what an index of this checkpoint gets unless it is told otherwise: bits per dimension (nbits), and the weight of
            words beside vectors (bm25_weight, predicted_weight), where it was shown to help. Other numbers are kept as they
            are.
        training: provenance.

    Raises:
        UserError: a value is out of its range.
    """

    backbone: str
    family: str | None = None
    revision: str | None = None
    readout: str = "masked"
    k_query: int = 4
    k_passage: int = 16
    nested: bool = False
    masks_query: int | None = None
    masks_passage: int | None = None
    read_offset: int = 0
    query_prompt: PromptParts = field(default_factory=PromptParts)
    passage_prompt: PromptParts = field(default_factory=PromptParts)
    query_max_length: int = 64
    passage_max_length: int = 256
    length_bound: LengthBound = "prompt"
    mask_token_id: int | None = None
    mask_position: int | None = None
    merge_above: float | None = None
    cover_above: float | None = None
    dim: int = 128
    projection: str = "none"
    dtype: str | None = None
    search: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        self._check_types()
        for side in get_args(Side):
            if self.masks(side) < self.k(side) or (self.masks(side) > self.k(side) and not self.nested):
                raise UserError(
                    f"k_{side} is {self.k(side)}, masks_{side} {self.masks(side)}: fewer vectors than masks need a nested "
                    "checkpoint, more are not there"
                )
        for name in ("merge_above", "cover_above"):
            cosine = getattr(self, name)
            if cosine is not None and (not is_number(cosine, 0, 1) or cosine == 0):
                raise UserError(f"{name} is {cosine!r:.40}, expected a cosine above 0, up to 1, or null")
        if self.merge_above is not None and self.cover_above is not None:
            raise UserError(f"merge_above is {self.merge_above} and cover_above {self.cover_above}: set one of them to null")
        if self.read_offset not in (0, -1):
            raise UserError(f"read_offset is {self.read_offset}, expected 0 (the masked positions) or -1")
        if self.length_bound not in get_args(LengthBound):
            raise UserError(f'length_bound is "{self.length_bound}", expected one of {get_args(LengthBound)}')
        if self.projection not in PROJECTIONS:
            raise UserError(f'projection is "{self.projection}", expected one of {PROJECTIONS}')

    def _check_types(self) -> None:
        """Every field is of its type and in its range, before anything is allocated by it."""
        for name, (least, most) in NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if not is_number(value, least, most, whole=True):
                wrong = "" if type(value) is int else f" of the wrong type {type(value).__name__}"
                raise UserError(f"{name} is {value!r:.40}{wrong}, expected at least {least}, a whole number up to {most:,}")
        for name in ("backbone", "family", "revision", "readout", "projection", "dtype", "length_bound"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in OPTIONAL):
                raise UserError(f"{name} is {value!r:.40}, expected a text")
        if type(self.nested) is not bool:
            raise UserError(f"nested is {self.nested!r:.40}, expected true or false")
        for name in ("query_prompt", "passage_prompt"):
            getattr(self, name).check(name)
        if not isinstance(self.search, Mapping) or not isinstance(self.training, Mapping):
            raise UserError("search and training are objects")
        for name, value in self.search.items():
            if name == "nbits" and (type(value) is not int or value not in NBITS):
                raise UserError(f"search: nbits is {value!r:.40}, expected 1, 2, 4 or 8")
            least, most = (0, HEAVIEST) if name in WORD_WEIGHTS else (-MOST, MOST)
            if not is_number(value, least, most):
                raise UserError(f"search: {name} is {value!r:.40}, expected a number from {least:,} to {most:,}")

    def k(self, side: Side) -> int:
        """Vectors per text on this side."""
        return self.k_query if side == "query" else self.k_passage

    def masks(self, side: Side) -> int:
        """Masks appended to a text on this side."""
        masks = self.masks_query if side == "query" else self.masks_passage
        return self.k(side) if masks is None else masks

    def prefix(self, *, k_query: int | None = None, k_passage: int | None = None, dim: int | None = None) -> "DiffusionConfig":
        """The same checkpoint with fewer vectors or dimensions, which a nested one gives without training again.

        Raises:
            UserError: not nested, or more than there is.
        """
        k_query, k_passage, dim = k_query or self.k_query, k_passage or self.k_passage, dim or self.dim
        if (k_query, k_passage, dim) == (self.k_query, self.k_passage, self.dim):
            return self
        if not self.nested:
            raise UserError(
                f"the checkpoint is not nested: it gives k_query {self.k_query}, k_passage {self.k_passage}, dim {self.dim} "
                "only; train one with nested prefixes (colbert-diffusion train)"
            )
        if dim > self.dim:
            raise UserError(f"dim {dim} is above the checkpoint's {self.dim}; choose a smaller one")
        if dim < self.dim and self.projection == "rotated":
            raise UserError(
                f"the checkpoint's {self.dim} dimensions were rotated, so {dim} of them are no vectors; take them from what it "
                "was converted of"
            )
        return replace(
            self,
            k_query=k_query,
            k_passage=k_passage,
            dim=dim,
            masks_query=self.masks("query"),
            masks_passage=self.masks("passage"),
        )

    @property
    def nbits(self) -> int:
        """Bits per dimension that an index of this checkpoint gets unless it is told otherwise."""
        return int(self.search.get("nbits", 2))

    def prompt(self, side: Side) -> PromptParts:
        return self.query_prompt if side == "query" else self.passage_prompt

    def max_length(self, side: Side) -> int:
        """Bound in tokens, of what `length_bound` says."""
        return self.query_max_length if side == "query" else self.passage_max_length

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str = CONFIG_FILE) -> "DiffusionConfig":
        """Build from parsed JSON. Raises UserError for another format version or an unknown or missing field."""
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(f"{source} has format_version {version}, this version of colbert_diffusion reads {FORMAT_VERSION}")
        unknown = sorted(set(content) - {f.name for f in fields(cls)})
        if unknown:
            raise UserError(f"{source} has unknown fields {listed(unknown)}; upgrade colbert_diffusion or remove them")
        if "backbone" not in content:
            raise UserError(f"{source} names no backbone; add a hub id, a path or package:<module>/<subpath>")
        values = dict(content)
        try:
            for name in ("query_prompt", "passage_prompt"):
                if name in values:
                    values[name] = PromptParts.from_json(values[name])
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{source} has a value of the wrong type: {error}") from error

    @classmethod
    def load(cls, folder: str | Path) -> "DiffusionConfig":
        """Read a checkpoint folder's config: ours, or a released DiffRetriever folder's.

        Raises:
            UserError: the folder is neither, or its config is malformed.
        """
        folder = Path(folder)
        if CHECKPOINT.matches(folder):
            check_colbert_file(folder)
            return cls.from_json(read_json(folder / CONFIG_FILE), source=str(folder / CONFIG_FILE))
        if RELEASED.matches(folder):
            return _from_released(folder)
        there = "no such folder" if not folder.is_dir() else f"it has neither {CONFIG_FILE} nor {RELEASED_FILE}"
        raise UserError(f"{folder} is not a diffusion checkpoint: {there}; make one with `colbert-diffusion convert`")

    def save(self, folder: str | Path) -> None:
        """Write `diffusion.json` and the `artifact.metadata` that ColBERT reads beside it."""
        folder = Path(folder)
        write_json(folder / CONFIG_FILE, {"format_version": self.format_version, **self.content()})
        write_json(folder / COLBERT_FILE, self.colbert_settings())

    def content(self) -> dict[str, Any]:
        """The fields for JSON; a later one that is not used is left out: files and hashes stay as they were before it."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in LATER}

    def colbert_settings(self) -> dict[str, Any]:
        """The part of a ColBERTConfig that this checkpoint decides.

        query_maxlen is k_query because ColBERT cuts Q to it (search/index_storage.py:78). The search settings
        stay out: in artifact.metadata they would be overridden by an index's own config.
        """
        return {
            "dim": self.dim,
            "query_maxlen": self.k_query,
            "doc_maxlen": self.passage_max_length,
            "nbits": self.nbits,
            "similarity": "cosine",
            "mask_punctuation": False,
        }


def _from_released(folder: Path) -> DiffusionConfig:
    """Map a release's `retriever_config.json` (DiffRetriever's field names) to ours."""
    source = folder / RELEASED_FILE
    released = read_json(source)
    adapter = read_json(folder / ADAPTER_CONFIG_FILE)
    try:
        prompts = {
            side: PromptParts(
                tuple(released[f"{side}_prefix_ids"]),
                tuple(released[f"{side}_suffix_ids"]),
                RELEASED_TAILS[released["model_type"]][int(released.get("n_tail", int(released.get("use_eos", False))))],
            )
            for side in ("query", "passage")
        }
        k = released.get("n_gen_tokens", 1)
        return DiffusionConfig(
            backbone=adapter["base_model_name_or_path"],
            revision=adapter.get("revision"),
            family=RELEASED_FAMILIES[released["model_type"]],
            k_query=released.get("n_gen_q_tokens") or k,
            k_passage=released.get("n_gen_p_tokens") or k,
            query_prompt=prompts["query"],
            passage_prompt=prompts["passage"],
            query_max_length=released["max_length"],
            passage_max_length=released["max_length"],
            mask_token_id=released["mask_token_id"],
            dim=released["hidden_size"],
        )
    except KeyError as error:
        supported = sorted(RELEASED_FAMILIES)
        raise UserError(f"{source}: {error!s:.60} is missing or not supported; supported model_type: {supported}") from error
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{source} has a value of the wrong type: {' '.join(str(error).split()):.200}") from error


RELEASED_FAMILIES = {"dream": "dream", "llada1": "llada", "llada15": "llada"}
# Closing quote, chat end, end of text; older releases kept none of it or the end of text alone.
RELEASED_TAILS: Mapping[str, Mapping[int, Part]] = {
    "dream": {0: (), 1: "<|endoftext|>", 3: '"<|im_end|><|endoftext|>'},
    "llada1": {0: (), 1: "<|endoftext|>", 3: '"<|eot_id|><|endoftext|>'},
    "llada15": {0: (), 1: "<|endoftext|>", 3: '"<|eot_id|><|endoftext|>'},
}
