"""A backbone or a released DiffRetriever folder -> a checkpoint folder that ColBERT can index."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.loading import load_backbone
from ..backbones.sources import TOKENIZER_FILES, locate, settled
from ..common.errors import UserError
from ..common.files import folder_aside, needing_room
from ..common.locking import writing
from ..common.progress import progress_bar
from ..config import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CHECKPOINT,
    COLBERT_FILE,
    CONFIG_FILE,
    RELEASED,
    WORD_WEIGHTS,
    DiffusionConfig,
    PromptParts,
    layout_of,
)
from .checkpoint import DiffusionCheckpoint
from .encoder import Encoder
from .projection import Projection, fit_pca, load_projection
from .readouts import find_readout

FIT_TEXTS = 20_000  # PCA of 16 vectors each: far more than its dim x hidden numbers need
CARRIED = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, *TOKENIZER_FILES)


class _Kept(NamedTuple):
    """What is kept of a passage unless an index is told otherwise."""

    merge_above: float | None
    cover_above: float | None
    nbits: int | None
    word_weight: float | None
    rotate: bool

    def of(self, config: DiffusionConfig) -> DiffusionConfig:
        """A config with what was asked for; merging takes covering's place and the other way round."""
        search = {"nbits": self.nbits} | dict.fromkeys(WORD_WEIGHTS, self.word_weight)
        asked = {name: value for name, value in search.items() if value is not None}
        config = replace(config, search={**config.search, **asked})
        if self.rotate:
            config = replace(config, projection="rotated")
        if self.merge_above is None and self.cover_above is None:
            return config
        return replace(config, merge_above=self.merge_above, cover_above=self.cover_above)


def convert(
    source: str,
    out: str | Path,
    *,
    dim: int | None = None,
    fit_on: Sequence[str] = (),
    projection_of: str | Path | None = None,
    backbone: str | None = None,
    family: str | None = None,
    readout: str = "masked",
    k_query: int | None = None,
    k_passage: int | None = None,
    mask_position: int | None = None,
    merge_above: float | None = None,
    cover_above: float | None = None,
    nbits: int | None = None,
    word_weight: float | None = None,
    rotate: bool = False,
    query_max_length: int | None = None,
    passage_max_length: int | None = None,
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
    show_progress_bar: bool = False,
) -> DiffusionCheckpoint:
    """Write a checkpoint folder from a bare backbone, a released DiffRetriever folder or a nested checkpoint; load it.

    Args:
        source: hub id, folder or `package:` reference. A release brings its own k, prompts and lengths; of a nested
            checkpoint fewer vectors or dimensions are taken, or more of both to train it further.
        out: folder to write; it must not exist.
        dim: size of the vectors, 128 or a nested checkpoint's own; below the backbone's hidden size a PCA is fitted.
        fit_on: passages for the PCA, up to 20,000 of them are used.
        projection_of: a checkpoint over the same backbone whose projection is taken instead, e.g. that of the teacher
            whose vectors masked positions shall learn.
        backbone: where the release's base is, if not where its adapter says.
        merge_above, cover_above: how a passage gets fewer vectors than k (`DiffusionConfig`); None: as the source does.
        nbits: bits per dimension that an index of this checkpoint gets unless it is told otherwise; None: the source's, or 2.
        word_weight: of the words beside vectors in its indexes, which then are searched by both unless a search is told
            otherwise; for where it is known to help, as `tune` and `tune-fusion` measure it. None: as the source does.
        rotate: rotate the vectors, so that an index keeps them better (`Projection.rotated`); fewer of their dimensions
            cannot be taken afterwards.
        family, readout, k_query (4), k_passage (16), mask_position, prompts: for a bare backbone; `prompts` has
            "query" and "passage", each with prefix, suffix and tail as text or ids.
        query_max_length, passage_max_length: for a bare backbone, in tokens of prompt and text; None: 512, or what
            the backbone's positions leave.

    Raises:
        UserError: nothing to fit the projection on, too few texts, or anything wrong with the source.

    >>> convert("ielabgroup/diffretriever-dream-7b-single", "dream", dim=128, fit_on=read_collection("passages.tsv"))
    DiffusionCheckpoint('dream', k_query=1, k_passage=1, dim=128)
    """
    target, kept = Path(out), _Kept(merge_above, cover_above, nbits, word_weight, rotate)
    kept.of(DiffusionConfig(""))  # what cannot be is refused before anything is fitted
    with needing_room(target), writing(target):
        if target.exists():
            raise UserError(f"{target} exists; choose another folder or delete it")
        folder = locate(source)
        if layout_of(folder) is CHECKPOINT:
            config, projection = _more(folder, k_query, k_passage, dim, fit_on, show_progress_bar)
            return _write_again(target, folder, config.prefix(k_query=k_query, k_passage=k_passage, dim=dim), projection, kept)
        carried = folder if layout_of(folder) is RELEASED else None
        if carried is not None:
            config = _released_config(folder, backbone)
        else:
            config = _backbone_config(source, folder, family, readout, k_query or 4, k_passage or 16, prompts)
            config = _bounded(config, mask_position, query_max_length, passage_max_length)
        projection = _projection(config, carried, dim or 128, fit_on, projection_of, show_progress_bar)
        return _write(target, config, projection, carried, dim or 128, kept)


