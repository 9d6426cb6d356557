"""What decides a checkpoint's vectors, known before its weights are loaded."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from . import fingerprint
from .backbones.sources import locate
from .config import CONFIG_FILE, HEAD_FILE, RELEASED_FILE, DiffusionConfig
from .errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
UNDECIDING = frozenset({"backbone", "revision", "family", "dtype", "search", "training", "format_version"})
WEIGHING = frozenset({".safetensors", ".json", ".txt"})


@dataclass(frozen=True)
class CheckpointIdentity:
    """A checkpoint folder, resolved: its config, its backbone's folder, the device and dtype it will run in."""

    path: Path
    config: DiffusionConfig
    backbone_path: Path
    device: torch.device
    dtype: str

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the content that decides the vectors: the config's deciding fields, weights, tokenizer, backbone.

        Not of paths, dtype, provenance or search settings: an index may be searched from another place or device.
        """
        decides = {name: value for name, value in asdict(self.config).items() if name not in UNDECIDING}
        folders = (self.path, self.backbone_path)
        files = [file for folder in folders for file in folder.iterdir() if file.suffix in WEIGHING]
        files = [file for file in files if file.name not in (CONFIG_FILE, RELEASED_FILE, HEAD_FILE)]
        return fingerprint.of_texts([json.dumps(decides, sort_keys=True), fingerprint.of_files(files)])

    @property
    def head_fingerprint(self) -> str:
        """A hash of the checkpoint's own prediction head, which decides words and no vectors."""
        return fingerprint.of_files(file for file in [self.path / HEAD_FILE] if file.is_file())


def identify(path: str | Path, *, device: str | torch.device | None = None, dtype: str | None = None) -> CheckpointIdentity:
    """Resolve a checkpoint folder or hub id without loading its weights; arguments as DiffusionCheckpoint's.

    Raises:
        UserError: not a checkpoint, its backbone is not there, or the dtype is unknown.
    """
    folder = locate(str(path))
    config = DiffusionConfig.load(folder)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or config.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise UserError(f'dtype "{dtype}" is unknown; choose one of {sorted(DTYPES)}')
    backbone_path = locate(config.backbone, beside=folder, revision=config.revision)
    return CheckpointIdentity(folder, config, backbone_path, device, dtype)
