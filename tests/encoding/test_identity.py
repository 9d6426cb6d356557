"""A fingerprint names what decides a checkpoint's vectors: all of it, and nothing else."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from colbert_diffusion.backbones import FAMILIES
from colbert_diffusion.backbones.sources import TOKENIZER_FILES, weight_files
from colbert_diffusion.common import fingerprint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import DiffusionConfig
from colbert_diffusion.encoding.identity import identify


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with a projection and a copy of its base inside."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    config = DiffusionConfig.load(folder)
    shutil.copytree(identify(tiny_checkpoint).backbone_path, folder / "base")
    replace(config, backbone="base", projection="learned").save(folder)
    save_file({"weight": torch.eye(config.dim)}, folder / "projection.safetensors")
    return folder


def edit_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}, indent=8))


def test_it_is_the_same_wherever_the_folder_stands(checkpoint: Path, tmp_path: Path) -> None:
    expected = identify(checkpoint).fingerprint
    for name in ("aaa", "zzz"):
        assert identify(shutil.copytree(checkpoint, tmp_path / name)).fingerprint == expected
    shutil.move(checkpoint / "base", tmp_path / "0-elsewhere")
    replace(DiffusionConfig.load(checkpoint), backbone=str(tmp_path / "0-elsewhere")).save(checkpoint)
    assert identify(checkpoint).fingerprint == expected


UNREAD: dict[str, Callable[[Path], object]] = {
    "a note": lambda folder: (folder / "NOTES.txt").write_text("trained on Tuesday"),
    "a note in the base": lambda folder: (folder / "base" / "requirements.txt").write_text("x"),
    "results": lambda folder: (folder / "eval_results.json").write_text("{}"),
    "another model beside": lambda folder: save_file({"x": torch.ones(1)}, folder / "base" / "openvino.safetensors"),
    "bookkeeping": lambda folder: edit_json(
        folder / "base" / "config.json", transformers_version="9", _name_or_path="/elsewhere"
    ),
    "a chat template": lambda folder: edit_json(
        folder / "base" / "tokenizer_config.json", chat_template="x", name_or_path="/y"
    ),
}


@pytest.mark.parametrize("change", UNREAD.values(), ids=UNREAD.keys())
def test_what_is_not_read_does_not_count(checkpoint: Path, change: Callable[[Path], object]) -> None:
    expected = identify(checkpoint).fingerprint
    change(checkpoint)
    assert identify(checkpoint).fingerprint == expected


def other_weight(file: Path) -> None:
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[7] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def weights_of_its_own(folder: Path) -> None:
    shutil.copy(folder / "base" / "model.safetensors", folder)
    other_weight(folder / "model.safetensors")


def in_a_subfolder(base: Path) -> None:
    """The same weights as transformers reads them from a sharded folder of folders."""
    (base / "shards").mkdir()
    names = load_file(base / "model.safetensors")
    (base / "model.safetensors").rename(base / "shards" / "one.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "shards/one.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


READ: dict[str, Callable[[Path], object]] = {
    "a weight of the base": lambda folder: other_weight(folder / "base" / "model.safetensors"),
    "the projection": lambda folder: other_weight(folder / "projection.safetensors"),
    "the base's config": lambda folder: edit_json(folder / "base" / "config.json", layer_norm_eps=1e-3),
    "a vocabulary": lambda folder: (folder / "base" / "tokenizer.model").write_bytes(b"other pieces"),
    "the tokenizer's settings": lambda folder: edit_json(folder / "base" / "tokenizer_config.json", do_lower_case=False),
    "a tokenizer of its own": lambda folder: shutil.copy(folder / "base" / "vocab.txt", folder),
    "weights of its own": weights_of_its_own,
    "the prompt's length": lambda folder: replace(DiffusionConfig.load(folder), passage_max_length=20).save(folder),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ.keys())
def test_what_is_read_counts(checkpoint: Path, change: Callable[[Path], object]) -> None:
    before = identify(checkpoint).fingerprint
    change(checkpoint)
    assert identify(checkpoint).fingerprint != before


def test_weights_in_subfolders_count(checkpoint: Path) -> None:
    in_a_subfolder(checkpoint / "base")
    [shard] = weight_files(checkpoint / "base")
    before = identify(checkpoint).fingerprint
    other_weight(shard)
    assert identify(checkpoint).fingerprint != before


@pytest.mark.parametrize("offset", [0, 90 * 2**20, 200 * 2**20 - 1])
def test_every_byte_of_a_large_file_counts(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)
    before = fingerprint.of_file(path)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\1")
    assert fingerprint.of_file(path) != before


def test_every_file_of_a_tokenizer_has_a_name() -> None:
    """Of those of the families, and of the sentencepiece ones that AutoTokenizer may choose."""
    names = {family.tokenizer for family in FAMILIES.values()} - {None}
    for name in {*names, "BertTokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "T5Tokenizer", "XLMRobertaTokenizer"}:
        assert set(getattr(transformers, str(name)).vocab_files_names.values()) <= set(TOKENIZER_FILES)


def test_records_of_version_0_1_name_the_same_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    identity = identify(checkpoint)
    for recorded in identity._earlier_fingerprints():
        assert len(recorded) == 16
        assert identity.is_named(recorded)
        assert identity.current({"checkpoint": recorded, "nbits": 2}, "checkpoint") == {
            "checkpoint": identity.fingerprint,
            "nbits": 2,
        }
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    other_weight(other / "projection.safetensors")
    assert not identify(other).is_named(identity.fingerprint)
    assert not any(identify(other).is_named(recorded) for recorded in identity._earlier_fingerprints())
    assert identify(other).current({"checkpoint": "f743ad0bd116e7c2"}, "checkpoint") == {"checkpoint": "f743ad0bd116e7c2"}


def test_an_earlier_hash_of_a_large_file_is_of_64_slices_and_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As version 0.1 wrote it down, so that its indexes open."""
    monkeypatch.setattr(fingerprint, "WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "SLICE", 10)
    path = tmp_path / "model.safetensors"
    content = bytearray(range(256)) * 8
    path.write_bytes(content)
    starts = [(len(content) - 10) * i // 63 for i in range(64)]
    sliced = b"".join(content[start : start + 10] for start in starts)
    expected = hashlib.sha256(b"model.safetensors\0" + b"2048\0" + sliced).hexdigest()[:16]
    assert fingerprint.of_files([path]) == expected
    content[starts[30] + 5] ^= 1
    path.write_bytes(content)
    assert fingerprint.of_files([path]) != expected


def test_device_and_dtype_are_those_asked_for_or_else_the_checkpoints_or_the_devices(checkpoint: Path) -> None:
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        found = identify(checkpoint, device=device)
        assert (found.device, found.dtype) == (torch.device(device), dtype)
        assert identify(checkpoint, device=device, dtype="float16").dtype == "float16"
    replace(DiffusionConfig.load(checkpoint), dtype="float16").save(checkpoint)
    assert identify(checkpoint, device="cuda").dtype == "float16"
    assert identify(checkpoint, device="cuda", dtype="float32").dtype == "float32"
    with pytest.raises(UserError, match="choose one of"):
        identify(checkpoint, dtype="float8")