def _more(
    folder: Path, k_query: int | None, k_passage: int | None, dim: int | None, fit_on: Sequence[str], show: bool
) -> tuple[DiffusionConfig, Projection | None]:
    """A nested checkpoint's config with as many positions and dimensions as are asked for, and the projection that has them.

    Further positions hold masks as the trained ones do; further dimensions are fitted on what its own leave of the texts.
    """
    config = DiffusionConfig.load(folder)
    if not config.nested:
        return config, None  # `prefix` refuses what differs
    if k_query is not None and k_query > config.masks("query"):
        config = replace(config, k_query=k_query, masks_query=None)
    if k_passage is not None and k_passage > config.masks("passage"):
        config = replace(config, k_passage=k_passage, masks_passage=None)
    if dim is None or dim <= config.dim:
        return config, None
    if not fit_on:
        raise UserError(
            f"dimensions beyond the checkpoint's {config.dim} are fitted on texts: give some passages (--fit-on TEXTS)"
        )
    loaded = _load(config, folder)
    _check_dim(dim, loaded)
    encoder = Encoder(loaded, replace(config, dim=loaded.hidden_size, merge_above=None, cover_above=None), Projection())
    first = load_projection(config, folder, loaded.hidden_size)
    return replace(config, dim=dim), fit_pca(_states(encoder, fit_on[:FIT_TEXTS], show), dim, first)


def _bounded(
    config: DiffusionConfig, mask_position: int | None, query_max_length: int | None, passage_max_length: int | None
) -> DiffusionConfig:
    """A bare backbone's config with the places and lengths that were asked for."""
    asked = {"query_max_length": query_max_length, "passage_max_length": passage_max_length}
    given = {name: length for name, length in asked.items() if length is not None}
    config = replace(config, mask_position=mask_position, **given)  # type: ignore[arg-type]
    return find_readout(config.readout).fitted(config)


def _projection(
    config: DiffusionConfig,
    carried: Path | None,
    dim: int,
    fit_on: Sequence[str],
    projection_of: str | Path | None,
    show: bool,
) -> Projection:
    """To `dim`: another checkpoint's, a PCA of the texts' states, or none where the backbone has that size."""
    loaded = _load(config, carried)
    if projection_of is not None:
        other = locate(str(projection_of))
        return load_projection(replace(DiffusionConfig.load(other), dim=dim), other, loaded.hidden_size)
    _check_dim(dim, loaded)
    if dim == loaded.hidden_size:
        return Projection()
    if not fit_on:
        raise UserError(
            f"a projection from {loaded.hidden_size} to {dim} dimensions is fitted on texts: give some passages "
            f"(--fit-on TEXTS), or keep all dimensions (--dim {loaded.hidden_size})"
        )
    encoder = Encoder(loaded, replace(config, dim=loaded.hidden_size), Projection())
    return fit_pca(_states(encoder, fit_on[:FIT_TEXTS], show), dim)


