"""What decides a checkpoint's vectors, known before its weights are loaded."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..backbones import find_family
from ..backbones.adapters import DECIDING
from ..backbones.family import NOT_PASSED_ON
from ..backbones.sources import TOKENIZER_CONFIG_FILE, locate, published_config, read_from, tokenizer_files, weight_files
from ..common import fingerprint
from ..common.errors import UserError
from ..common.files import read_json
from ..config import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CONFIG_FILE, HEAD_FILE, PROJECTION_FILE, RELEASED_FILE, DiffusionConfig

DTYPES = ("float32", "bfloat16", "float16")
UNDECIDING = frozenset({"backbone", "revision", "family", "dtype", "search", "training", "format_version"})
UNDECIDING_OF_BACKBONE = NOT_PASSED_ON - {"model_type"}
UNDECIDING_OF_TOKENIZER = frozenset({"name_or_path", "tokenizer_file", "auto_map", "chat_template"})  # prompts are the config's
EARLIER_DIGITS = 16  # of version 0.1's fingerprints, which take six hashes of every file to tell
WEIGHING = frozenset({".safetensors", ".json", ".txt"})  # what version 0.1 hashed, whatever it was


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

        Each part counts by its role and its name in its folder: not by paths, and nothing that is not read. Not dtype,
        provenance or search settings either: an index may be searched from another place or device.
        """
        own, base = self.path, self.backbone_path
        model = published_config(base)
        parts = {
            "config": _canonical(self._deciding()),
            "family": find_family(str(model.get("model_type")), self.config.family).name,
            "model": _canonical(_without(model, UNDECIDING_OF_BACKBONE)),
        }
        weights = read_from(weight_files, own, base)
        parts |= _hashed("weights", weights, weight_files(weights))
        tokenizer = read_from(tokenizer_files, own, base)
        settings = tokenizer / TOKENIZER_CONFIG_FILE
        parts |= _hashed("tokenizer", tokenizer, (file for file in tokenizer_files(tokenizer) if file != settings))
        if settings.is_file():
            parts[f"tokenizer {settings.name}"] = _canonical(_without(read_json(settings), UNDECIDING_OF_TOKENIZER))
        if (own / ADAPTER_CONFIG_FILE).is_file():
            adapter = read_json(own / ADAPTER_CONFIG_FILE)
            parts["adapter"] = _canonical({name: adapter[name] for name in DECIDING if adapter.get(name)})
            parts |= _hashed("adapter", own, [own / ADAPTER_FILE])
        if self.config.projection != "none":
            parts |= _hashed("projection", own, [own / PROJECTION_FILE])
        return fingerprint.of_contents(parts)

    def is_named(self, recorded: object) -> bool:
        """Whether a fingerprint that some version of this package wrote down is this checkpoint's."""
        if isinstance(recorded, str) and len(recorded) == EARLIER_DIGITS:
            return any(recorded == earlier for earlier in self._earlier_fingerprints())
        return recorded == self.fingerprint

    def current(self, record: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A record with this checkpoint's fingerprint under `name` as this version writes it."""
        return {**record, name: self.fingerprint} if self.is_named(record.get(name)) else dict(record)

    def _earlier_fingerprints(self) -> Iterator[str]:
        """What version 0.1 may have called it: it hashed every file of both folders, in the order of their paths then."""
        decides = json.dumps(self._deciding(), sort_keys=True)
        named = {CONFIG_FILE, RELEASED_FILE, HEAD_FILE}
        own, base = (
            sorted(file for file in folder.iterdir() if file.suffix in WEIGHING and file.name not in named)
            for folder in (self.path, self.backbone_path)
        )
        read = {self.path / name for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE, PROJECTION_FILE)}
        for folder in (self.path, self.backbone_path):
            read |= {folder / "config.json", *weight_files(folder), *tokenizer_files(folder)}
        for order in (sorted([*own, *base]), [*own, *base], [*base, *own]):
            for files in (order, [file for file in order if file in read]):
                yield fingerprint.of_texts([decides, fingerprint.of_files(files)])

    def _deciding(self) -> dict[str, Any]:
        return _without(self.config.content(), UNDECIDING)

    @cached_property
    def words_fingerprint(self) -> str:
        """A hash of what decides the predicted words: the vectors' own, and the head, wherever it comes from."""
        own = [self.path / HEAD_FILE]
        head = _hashed("head", self.path, own) or _hashed("head", self.backbone_path, weight_files(self.backbone_path))
        return fingerprint.of_contents({"states": self.fingerprint, **head})

    @property
    def head_fingerprint(self) -> str:
        """A hash of the checkpoint's own prediction head, which decides words and no vectors."""
        return fingerprint.of_contents(_hashed("head", self.path, [self.path / HEAD_FILE]))


def _hashed(role: str, folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Role and relative name -> hash of the content, of the files that are there."""
    return {f"{role} {file.relative_to(folder)}": fingerprint.of_file(file) for file in files if file.is_file()}


def _without(fields: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


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
