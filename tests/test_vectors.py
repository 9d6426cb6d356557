from pathlib import Path

import numpy as np
import pytest

from colbert_diffusion import DiffusionCheckpoint, vectors
from colbert_diffusion.errors import UserError
from colbert_diffusion.vectors import VectorFiles, encode_to

from .conftest import make_texts

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
    write = vectors._write_shard
    written: list[Path] = []

    def dies_after_two(path: Path, shard: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(vectors, "_write_shard", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        encode_to(tmp_path / "parts", checkpoint.identity, lambda: checkpoint, TEXTS)
    with pytest.raises(UserError, match="incomplete"):
        VectorFiles(tmp_path / "parts")
    monkeypatch.setattr(vectors, "_write_shard", write)
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
