import json
import os
import random
from pathlib import Path

import colbert
import numpy as np
import pytest
import torch
from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import DiffusionCheckpoint, Indexer, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.index import indexing
from colbert_diffusion.index.indexing import check_faiss
from colbert_diffusion.seam.building import PlaidIndexer
from colbert_diffusion.seam.settings import NAMES
from colbert_diffusion.seam.shape import check_shape

from ..conftest import PARITY, TinyIndex, make_texts

TEXTS = make_texts(120, seed=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "indexes"


def build(root: Path, checkpoint: Path, texts: list[str] | str = TEXTS, **options: object) -> Path:
    config = ColBERTConfig(**{"nbits": 2, **options.pop("config", {})})  # type: ignore[dict-item]
    with Run().context(RunConfig(index_root=str(root))):
        return Path(Indexer(str(checkpoint), config, verbose=0).index("i", texts, **options))  # type: ignore[arg-type]


def files_of(index: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(index.iterdir())}


def test_every_text_is_encoded_once(root: Path, tiny_checkpoint: Path, encoded: list[str]) -> None:
    build(root, tiny_checkpoint)
    assert encoded == TEXTS


def test_an_index_from_vector_files_is_the_index_from_the_checkpoint(root: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    encode_to(tmp_path / "v", identify(tiny_checkpoint), lambda: DiffusionCheckpoint(tiny_checkpoint), TEXTS)
    one, two = build(root / "a", tiny_checkpoint), build(root / "b", tmp_path / "v")
    assert {n: b for n, b in files_of(one).items() if n.endswith(".pt")} == {
        n: b for n, b in files_of(two).items() if n.endswith(".pt")
    }
    config = json.loads((two / "metadata.json").read_text())["config"]
    assert config["checkpoint"] == str(tiny_checkpoint)  # searching needs the model, not the files
    assert (tmp_path / "v" / "vectors.json").exists()


def test_vector_files_of_another_collection_are_refused(root: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    encode_to(tmp_path / "v", identify(tiny_checkpoint), lambda: DiffusionCheckpoint(tiny_checkpoint), TEXTS)
    with pytest.raises(UserError, match="another collection"):
        build(root, tmp_path / "v", [*TEXTS[:-1], "other"])


def test_nothing_but_the_index_is_left_and_it_names_its_final_place(root: Path, tiny_checkpoint: Path) -> None:
    index = build(root, tiny_checkpoint)
    assert [p.name for p in root.iterdir()] == ["i"]
    config = json.loads((index / "metadata.json").read_text())["config"]
    assert config["collection"] == str(index / "collection.tsv")
    assert config["checkpoint"] == str(tiny_checkpoint)
    assert not any(".partial" in str(value) for value in config.values())
    assert all(config[name] is not None for name in NAMES)


def test_settings_that_the_caller_chose_are_written_as_chosen(root: Path, tiny_checkpoint: Path) -> None:
    index = build(root, tiny_checkpoint, config={"ncells": 3, "ndocs": 77})
    config = json.loads((index / "metadata.json").read_text())["config"]
    assert (config["ncells"], config["ndocs"]) == (3, 77)
    assert config["centroid_score_threshold"] is not None


def test_an_index_that_is_there_is_replaced_only_when_told_and_only_by_a_complete_one(
    root: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(build(root, tiny_checkpoint))
    with pytest.raises(UserError, match="overwrite"):
        build(root, tiny_checkpoint, TEXTS[:60])
    assert build(root, tiny_checkpoint, TEXTS[:60], overwrite="reuse") == root / "i"

    def dies(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(PlaidIndexer, "run", dies)
        with pytest.raises(RuntimeError, match="killed"):
            build(root, tiny_checkpoint, TEXTS[:60], overwrite=True)
    assert files_of(root / "i") == before
    assert (root / "i.partial" / "vectors" / "00000.safetensors").exists()  # what was encoded is not lost

    build(root, tiny_checkpoint, TEXTS[:60], overwrite=True)
    assert json.loads((root / "i" / "metadata.json").read_text())["num_embeddings"] == 60 * 8
    assert [p.name for p in root.iterdir()] == ["i"]


def test_the_process_is_left_as_it_was_found(root: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    build(root, tiny_checkpoint)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    found = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert found == expected


def test_a_tsv_collection_is_referred_to_and_not_copied(root: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS)))
    index = build(root, tiny_checkpoint, str(path))
    assert not (index / "collection.tsv").exists()
    assert Searcher("i", index_root=str(root), verbose=0).collection[3] == TEXTS[3]


def test_a_list_of_any_length_is_stored_with_the_index(tiny_index: TinyIndex) -> None:
    stock = colbert.Searcher(tiny_index.path.name, index_root=str(tiny_index.path.parent), verbose=0)
    assert list(stock.collection) == tiny_index.texts


@pytest.mark.parametrize(
    ("collection", "message"), [([], "empty"), (["a", None], "passage 1 is None"), (["a", 7], "passage 1 is 7")]
)
def test_a_collection_that_cannot_be_indexed_is_refused_before_any_work(
    root: Path, tiny_checkpoint: Path, collection: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(root, tiny_checkpoint, collection)
    assert not root.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [({"nbits": 3}, "nbits=3"), ({"nbits": 4}, "multiple of 32"), ({"dim": 64}, "dim=64"), ({"nbits": 8}, "multiple of 64")],
)
def test_a_shape_that_plaid_cannot_pack_is_refused_before_any_work(
    root: Path, tiny_checkpoint: Path, config: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(root, tiny_checkpoint, config=config)


def test_a_shape_that_breaks_colberts_gpu_kernel_is_refused_where_there_is_a_gpu(
    root: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="would need 1792 threads"):
        check_shape(3584, 4, gpu=True)
    asked: list[bool] = []
    monkeypatch.setattr(indexing, "check_shape", lambda dim, nbits, *, gpu: asked.append(gpu))
    Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=2), verbose=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=2), verbose=0)
    assert asked == [True, False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="pip install faiss-gpu"):
        check_faiss()


def test_run_settings_that_colbert_would_ignore_are_named(tiny_checkpoint: Path) -> None:
    with pytest.warns(UserWarning, match="root='/elsewhere' in ColBERTConfig is ignored"):
        Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=2, root="/elsewhere"), verbose=0)


