"""Hidden states -> vectors of `dim`, L2-normalised. Knows nothing about texts or models.

Why at all: raw 3584- or 4096-dimensional states break ColBERT's quantile and its GPU kernel and need 28 times the
memory of 128 (MS MARCO's k-means input alone: 119 GB).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, normalize

from ..common.errors import UserError
from ..common.files import save_tensors, written_aside
from ..config import PROJECTION_FILE, DiffusionConfig


@dataclass(frozen=True)
class Projection:
    """A linear map without bias, or none, then L2 normalisation. `weight`: float32 (dim, hidden) or None."""

    weight: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """(..., hidden), any dtype -> float32 (..., dim), L2-normalised."""
        states = states.float()
        if self.weight is not None:
            states = linear(states, self.weight)
        return normalize(states, dim=-1)

    def truncated(self, dim: int) -> "Projection":
        """Keep the first `dim` output dimensions; the vectors are normalised after the cut.

        Raises:
            UserError: there are fewer.
        """
        if self.weight is None or dim > self.weight.shape[0]:
            have = "no projection" if self.weight is None else f"{self.weight.shape[0]} dimensions"
            raise UserError(f"cannot cut vectors to dim {dim}: the checkpoint has {have}")
        return Projection(self.weight[:dim])

    def rotated(self) -> "Projection":
        """The same dot products from dimensions that vary alike: a fixed random rotation of what comes out.

        ColBERT's residual codec has one set of buckets for all dimensions (codecs/residual.py), which fits none of them
        where the first vary more than the last, as principal components do.

        Raises:
            UserError: there is nothing to rotate.
        """
        if self.weight is None:
            raise UserError("the checkpoint keeps all of its backbone's dimensions, which vary alike: leave --rotate out")
        drawn = np.random.RandomState(0).standard_normal((len(self.weight), len(self.weight)))  # numpy keeps this stream
        rotation = torch.from_numpy(np.linalg.qr(drawn).Q).to(self.weight.device)
        return Projection((rotation @ self.weight.double()).float())

    def to(self, device: torch.device) -> "Projection":
        return self if self.weight is None else Projection(self.weight.to(device))

    def save(self, folder: Path) -> None:
        """Write `projection.safetensors` (fp16 would cost MaxSim order on large hidden sizes, so float32)."""
        if self.weight is not None:
            with written_aside(folder / PROJECTION_FILE) as aside:
                save_tensors({"weight": self.weight.contiguous().cpu()}, aside)


def fit_pca(states: Iterable[Tensor], dim: int, first: Projection | None = None) -> Projection:
    """The `dim` directions that keep most of the states' dot products.

    Principal components without centring: MaxSim compares dot products, and a shift by the mean would change them.
    Accumulates one (hidden, hidden) float64 matrix, so memory does not grow with the number of states.

    Args:
        states: batches of (n, hidden).
        dim: at most hidden.
        first: a projection that keeps its own dimensions; the others are fitted to what those leave of the states, and get
            the mean length of its rows.

    Raises:
        UserError: no states, fewer states than `dim`, or `dim` above hidden.
    """
    moment, count = torch.zeros(0), 0
    for batch in states:
        unit = normalize(batch.double(), dim=-1)
        moment = unit.T @ unit if count == 0 else moment + unit.T @ unit
        count += len(batch)
    if count < dim:
        raise UserError(f"PCA to dim {dim} needs at least {dim} vectors, the texts gave {count}; fit on more texts")
    if dim > len(moment):
        raise UserError(f"dim {dim} is above the backbone's hidden size {len(moment)}; choose a smaller --dim")
    if first is None or first.weight is None:
        return Projection(_principal(moment, dim).float())
    own = first.weight.double().to(moment.device)
    basis = torch.linalg.qr(own.T).Q
    left = torch.eye(len(moment), dtype=moment.dtype, device=moment.device) - basis @ basis.T
    further = _principal(left @ moment @ left, dim - len(own)) * own.norm(dim=1).mean()
    return Projection(torch.cat([own, further]).float())


def _principal(moment: Tensor, count: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues, (hidden, hidden) -> (count, hidden)."""
    directions = torch.linalg.eigh(moment).eigenvectors  # columns, smallest eigenvalue first
    largest: Tensor = directions.flip(1)[:, :count].T.contiguous()
    return largest


def load_projection(config: DiffusionConfig, folder: Path, hidden_size: int | None = None) -> Projection:
    """The checkpoint's projection, cut to the config's dim; `hidden_size` is the backbone's, None where none is loaded.

    Raises:
        UserError: the file is missing or damaged, its shape does not fit the backbone and dim, or a part of rotated
            dimensions is asked for.
    """
    if config.projection == "none":
        if hidden_size not in (None, config.dim):
            raise UserError(f"dim {config.dim} without a projection needs a backbone of that size, it has {hidden_size}")
        return Projection()
    path = folder / PROJECTION_FILE
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f'{path} is missing, the config says projection "{config.projection}"') from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); copy or convert the checkpoint again") from error
    weight = tensors.get("weight")
    if weight is None or weight.ndim != 2 or hidden_size not in (None, weight.shape[1]) or weight.shape[0] < config.dim:
        found = "no tensor `weight`" if weight is None else f"shape {tuple(weight.shape)}"
        raise UserError(f"{path} has {found}, expected (at least {config.dim}, {hidden_size or 'hidden size'})")
    if config.projection == "rotated" and weight.shape[0] > config.dim:
        raise UserError(f"{path} has {weight.shape[0]} rotated dimensions, so {config.dim} of them are no vectors; take all")
    return Projection(weight.float()).truncated(config.dim)
