import json
from pathlib import Path

import pytest

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.index.manifest import MANIFEST_FILE, TEXTS, check_sizes, read_manifest, verify, write_manifest


@pytest.fixture
def index(tmp_path: Path) -> Path:
    for name in ("a.pt", "b.json"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    write_manifest(tmp_path, {"build": {"nbits": 2}})
    return tmp_path


def test_an_untouched_index_verifies(index: Path) -> None:
    assert verify(index) == []
    check_sizes(index)
    manifest = read_manifest(index)
    assert manifest is not None
    assert manifest["complete"] is True
    assert manifest["build"] == {"nbits": 2}
    write_manifest(index, {})  # over the other, which is none of the files
    assert verify(index) == []


@pytest.mark.parametrize("name", ["a.pt", "b.json"])
def test_one_flipped_byte_is_named(index: Path, name: str) -> None:
    content = bytearray((index / name).read_bytes())
    content[7] ^= 1
    (index / name).write_bytes(content)
    assert verify(index) == [f"{name}: changed (sha256 differs)"]


@pytest.mark.parametrize("name", ["a.pt", "b.json"])
def test_a_truncated_or_missing_file_is_refused_at_load(index: Path, name: str) -> None:
    (index / name).write_bytes((index / name).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{name} has"):
        check_sizes(index)
    (index / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        check_sizes(index)
    assert verify(index) == [f"{name}: missing"]


def test_an_index_without_a_manifest_cannot_be_verified_and_is_not_refused(tmp_path: Path) -> None:
    check_sizes(tmp_path)  # a stock ColBERT script wrote none
    with pytest.raises(UserError, match=MANIFEST_FILE):
        verify(tmp_path)


@pytest.mark.parametrize("texts", [{}, {"size": 3}, {"sha256": "x"}, {"size": "3", "sha256": "x"}, {"size": 3, "sha256": 7}, 3])
def test_texts_outside_without_their_size_or_hash_are_refused(texts: object, index: Path) -> None:
    write_manifest(index, {TEXTS: {"path": "t.tsv", "size": 3, "sha256": "x"}})
    assert read_manifest(index) is not None
    write_manifest(index, {TEXTS: texts})
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(index)


@pytest.mark.parametrize("entry", [{}, {"size": 3}, {"sha256": "x"}, {"size": "3", "sha256": "x"}, {"size": 3, "sha256": 7}, 3])
def test_a_file_without_its_size_or_hash_is_refused(entry: object, index: Path) -> None:
    manifest = json.loads((index / MANIFEST_FILE).read_text())
    manifest["files"]["a.pt"] = entry
    (index / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"no size and sha256 of a file 'a\.pt'"):
        read_manifest(index)
