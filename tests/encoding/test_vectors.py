import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.locking import writing
from colbert_diffusion.config import VECTORS_FILE
from colbert_diffusion.encoding import vectors
from colbert_diffusion.encoding.shards import write_shard
from colbert_diffusion.encoding.vectors import VectorFiles, encode_to

from ..conftest import make_texts

TEXTS = make_texts(25)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(tiny_checkpoint, verbose=0)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SHARD", 10)


def test_files_give_back_what_the_checkpoint_encodes(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    files = encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    read = list(files.read(range(len(files))))
    assert np.allclose(read, checkpoint.encode_document(TEXTS), atol=1e-3)  # float16 on disk
    assert np.array_equal(list(files.read([24, 3]))[1], read[3])


def test_an_interrupted_run_goes_on_without_encoding_twice_and_changes_no_bit(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_to(tmp_path / "whole", checkpoint.identity, lambda: checkpoint, TEXTS)
    encoded.clear()
    write = write_shard
    written: list[Path] = []

    def dies_after_two(path: Path, *shard: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *shard)

    monkeypatch.setattr(vectors, "write_shard", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        encode_to(tmp_path / "parts", checkpoint.identity, lambda: checkpoint, TEXTS)
    with pytest.raises(UserError, match="incomplete"):
        VectorFiles(tmp_path / "parts")
    monkeypatch.setattr(vectors, "write_shard", write)
    encoded.clear()
    encode_to(tmp_path / "parts", checkpoint.identity, lambda: checkpoint, TEXTS)
    assert encoded == TEXTS[20:]
    for name in ("00000", "00001", "00002"):
        one, two = (tmp_path / run / f"{name}.safetensors" for run in ("whole", "parts"))
        assert one.read_bytes() == two.read_bytes()


def test_another_collection_or_checkpoint_is_refused(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    with pytest.raises(UserError, match="collection_fingerprint"):
        encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, [*TEXTS[:-1], "other"])
    with pytest.raises(UserError, match="another run"):
        encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS[:-1])


def test_a_folder_with_other_files_is_never_written_to(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no vector files"):
        encode_to(tmp_path, checkpoint.identity, lambda: checkpoint, TEXTS)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("pid", [-1, 25, "a text"])
def test_what_is_no_pid_of_the_files_is_refused(checkpoint: DiffusionCheckpoint, tmp_path: Path, pid: int) -> None:
    files = encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    with pytest.raises(UserError, match=r"pid 0\.\.24"):
        list(files.read([pid]))


def test_a_damaged_shard_is_named(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    files = encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    shard = tmp_path / "v" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(UserError, match="00000"):
        list(files.read([0]))


def test_no_texts_are_refused(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no texts"):
        encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, [])


def damage(folder: Path, how: str) -> None:
    shard, other = folder / "00001.safetensors", folder / "00000.safetensors"
    content = bytearray(shard.read_bytes())
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}  # of their own, not of the mapped file
    if how == "zeros":
        content = bytearray(len(content))
    elif how == "a flipped bit":
        content[-20] ^= 4
    elif how == "another shard's":
        content = bytearray(other.read_bytes())
    elif how == "a length too large":
        tensors["doclens"][3] = 10**6
    elif how == "a negative length":
        tensors["doclens"][3] = -5
    elif how == "another dim":
        tensors["vectors"] = tensors["vectors"][:, :-1].contiguous()
    shard.write_bytes(content)
    if how in ("a length too large", "a negative length", "another dim"):
        save_file(tensors, shard)


DAMAGES = ["zeros", "a flipped bit", "another shard's", "a length too large", "a negative length", "another dim"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_shard_that_is_not_the_one_written_is_refused_and_only_its_passages_encoded_anew(
    how: str, checkpoint: DiffusionCheckpoint, tmp_path: Path, encoded: list[str]
) -> None:
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    whole = (tmp_path / "v" / "00001.safetensors").read_bytes()
    damage(tmp_path / "v", how)
    with pytest.raises(UserError, match=r"00001\.safetensors is (missing or )?damaged .*delete this file and run") as caught:
        list(VectorFiles(tmp_path / "v").read(range(25)))
    assert "\n" not in str(caught.value)
    (tmp_path / "v" / "00001.safetensors").unlink()
    encoded.clear()
    files = encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    assert encoded == TEXTS[10:20]
    assert (tmp_path / "v" / "00001.safetensors").read_bytes() == whole
    assert len(list(files.read(range(25)))) == 25


def test_one_passage_is_enough(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    assert len(list(encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS[:1]).read([0]))) == 1


def by_version_0_1(folder: Path) -> None:
    """Without hashes, in the manifest and in the shards."""
    about = json.loads((folder / VECTORS_FILE).read_text())
    (folder / VECTORS_FILE).write_text(json.dumps({name: value for name, value in about.items() if name != "shards"}))
    for shard in folder.glob("*.safetensors"):
        save_file({name: tensor.clone() for name, tensor in load_file(shard).items()}, shard)


@pytest.mark.parametrize(
    "how",
    [
        "a length too large",
        "lengths that cancel out",
        "another dim",
        "a passage less",
        "no vectors",
        "no doclens",
        "nan",
        "float32",
    ],
)
def test_a_shard_without_a_hash_is_checked_by_what_it_holds(how: str, checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    by_version_0_1(tmp_path / "v")
    assert len(list(VectorFiles(tmp_path / "v").read(range(25)))) == 25
    shard = tmp_path / "v" / "00001.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    if how == "a length too large":
        tensors["doclens"][3] += 1
    elif how == "lengths that cancel out":
        tensors["doclens"][3:5] = torch.tensor([-1, 17])
    elif how == "another dim":
        tensors["vectors"] = tensors["vectors"][:, :-1].contiguous()
    elif how == "a passage less":
        tensors = {"vectors": tensors["vectors"][:-8].contiguous(), "doclens": tensors["doclens"][:-1].contiguous()}
    elif how.startswith("no "):
        del tensors[how.removeprefix("no ")]
    elif how == "nan":
        tensors["vectors"][7, 3] = float("nan")
    else:
        tensors["vectors"] = tensors["vectors"].float()
    save_file(tensors, shard)
    with pytest.raises(UserError, match=r"00001\.safetensors is damaged .*delete this file and run"):
        list(VectorFiles(tmp_path / "v").read(range(25)))


@pytest.mark.parametrize(
    "change",
    [
        {"passages": 0},
        {"passages": 2.5},
        {"shard": 0},
        {"dim": "16"},
        {"dim": 2**17},
        {"dtype": None},
        {"checkpoint": 3},
        {"checkpoint_fingerprint": None},
        {"collection_fingerprint": []},
        {"shards": 7},
        {"shards": "abc"},
        {"shards": [3]},
    ],
    ids=str,
)
def test_a_field_of_the_manifest_that_readers_cannot_rely_on_is_refused(
    change: dict[str, Any], checkpoint: DiffusionCheckpoint, tmp_path: Path
) -> None:
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    about = json.loads((tmp_path / "v" / VECTORS_FILE).read_text())
    (tmp_path / "v" / VECTORS_FILE).write_text(json.dumps(about | change))
    with pytest.raises(UserError, match=rf"is damaged \(its \['{next(iter(change))}'\]\)"):
        VectorFiles(tmp_path / "v")


@pytest.mark.parametrize(
    "left",
    [
        [".vectors.json.4711.partial"],
        [".artifact.metadata.partial"],
        ["artifact.metadata"],
        ["artifact.metadata", ".vectors.json.partial"],
    ],
)
def test_a_folder_that_a_kill_left_before_it_was_claimed_is_gone_on_with(
    left: list[str], checkpoint: DiffusionCheckpoint, tmp_path: Path
) -> None:
    encode_to(tmp_path / "whole", checkpoint.identity, lambda: checkpoint, TEXTS)
    (tmp_path / "v").mkdir()
    for name in left:
        whole = tmp_path / "whole" / name
        (tmp_path / "v" / name).write_bytes(whole.read_bytes() if whole.exists() else b"{")
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    assert {p.name: p.read_bytes() for p in (tmp_path / "v").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


def test_settings_that_are_missing_beside_vectors_are_written_again(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    (tmp_path / "v" / "artifact.metadata").unlink()
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    assert (tmp_path / "v" / "artifact.metadata").is_file()


def test_two_encodings_into_one_folder_exclude_each_other(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    with writing(tmp_path / "v"), pytest.raises(UserError, match="is being written by process"):
        encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)


def test_how_many_passages_are_cut_is_told_once_at_the_end(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = DiffusionCheckpoint(tiny_checkpoint, verbose=0)
    texts = [*TEXTS, "cat " * 500]
    encode_to(tmp_path / "v", fresh.identity, lambda: fresh, texts, show_progress_bar=True)
    [told] = [line for line in capsys.readouterr().err.splitlines() if "are longer than" in line]
    assert told.startswith("1 of 26 passages are longer")
