"""An index's files are data: what is not among them is somebody's own, whatever is added is handled as its kind says."""

import json
from pathlib import Path

import pytest
from colbert.infra import Run, RunConfig

from colbert_diffusion import Indexer, IndexUpdater
from colbert_diffusion.index import indexing, layout
from colbert_diffusion.index.layout import KINDS, FileKind, chunk_of, is_own, is_stock, kind_of
from colbert_diffusion.index.manifest import read_manifest
from colbert_diffusion.index.opening import verify

from ..conftest import TinyIndex, make_texts


def build(folder: Path, checkpoint: Path, texts: list[str]) -> Path:
    with Run().context(RunConfig(index_root=str(folder.parent))):
        return Path(Indexer(str(checkpoint), verbose=0).index(folder.name, texts, overwrite=True))


def test_every_file_of_an_index_is_of_one_kind_and_every_kind_has_one_name() -> None:
    names = [kind.name.format(7) for kind in KINDS]
    assert [kind_of(name) for name in names] == list(KINDS)
    assert len(set(names)) == len(KINDS)


def test_what_an_index_writes_is_its_own(tiny_index: TinyIndex) -> None:
    manifest = read_manifest(tiny_index.path)
    assert manifest is not None
    assert {path.name for path in tiny_index.path.iterdir()} == {*manifest["files"], "index.json"}
    assert all(is_own(name) for name in manifest["files"])


@pytest.mark.parametrize(
    "name", ["notes.txt", "codes.pt", "x.codes.pt", "0.codes.pt.bak", "collection.tsv.gz", "centroids_pt", ""]
)
def test_anything_else_is_somebodys_own(name: str) -> None:
    assert kind_of(name) is None


def test_a_chunks_files_have_its_number() -> None:
    assert [chunk_of(name) for name in ("12.codes.pt", "doclens.3.json", "0.metadata.json")] == [12, 3, 0]
    assert [chunk_of(name) for name in ("centroids.pt", "metadata.json", "sample.2.pt", "notes.txt")] == [None] * 4
    assert is_stock("4.residuals.pt")
    assert not is_stock("ids.txt")
    assert not is_own("sample.0.pt")


def test_what_colberts_indexer_leaves_is_told_from_what_is_ours() -> None:
    """By the names that it writes, which nothing here decides (indexing/index_saver.py, collection_indexer.py)."""
    whole = "centroids.pt buckets.pt avg_residual.pt ivf.pt ivf.pid.pt plan.json metadata.json".split()
    chunk = "0.codes.pt 11.residuals.pt 2.metadata.json doclens.3.json".split()
    assert all(is_stock(name) and is_own(name) for name in (*whole, *chunk))
    assert is_stock("sample.0.pt")
    assert all(is_own(f"{name}.lines") for name in ("collection.tsv", "passages.jsonl", "ids.txt"))
    assert not any(is_own(f"{name}.lines") for name in (*whole, "deleted.json", "index.json"))
    assert not any(is_stock(name) for name in "collection.tsv passages.jsonl ids.txt deleted.json index.json".split())


@pytest.mark.parametrize("update", ["kept", "rewritten"])
def test_a_kind_that_is_added_is_rebuilt_recorded_verified_and_updated_as_it_says(
    update: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = FileKind("words.bin", "what comes next", "us", update)  # type: ignore[arg-type]
    monkeypatch.setattr(layout, "KINDS", (*KINDS, extra))
    store, number = indexing._store, iter(range(10))

    def storing(texts: object, folder: Path) -> Path:
        (folder / "words.bin").write_text(f"build {next(number)}")
        return store(texts, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(indexing, "_store", storing)
    texts = make_texts(30)
    index = build(tmp_path / "i", tiny_checkpoint, texts)
    (index / "mine.txt").write_text("somebody's own")
    index = build(tmp_path / "i", tiny_checkpoint, texts[:-1])
    assert (index / "words.bin").read_text() == "build 1"  # not the old one, carried over
    assert (index / "mine.txt").read_text() == "somebody's own"
    assert "words.bin" in json.loads((index / "index.json").read_text())["files"]
    assert verify(index) == []
    updater = IndexUpdater("i", index_root=str(tmp_path), verbose=0)
    updater.add(["one more"])
    updater.persist_to_disk()
    assert (index / "words.bin").exists() == (update == "kept")
    assert verify(index) == []
