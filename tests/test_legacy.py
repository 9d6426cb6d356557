"""Folders that earlier versions wrote still open, resume and update: 0.1 knew no locks, stamps or hashes of shards.

`fixtures/legacy` was written by commit 6f2c76c: a checkpoint over a random BERT, an index of a TSV, one of a JSONL file with
metadata, one that was updated, vector files in two shards, and a training run halfway; the paths in them were shortened since.
`fixtures/before_floors` was written by 2e66434, when the modules lay side by side: 20 passages, the same kinds of folders and
a converted checkpoint.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from colbert.infra import Run, RunConfig

from colbert_diffusion import DiffusionCheckpoint, Indexer, IndexUpdater, Searcher, build_index, open_index
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding.vectors import VectorFiles
from colbert_diffusion.index.opening import verify
from colbert_diffusion.training.log import read_log
from colbert_diffusion.training.recipe import Recipe
from colbert_diffusion.training.trainer import Data, train

QUERY = "paris germany moon"
FOUND = ([33, 30, 14], [3.6472726, 3.6310782, 3.6282074])  # by the version that built them


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    """A copy at another place, newer files included: times say nothing."""
    return Path(shutil.copytree(Path(__file__).parent / "fixtures" / "legacy", tmp_path / "legacy"))


def opened(legacy: Path, name: str) -> Searcher:
    collection = str(legacy / "texts.tsv") if name == "of-tsv" else None
    return Searcher(name, str(legacy / "checkpoint"), collection, index_root=str(legacy), verbose=0)


@pytest.mark.parametrize("name", ["of-tsv", "of-jsonl", "updated"])
def test_old_indexes_open_and_answer_as_they_did(legacy: Path, name: str) -> None:
    searcher = opened(legacy, name)
    pids, _, scores = searcher.search(QUERY, k=3)
    assert pids == FOUND[0]
    np.testing.assert_allclose(scores, FOUND[1], atol=1e-4)
    if name == "of-jsonl":
        assert searcher.ids(pids) == ["d33", "d30", "d14"]
        assert searcher.search(QUERY, k=1, where=lambda about: about["n"] == 30)[0] == [30]


@pytest.mark.parametrize("name", ["of-jsonl", "updated"])
def test_old_indexes_verify_and_take_updates(legacy: Path, name: str) -> None:
    assert verify(legacy / name) == []
    update = IndexUpdater(name, str(legacy / "checkpoint"), index_root=str(legacy), verbose=0)
    [pid] = update.add(["paris germany moon"])
    update.remove([30])
    update.persist_to_disk()
    pids, _, _ = opened(legacy, name).search(QUERY, k=50)
    assert pid in pids
    assert 30 not in pids
    assert verify(legacy / name) == []


def test_an_old_index_refers_to_its_tsv_and_notices_that_it_changed(legacy: Path) -> None:
    for name in ("metadata.json", "plan.json"):
        path = legacy / "of-tsv" / name
        about = json.loads(path.read_text())
        about["config"]["collection"] = str(legacy / "texts.tsv")
        path.write_text(json.dumps(about))
    manifest = json.loads((legacy / "of-tsv" / "index.json").read_text())
    for name in ("metadata.json", "plan.json"):
        del manifest["files"][name]
    (legacy / "of-tsv" / "index.json").write_text(json.dumps(manifest))
    searcher = Searcher("of-tsv", str(legacy / "checkpoint"), index_root=str(legacy), verbose=0)
    assert searcher.search(QUERY, k=3)[0] == FOUND[0]
    lines = (legacy / "texts.tsv").read_text().splitlines()
    (legacy / "texts.tsv").write_text("\n".join([*lines[:-1], "39\tsomething else"]) + "\n")
    with pytest.raises(UserError, match="changed since"):
        Searcher("of-tsv", str(legacy / "checkpoint"), index_root=str(legacy), verbose=0)
    assert verify(legacy / "of-tsv") == [f"{legacy / 'texts.tsv'}: changed since the index was built from its texts"]


def test_old_vector_files_are_read_and_indexed(legacy: Path) -> None:
    files = VectorFiles(legacy / "vectors")
    texts = [line.split("\t")[1] for line in (legacy / "texts.tsv").read_text().splitlines()]
    expected = DiffusionCheckpoint(legacy / "checkpoint").encode_document(texts)
    for read, own in zip(files.read(range(40)), expected, strict=True):
        np.testing.assert_allclose(read, own, atol=1e-3)
    about = json.loads((legacy / "vectors" / "vectors.json").read_text())
    (legacy / "vectors" / "vectors.json").write_text(json.dumps({**about, "checkpoint": str(legacy / "checkpoint")}))
    with Run().context(RunConfig(index_root=str(legacy))):
        Indexer(str(legacy / "vectors"), verbose=0).index("new", str(legacy / "texts.tsv"))
    assert opened(legacy, "new").search(QUERY, k=3)[0] == FOUND[0]


def test_an_old_index_is_rebuilt_in_its_place_with_what_lies_in_it_carried_over(legacy: Path) -> None:
    (legacy / "of-jsonl" / "notes.txt").write_text("mine")
    with Run().context(RunConfig(index_root=str(legacy))):
        Indexer(str(legacy / "checkpoint"), verbose=0).index("of-jsonl", str(legacy / "texts.jsonl"), overwrite=True)
    assert (legacy / "of-jsonl" / "notes.txt").read_text() == "mine"
    assert verify(legacy / "of-jsonl") == []


def test_an_old_training_run_goes_on_from_its_state(legacy: Path) -> None:
    """Saved at step 2 of 4 by the version that knew neither locks nor one swap."""
    recipe = Recipe(
        steps=4,
        batch=8,
        learning_rate=1e-3,
        temperature=0.05,
        query_tokens=12,
        passage_tokens=40,
        lora_rank=2,
        bf16=False,
        save_every=2,
    )
    out = train(legacy / "checkpoint", Data([legacy / "pairs.jsonl"]), legacy / "trained", recipe)
    losses = [entry["losses"]["loss"] for entry in read_log(legacy / "trained.training" / "log.jsonl")]
    np.testing.assert_allclose(losses, [2.279475, 2.032040, 2.007902, 2.251574], rtol=1e-3)  # those of one run by that version
    assert len(DiffusionCheckpoint(out).encode_document(["paris"])) == 1


# Written when the modules lay side by side -------------------------------------------------------------------------------

FOUND_BEFORE = ([5, 2, 14], [3.6165633, 3.6101665, 3.6090381])


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "fixtures" / "before_floors", tmp_path / "before"))


@pytest.mark.parametrize("name", ["of-tsv", "of-jsonl", "updated"])
def test_indexes_from_before_the_floors_answer_verify_and_take_updates(before: Path, name: str) -> None:
    collection = before / "texts.tsv" if name == "of-tsv" else None
    searcher = open_index(before / name, checkpoint=before / "checkpoint", collection=collection)
    pids, _, scores = searcher.search(QUERY, k=3)
    assert pids == FOUND_BEFORE[0]
    np.testing.assert_allclose(scores, FOUND_BEFORE[1], atol=1e-4)
    assert verify(before / name, collection) == []
    update = IndexUpdater(str(before / name), str(before / "checkpoint"), verbose=0, collection=collection)
    [pid] = update.add([QUERY])
    update.remove([5])
    update.persist_to_disk()
    found = open_index(before / name, checkpoint=before / "checkpoint").search(QUERY, k=30)[0]
    assert pid in found
    assert 5 not in found
    assert verify(before / name) == []


def test_checkpoints_and_vectors_from_before_the_floors_are_read_and_indexed(before: Path) -> None:
    texts = [line.split("\t")[1] for line in (before / "texts.tsv").read_text().splitlines()]
    expected = DiffusionCheckpoint(before / "checkpoint").encode_document(texts)
    for read, own in zip(VectorFiles(before / "vectors").read(range(20)), expected, strict=True):
        np.testing.assert_allclose(read, own, atol=1e-3)
    about = json.loads((before / "vectors" / "vectors.json").read_text())
    (before / "vectors" / "vectors.json").write_text(json.dumps({**about, "checkpoint": str(before / "checkpoint")}))
    built = build_index(before / "new", before / "texts.tsv", before / "vectors", verbose=0)
    assert open_index(built).search(QUERY, k=3)[0] == FOUND_BEFORE[0]
    shutil.copytree(before / "tiny-bert", before / "base")
    converted = json.loads((before / "converted" / "diffusion.json").read_text())
    (before / "converted" / "diffusion.json").write_text(json.dumps({**converted, "backbone": "../base"}))
    assert DiffusionCheckpoint(before / "converted").encode_query(["moon"])[0].shape == (4, 8)


def test_a_training_run_from_before_the_floors_goes_on(before: Path) -> None:
    recipe = Recipe(
        steps=4,
        batch=8,
        learning_rate=1e-3,
        temperature=0.05,
        query_tokens=12,
        passage_tokens=40,
        lora_rank=2,
        bf16=False,
        save_every=2,
    )
    train(before / "checkpoint", Data([before / "pairs.jsonl"]), before / "trained", recipe)
    losses = [entry["losses"]["loss"] for entry in read_log(before / "trained.training" / "log.jsonl")]
    np.testing.assert_allclose(losses, [2.279475, 2.032040, 2.007902, 2.251574], rtol=1e-3)
