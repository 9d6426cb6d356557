"""A checkpoint between the one that a training began with and what came of it: the weights' mean, of each adapter matrix too.

Usage: average.py START TRAINED OUT [--share 0.5]

What a short training learned from its own texts, without all of what it forgot for it (Wortsman et al., arXiv 2109.01903). Both
have the same adapter, projection and head. OUT keeps the records of both trainings.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.backbones.sources import WEIGHTS_FILE, settled
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import folder_aside, save_tensors
from colbert_diffusion.config import ADAPTER_FILE, COLBERT_FILE, CONFIG_FILE, HEAD_FILE, PROJECTION_FILE, DiffusionConfig

sys.path.append(str(Path(__file__).parent / "bench"))
from common import errors_in_a_line, make_parser

WEIGHTS = (ADAPTER_FILE, WEIGHTS_FILE, PROJECTION_FILE, HEAD_FILE)


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    for name in ("start", "trained", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of what was trained")
    given = parser.parse_args(arguments)
    if not 0 < given.share < 1:
        raise UserError(f"--share is {given.share:g}, expected between 0 and 1")
    if given.out.exists():
        raise UserError(f"{given.out} exists; choose another folder or delete it")
    start, trained = DiffusionConfig.load(given.start), DiffusionConfig.load(given.trained)
    with folder_aside(given.out) as aside:
        ignored = shutil.ignore_patterns(CONFIG_FILE, COLBERT_FILE, *WEIGHTS)
        shutil.copytree(given.trained, aside, ignore=ignored, dirs_exist_ok=True)
        for name in WEIGHTS:
            if (given.trained / name).is_file():
                save_tensors(mean(given.start / name, given.trained / name, given.share), aside / name)
        record = {**trained.training, "averaged": given.share, "before": dict(start.training)}
        replace(trained, backbone=settled(trained.backbone, given.trained), training=record).save(aside)
    print(DiffusionCheckpoint(given.out))


def mean(start: Path, trained: Path, share: float) -> dict[str, torch.Tensor]:
    """(1 - share) x start + share x trained, in the trained one's dtype. Raises UserError where they do not fit."""
    if not start.is_file():
        raise UserError(f"{start} is missing and {trained} is there: the two are no start and its training")
    before, after = load_file(start), load_file(trained)
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{start} and {trained} have other tensors: the two are no start and its training")
    return {name: torch.lerp(before[name].float(), after[name].float(), share).to(after[name].dtype) for name in after}


if __name__ == "__main__":
    main()