def _check_dim(dim: int, loaded: Backbone) -> None:
    if dim > loaded.hidden_size:
        raise UserError(f"dim {dim} is above the backbone's hidden size {loaded.hidden_size}; choose a smaller --dim")


def _released_config(folder: Path, backbone: str | None) -> DiffusionConfig:
    config = DiffusionConfig.load(folder)
    beside = folder if backbone is None else None
    return replace(config, backbone=settled(backbone or config.backbone, beside))


def _backbone_config(
    source: str,
    folder: Path,
    family: str | None,
    readout: str,
    k_query: int,
    k_passage: int,
    prompts: Mapping[str, Mapping[str, Any]] | None,
) -> DiffusionConfig:
    found, loaded = find_readout(readout), load_backbone(folder, family=family)
    parts = {
        "query": found.default_prompt(loaded.tokenizer, "query", k_query),
        "passage": found.default_prompt(loaded.tokenizer, "passage", k_passage),
    }
    for side, given in (prompts or {}).items():
        if side not in parts or not set(given) <= {"prefix", "suffix", "tail"}:
            raise UserError('prompts: expected {"query": {"prefix", "suffix", "tail"}, "passage": {...}}')
        parts[side] = PromptParts.from_json(given)
    longest = min(512, loaded.max_positions - k_passage - 8)  # zero shot, the reference counts up to 512
    return DiffusionConfig(
        backbone=settled(source, None),
        family=family,
        readout=readout,
        k_query=k_query,
        k_passage=k_passage,
        query_prompt=parts["query"],
        passage_prompt=parts["passage"],
        query_max_length=longest,
        passage_max_length=longest,
        dim=loaded.hidden_size,
    )


def _load(config: DiffusionConfig, carried: Path | None) -> Backbone:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    folder = locate(config.backbone, revision=config.revision)
    return load_backbone(folder, family=config.family, checkpoint=carried, dtype=dtype, device=device)


def _states(encoder: Encoder, texts: Sequence[str], show: bool) -> Iterator[Tensor]:
    with progress_bar(len(texts), "fit the projection", show=show) as progress:
        for vectors in encoder.encode(texts, "passage", progress=progress):
            yield torch.from_numpy(vectors)


def _write_again(
    target: Path, source: Path, config: DiffusionConfig, projection: Projection | None, kept: _Kept
) -> DiffusionCheckpoint:
    """The checkpoint's files under another config, with another projection if there is one; aside, then renamed."""
    if kept.rotate:
        projection = (projection or load_projection(config, source)).rotated()
    config = kept.of(replace(config, backbone=settled(config.backbone, source)))
    with folder_aside(target) as aside:
        shutil.copytree(source, aside, ignore=shutil.ignore_patterns(CONFIG_FILE, COLBERT_FILE), dirs_exist_ok=True)
        if projection is not None:
            projection.save(aside)
        config.save(aside)
    return DiffusionCheckpoint(target)


def _write(
    target: Path,
    config: DiffusionConfig,
    projection: Projection,
    carried: Path | None,
    dim: int,
    kept: _Kept,
) -> DiffusionCheckpoint:
    """Write the folder aside, then rename it: a half-written checkpoint never stands at `target`."""
    if kept.rotate:
        projection = projection.rotated()
    kind = "none" if projection.weight is None else "pca"
    config = kept.of(replace(config, dim=dim, projection=kind))
    with folder_aside(target) as aside:
        for name in CARRIED:
            if carried is not None and (carried / name).is_file():
                shutil.copyfile(carried / name, aside / name)
        projection.save(aside)
        config.save(aside)
    return DiffusionCheckpoint(target)