def test_a_release_folder_is_refused_with_the_command_to_run(root: Path) -> None:
    with pytest.raises(UserError, match=r"colbert-diffusion convert .*released-dream OUT --dim 128 --fit-on TEXTS"):
        build(root, PARITY / "released-dream")


def test_what_is_no_checkpoint_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a diffusion checkpoint"):
        build(root, tmp_path)


def test_a_folder_of_the_users_own_is_refused_whatever_the_flag_before_anything_is_encoded(
    root: Path, tiny_checkpoint: Path, encoded: list[str]
) -> None:
    (root / "data").mkdir(parents=True)
    for name in ("collection.tsv", "passages.jsonl", "metadata.json"):
        (root / "data" / name).write_text("the only copy")
    for overwrite in (False, True, "resume", "force_silent_overwrite"):
        with Run().context(RunConfig(index_root=str(root))), pytest.raises(UserError, match=r"is no index .*never replaced"):
            Indexer(str(tiny_checkpoint), verbose=0).index("data", ["a cat"], overwrite=overwrite)
    assert not encoded
    assert {path.read_text() for path in (root / "data").iterdir()} == {"the only copy"}
    assert [path.name for path in root.iterdir()] == ["data"]


def test_a_file_of_the_users_survives_every_rebuild(root: Path, tiny_checkpoint: Path) -> None:
    texts = ["a cat", "a dog"]
    path = Path(build(root, tiny_checkpoint, texts))
    (path / "notes.txt").write_text("mine")
    (path / "collection.bak").symlink_to("gone")
    for _ in range(2):
        with Run().context(RunConfig(index_root=str(root))):
            Indexer(str(tiny_checkpoint), verbose=0).index(path.name, texts, overwrite=True)
    assert (path / "notes.txt").read_text() == "mine"
    assert (path / "collection.bak").is_symlink()
