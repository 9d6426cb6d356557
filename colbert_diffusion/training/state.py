"""The state of an unfinished run on disk: parameters and AdamW's moments, safetensors only, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..common.errors import UserError
from ..common.files import folder_aside, remove, save_tensors

PREFIX = "step-"
TENSORS = "state.safetensors"


def save_state(folder: Path, step: int, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Write `folder/step-<step>`; the states before it are removed once it is whole."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[name] = parameter.detach().cpu().contiguous()
        moments: Mapping[str, Tensor] = optimizer.state.get(parameter, {})
        tensors |= {f"{name}\0{moment}": value.detach().cpu().contiguous() for moment, value in moments.items()}
    whole = folder / f"{PREFIX}{step}"
    with folder_aside(whole, replace=True) as aside:
        save_tensors(tensors, aside / TENSORS)
    for earlier in folder.glob(f"{PREFIX}*"):
        if earlier != whole:
            remove(earlier)


def saved_step(folder: Path) -> int | None:
    """The step of the newest state, or None."""
    steps = [int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}*")]
    return max(steps, default=None)


def load_state(folder: Path, step: int, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Put parameters and moments back as they were saved.

    Raises:
        UserError: damaged, or of another model.
    """
    path = folder / f"{PREFIX}{step}" / TENSORS
    try:
        tensors = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); delete {path.parent} to begin again") from error
    if {name.partition("\0")[0] for name in tensors} != set(parameters):
        raise UserError(f"{path} holds other parameters than this run's; delete {folder} to begin again")
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors.pop(name))
    for name, tensor in tensors.items():
        owner, _, moment = name.partition("\0")
        device = "cpu" if moment == "step" else parameters[owner].device
        optimizer.state[parameters[owner]][moment] = tensor.to(device)
