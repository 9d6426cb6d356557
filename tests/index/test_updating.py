"""Adding and removing passages, and searching among those that a filter allows."""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import colbert
import numpy as np
import pytest
import torch
from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig, Indexer, IndexUpdater, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import read_json, write_json
from colbert_diffusion.index import updating
from colbert_diffusion.index.manifest import read_manifest, verify
from colbert_diffusion.index.places import Places
from colbert_diffusion.index.trial import random_vectors
from colbert_diffusion.index.updating import _more_centroids
from colbert_diffusion.seam import building

from ..conftest import TinyIndex, make_texts

QUERIES = make_texts(20, seed=9)
NEW = make_texts(60, seed=77)
GONE = random.Random(0).sample(range(300), 60)


def build(path: Path, checkpoint: Path, texts: list[str] | str, **options: Any) -> Path:
    with Run().context(RunConfig(index_root=str(path.parent))):
        return Path(Indexer(str(checkpoint), ColBERTConfig(nbits=2), verbose=0).index(path.name, texts, **options))


def opened(index: Path, config: ColBERTConfig | None = None) -> Searcher:
    return Searcher(index.name, config=config, index_root=str(index.parent), verbose=0)


def exhaustive(index: Path) -> Searcher:
    """Every centroid probed, every passage scored."""
    partitions = len(torch.load(index / "centroids.pt"))
    return opened(index, ColBERTConfig(ncells=partitions, centroid_score_threshold=-2.0, ndocs=10_000))


def updater(index: Path, **options: Any) -> IndexUpdater:
    return IndexUpdater(index.name, index_root=str(index.parent), verbose=0, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def index(tiny_index: TinyIndex, tmp_path: Path) -> Path:
    """A copy of the shared index, free to change."""
    return Path(shutil.copytree(tiny_index.path, tmp_path / "root" / "i"))


@pytest.fixture(scope="module")
def updated(tiny_index: TinyIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared index without GONE and with NEW."""
    index = Path(shutil.copytree(tiny_index.path, tmp_path_factory.mktemp("updated") / "i"))
    update = updater(index)
    update.remove(GONE)
    assert update.add(NEW) == list(range(300, 360))
    assert update.persist_to_disk() == str(index)
    return index


def test_recall_after_an_update_is_that_of_a_rebuild_of_the_live_passages(tiny_checkpoint: Path, tmp_path: Path) -> None:
    count, queries = 2000, make_texts(500, seed=9)
    texts, new, gone = make_texts(count), make_texts(count // 5, seed=77), random.Random(0).sample(range(count), count // 5)
    index = build(tmp_path / "updated", tiny_checkpoint, texts)
    update = updater(index)
    update.remove(gone)
    update.add(new)
    update.persist_to_disk()
    live = sorted(set(range(len(texts + new))) - set(gone))
    rebuilt = build(tmp_path / "rebuilt", tiny_checkpoint, [(texts + new)[pid] for pid in live])

    checkpoint = DiffusionCheckpoint(tiny_checkpoint)
    documents = torch.from_numpy(np.stack(checkpoint.encode_document([(texts + new)[pid] for pid in live])))
    vectors = torch.from_numpy(np.stack(checkpoint.encode_query(queries)))
    exact = [{live[i] for i in (documents @ q.T).amax(1).sum(1).topk(10).indices} for q in vectors]

    def recall(searcher: Searcher, ids: list[int]) -> float:
        found = ({ids[pid] for pid in searcher.dense_search(q[None], k=10)[0]} for q in vectors)
        return sum(len(a & b) for a, b in zip(found, exact, strict=True)) / (10 * len(queries))

    pids = list(range(len(texts + new)))
    # Two codecs of 5,000 neighbours of random vectors differ by .01; the figures on real passages are in updating.py.
    assert recall(opened(index), pids) >= recall(opened(rebuilt), live) - 0.02


def test_an_updated_index_verifies_and_gives_a_stock_searcher_the_same_results(updated: Path) -> None:
    assert verify(updated) == []
    stock = colbert.Searcher(updated.name, index_root=str(updated.parent), verbose=0)
    ours = opened(updated)
    for query in QUERIES:
        theirs, own = stock.search(query, k=20), ours.search(query, k=20)
        assert own[1:] == (theirs[1], theirs[2])
        tied = sorted(zip(theirs[2], theirs[0], strict=True), key=lambda pair: (-pair[0], pair[1]))  # by pid, as ours
        last = own[2][-1]  # whose equals may lie behind the end
        assert [(score, pid) for score, pid in tied if score > last] == [
            (score, pid) for pid, score in zip(own[0], own[2], strict=True) if score > last
        ]
    assert list(stock.collection) == list(ours.collection)


def test_the_ids_and_scores_of_the_other_passages_stay(tiny_index: TinyIndex, updated: Path) -> None:
    before, after = exhaustive(tiny_index.path), exhaustive(updated)
    texts = list(after.collection)
    assert texts == [("" if pid in GONE else text) for pid, text in enumerate(tiny_index.texts + NEW)]
    for query in QUERIES:
        old, new = (dict(zip(*np.array(s.search(query, k=400), dtype=object)[[0, 2]], strict=True)) for s in (before, after))
        assert {pid: score for pid, score in new.items() if pid < 300} == {p: s for p, s in old.items() if p not in GONE}


def test_removed_passages_never_come_back(updated: Path) -> None:
    live, whole, plain = set(range(360)) - set(GONE), exhaustive(updated), opened(updated)
    for query in [*QUERIES, *(make_texts(300)[pid] for pid in GONE[:20])]:
        assert set(whole.search(query, k=360)[0]) == live
        assert set(plain.search(query, k=360)[0]) <= live
    with pytest.raises(UserError, match=r"1 pids were removed from the index \(first: "):
        plain.search(QUERIES[0], pids=[300, GONE[0]])


def test_the_inverted_lists_are_those_that_colbert_writes(tiny_index: TinyIndex) -> None:
    pids, lengths = torch.load(tiny_index.path / "ivf.pid.pt")
    ours = updating._inverted(tiny_index.path, len(lengths), [])
    assert [tensor.dtype for tensor in ours] == [pids.dtype, lengths.dtype]
    assert torch.equal(ours[0], pids[: int(lengths.sum())])  # the rest is padding
    assert torch.equal(ours[1], lengths)


def test_updates_follow_on_one_another(index: Path, tiny_index: TinyIndex) -> None:
    update = updater(index)
    assert update.add(NEW[:10]) == list(range(300, 310))
    update.remove([0, 305])  # one that is not even on disk yet
    assert update.add(NEW[10:20]) == list(range(310, 320))
    update.persist_to_disk()
    update.remove([1, 310])
    update.persist_to_disk()
    again = updater(index)
    assert again.add(NEW[20:30]) == list(range(320, 330))
    assert again.persist_to_disk() == str(index)
    gone = {0, 1, 305, 310}
    assert list(opened(index).collection) == ["" if p in gone else t for p, t in enumerate(tiny_index.texts + NEW[:30])]
    assert set(exhaustive(index).search(NEW[29], k=400)[0]) == set(range(330)) - gone
    build = (read_manifest(index) or {})["build"]
    assert (build["added"], build["removed"], build["passages"]) == (30, 4, 330)
    assert verify(index) == []


def test_nothing_on_disk_changes_before_persisting_nor_by_persisting_nothing(index: Path) -> None:
    before = files_of(index)
    update = updater(index)
    update.persist_to_disk()
    update.add([])
    update.remove([])
    update.persist_to_disk()
    update.add(NEW)
    update.remove(GONE)
    assert files_of(index) == before
    assert [path.name for path in index.parent.iterdir()] == ["i"]


class Killed(BaseException):
    pass


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Make the n-th rename, removal or link of a process its last act."""
    left = [-1]

    def stepping(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise Killed
            return original(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "link"), (shutil, "rmtree"), (torch, "save")):
            patch.setattr(module, name, stepping(getattr(module, name)))

        def arm(step: int) -> None:
            left[0] = step

        yield arm


@pytest.mark.parametrize("by_another", [False, True], ids=["same updater", "another process"])
def test_killed_at_any_step_an_index_is_served_whole_and_the_update_can_be_repeated(
    by_another: bool, index: Path, updated: Path, kill_at: Callable[[int], None]
) -> None:
    pristine = shutil.copytree(index, index.parent.parent / "pristine")
    expected = {name: data for name, data in files_of(updated).items() if name.endswith(".pt") or name == "collection.tsv"}
    deaths = 0
    while True:
        update = updater(index)
        update.remove(GONE)
        update.add(NEW)
        kill_at(deaths)
        try:
            update.persist_to_disk()
        except Killed:
            deaths += 1
        else:
            break
        finally:
            kill_at(-1)
        served = updater(index)  # opens only what is complete
        assert verify(index) == []
        assert served._passages in (300, 360)
        if by_another and served._passages == 300:
            update = served
            update.remove(GONE)
            update.add(NEW)
        update.persist_to_disk()
        assert verify(index) == []
        assert {name: data for name, data in files_of(index).items() if name in expected} == expected
        assert not (index.parent / "i.partial").exists()
        shutil.rmtree(index)
        shutil.copytree(pristine, index)
    assert deaths > 20


def test_what_an_interrupted_update_encoded_is_not_encoded_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = updater(index)
    update.add(NEW)
    with monkeypatch.context() as patch:
        patch.setattr(updating, "write_manifest", None)
        with pytest.raises(TypeError):
            update.persist_to_disk()
    monkeypatch.setattr(updating, "DiffusionCheckpoint", None)
    repeated = updater(index)
    repeated.add(NEW)
    repeated.persist_to_disk()
    assert len(opened(index).collection) == 360


def test_an_index_of_many_chunks_updates_as_one_of_a_single_chunk(
    tiny_index: TinyIndex, tiny_checkpoint: Path, updated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "CHUNK", 70)
    index = build(tmp_path / "i", tiny_checkpoint, tiny_index.texts)
    assert len(list(index.glob("*.codes.pt"))) > 1
    update = updater(index)
    update.remove(GONE)
    update.add(NEW)
    update.persist_to_disk()
    many, one = opened(index), opened(updated)
    assert [many.search(q, k=20) for q in QUERIES] == [one.search(q, k=20) for q in QUERIES]

    monkeypatch.setattr(updating, "CHUNK", 25)
    update.add(NEW)
    update.persist_to_disk()
    assert len(list(index.glob("*.codes.pt"))) == 5 + 3  # the first update filled the last chunk
    offset = 0
    for chunk in range(8):
        about = read_json(index / f"{chunk}.metadata.json")
        assert about["embedding_offset"] == offset
        offset += about["num_embeddings"]
    assert set(exhaustive(index).search(QUERIES[0], k=420)[0]) == set(range(420)) - set(GONE)


def test_unchanged_files_are_shared_with_the_old_index_or_copied_where_they_cannot_be(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged = ("0.residuals.pt", "0.codes.pt", "centroids.pt")
    before = {name: (index / name).stat().st_ino for name in unchanged}
    update = updater(index)
    update.remove([1])
    update.persist_to_disk()
    assert {name: (index / name).stat().st_ino for name in unchanged} == before

    def refuses(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuses)
    update.remove([2])
    update.persist_to_disk()
    assert verify(index) == []
    assert {name: (index / name).stat().st_ino for name in unchanged} != before


def test_a_collection_of_the_users_own_stays_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.tsv"
    own.write_text("".join(f"{pid}\t{text}\ttitle {pid}\n" for pid, text in enumerate(make_texts(50))))
    before = own.read_text()
    index = build(tmp_path / "i", tiny_checkpoint, str(own))
    (index / "notes.txt").write_text("mine")
    update = updater(index)
    update.remove([3])
    update.add(["a new\none"])
    update.persist_to_disk()
    assert own.read_text() == before
    for searcher in (opened(index), colbert.Searcher("i", index_root=str(tmp_path), verbose=0)):
        assert searcher.config.collection.path == str(index / "collection.tsv")
        assert [searcher.collection[pid] for pid in (2, 3, 50)] == [f"title 2 | {make_texts(50)[2]}", "", "a new one"]
    assert (index / "notes.txt").read_text() == "mine"


def test_an_index_of_a_stock_script_updates_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.tsv"
    own.write_text("".join(f"{pid}\t{text}\n" for pid, text in enumerate(make_texts(50))))
    with Run().context(RunConfig(index_root=str(tmp_path), avoid_fork_if_possible=True)):
        colbert.Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=2), verbose=0).index("i", str(own))
    update = updater(tmp_path / "i", collection=str(own))
    update.remove([3])
    update.add(NEW)
    update.persist_to_disk()
    assert set(exhaustive(tmp_path / "i").search("cat", k=200)[0]) == set(range(110)) - {3}
    assert verify(tmp_path / "i") == []


@pytest.mark.parametrize(
    ("pids", "message"),
    [
        ([300], r"pids 0\.\.299"),
        ([-1], r"first: -1"),
        ([7], "already removed"),
        (["a"], "whole number"),
        ([True], "of type bool"),
    ],
)
def test_pids_that_cannot_be_removed_are_refused_and_none_is_removed(index: Path, pids: list[Any], message: str) -> None:
    update = updater(index)
    update.remove([7])
    with pytest.raises(UserError, match=message):
        update.remove([*pids, 8])
    with pytest.raises(UserError, match="expected a list of whole numbers"):
        update.remove(7)  # type: ignore[arg-type]
    update.remove([8])


def test_passages_that_are_no_strings_are_refused(index: Path) -> None:
    with pytest.raises(UserError, match="passage 1 is None"):
        updater(index).add(["a", None])  # type: ignore[list-item]
    with pytest.raises(UserError, match="not one string"):
        updater(index).add("a cat")


def test_an_index_cannot_be_emptied_but_can_change_wholly(index: Path) -> None:
    update = updater(index)
    update.remove(range(300))
    with pytest.raises(UserError, match=r"every passage .* delete the folder"):
        update.persist_to_disk()
    [pid] = update.add(["the cat runs"])
    update.persist_to_disk()
    searcher = opened(index)
    for query in QUERIES:  # most centroids have no passage any more
        assert set(searcher.search(query)[0]) <= {pid}
    assert exhaustive(index).search(QUERIES[0])[0] == [pid]


def test_another_checkpoint_is_refused_and_none_is_needed_to_remove(
    index: Path, tiny_config: DiffusionConfig, tmp_path: Path
) -> None:
    replace(tiny_config, query_max_length=12).save(tmp_path / "other")
    with pytest.raises(UserError, match="fingerprint"):
        updater(index, checkpoint=str(tmp_path / "other")).add(["a cat"])
    update = updater(index, checkpoint=str(tmp_path / "absent"))
    update.remove([0])
    update.persist_to_disk()
    assert 0 not in opened(index).search(QUERIES[0], k=300)[0]


def test_an_index_that_changed_since_it_was_opened_is_not_overwritten(index: Path) -> None:
    one, two = updater(index), updater(index)
    one.remove([1])
    two.remove([2])
    one.persist_to_disk()
    with pytest.raises(UserError, match="open it again"):
        two.persist_to_disk()
    assert set(exhaustive(index).search(QUERIES[0], k=300)[0]) == set(range(300)) - {1}


def test_an_unfinished_rebuild_is_not_thrown_away(index: Path) -> None:
    rebuild = index.parent / "i.partial"
    write_json(rebuild / "build.json", {"checkpoint": "x"})
    (rebuild / "vectors").mkdir()
    update = updater(index)
    update.remove([1])
    with pytest.raises(UserError, match="unfinished rebuild"):
        update.persist_to_disk()
    assert (rebuild / "vectors").exists()


# Filters ------------------------------------------------------------------------------------------------------


YEARS = [{"year": 1900 + pid % 50} for pid in range(300)]


def since(year: int) -> Callable[[Mapping[str, Any]], bool]:
    return lambda passage: passage.get("year", 0) >= year


@pytest.fixture(scope="module")
def dated(tiny_index: TinyIndex, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dated") / "i", tiny_checkpoint, tiny_index.texts, metadata=YEARS)


@pytest.mark.parametrize("year", [1901, 1925, 1949])
@pytest.mark.parametrize("ndocs", [None, 800])  # 200 passages are scored: since 1901 more than that are allowed
def test_a_filtered_search_is_an_exhaustive_one_filtered(dated: Path, year: int, ndocs: int | None) -> None:
    whole = exhaustive(dated)
    partitions = len(whole.ranker.codec.centroids)
    config = ndocs and ColBERTConfig(ncells=partitions, centroid_score_threshold=-2.0, ndocs=ndocs)
    searcher = opened(dated, config or None)
    for query in QUERIES:
        pids, _, scores = whole.search(query, k=300)
        expected = [(pid, score) for pid, score in zip(pids, scores, strict=True) if YEARS[pid]["year"] >= year][:10]
        found, ranks, scores = searcher.search(query, k=10, where=since(year))
        assert sorted(zip(found, scores, strict=True)) == sorted(expected)
        assert ranks == list(range(1, len(expected) + 1))


@pytest.mark.parametrize(("k", "year"), [(10, 1949), (5, 1949), (300, 1910), (300, 1900)])
def test_a_filter_leaves_as_many_passages_as_there_are_however_few_are_probed(dated: Path, k: int, year: int) -> None:
    narrow = opened(dated, ColBERTConfig(ncells=1, centroid_score_threshold=0.5, ndocs=8))
    allowed = sum(entry["year"] >= year for entry in YEARS)
    for query in QUERIES:
        pids, _, _ = narrow.search(query, k=k, where=since(year))
        assert len(set(pids)) == min(k, allowed)
        assert all(YEARS[pid]["year"] >= year for pid in pids)


def test_filters_and_pids_restrict_together(dated: Path) -> None:
    searcher = opened(dated)
    found = searcher.search(QUERIES[0], k=50, where=since(1940), pids=list(range(100)))[0]
    assert sorted(found) == [*range(40, 50), *range(90, 100)]
    odd = lambda pids: pids[pids % 2 == 1]  # noqa: E731
    assert sorted(searcher.search(QUERIES[0], k=50, where=since(1940), pids=list(range(100)), filter_fn=odd)[0]) == [
        *range(41, 50, 2),
        *range(91, 100, 2),
    ]
    with pytest.raises(UserError, match=r"pids 0\.\.299"):
        searcher.search(QUERIES[0], where=since(1940), pids=[300])


def test_nothing_allowed_is_nothing_found(dated: Path) -> None:
    searcher = opened(dated)
    assert searcher.search(QUERIES[0], where=since(2000)) == ([], [], [])
    assert searcher.search(QUERIES[0], where=since(1900), pids=[]) == ([], [], [])
    assert searcher.search(QUERIES[0], pids=[]) == ([], [], [])


def test_a_filter_without_metadata_is_refused(tiny_index: TinyIndex) -> None:
    with pytest.raises(UserError, match="stores no metadata"):
        tiny_index.searcher().search(QUERIES[0], where=since(1900))
    with pytest.raises(UserError, match="stores no metadata"):
        updater(tiny_index.path).add(["a cat"], metadata=[{}])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (YEARS[:-1], "299 metadata entries for 300 passages"),
        ([*YEARS[:-1], {"when": object()}], "entry 299 is no JSON object"),
        ([*YEARS[:-1], 7], "entry 299 is no JSON object"),
        ([*YEARS[:-1], {"score": float("nan")}], "entry 299 is no JSON object"),
    ],
)
def test_metadata_that_cannot_be_stored_is_refused_before_any_work(
    tiny_index: TinyIndex, tiny_checkpoint: Path, tmp_path: Path, metadata: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path / "root" / "i", tiny_checkpoint, tiny_index.texts, metadata=metadata)
    assert not (tmp_path / "root").exists()


def test_metadata_follows_updates_and_removed_passages_are_never_asked_about(dated: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(dated, tmp_path / "i"))
    update = updater(index)
    update.add(NEW[:2], metadata=[{"year": 2001}, {"year": 2002}])
    update.add(NEW[2:3])
    update.remove([0, 300])
    update.persist_to_disk()
    asked: list[Mapping[str, Any]] = []
    found = opened(index).search(QUERIES[0], k=400, where=lambda passage: asked.append(passage) or True)[0]  # type: ignore[func-returns-value]
    assert sorted(found) == [*range(1, 300), 301, 302]
    assert asked == [*YEARS[1:], {"year": 2002}, {}]
    assert opened(index).search(QUERIES[0], where=since(2000))[0] == [301]


def test_search_all_goes_on_as_before(dated: Path) -> None:
    searcher = opened(dated)
    found = searcher.search_all({7: QUERIES[0], 8: QUERIES[1]}, k=5, qid_to_pids={7: [1, 2], 8: None}).todict()
    assert sorted(pid for pid, _, _ in found[7]) == [1, 2]
    assert [pid for pid, _, _ in found[8]] == searcher.search(QUERIES[1], k=5)[0]


def test_further_centroids_are_made_of_the_new_vectors_and_stand_behind_the_others() -> None:
    old, new = random_vectors(20, 16), random_vectors(300, 16)
    centroids = _more_centroids(old, new, 8)
    assert centroids.shape == (28, 16)
    assert torch.equal(centroids[:20], old)
    assert torch.allclose(centroids[20:].float().norm(dim=1), torch.ones(8), atol=1e-3)
    nearest = (new.float() @ centroids.float().T).argmax(dim=1)
    assert len(set(nearest.tolist()) & set(range(20, 28))) == 8
    assert (nearest >= 20).float().mean() > 0.4  # 8 of 28, but theirs
    assert _more_centroids(old, new, 0) is old


def test_many_small_updates_bring_the_centroids_and_files_of_one_large_update(index: Path) -> None:
    together = Path(shutil.copytree(index, index.with_name("together")))
    for start in range(0, len(NEW), 2):
        update = updater(index)
        update.add(NEW[start : start + 2])
        update.persist_to_disk()
    update = updater(together)
    update.add(NEW)
    update.persist_to_disk()
    small, large = (read_json(folder / "metadata.json") for folder in (index, together))
    assert small["num_partitions"] == large["num_partitions"]
    assert small["num_partitions"] > len(torch.load(index.with_name("i") / "centroids.pt")) - 1 > 0
    assert small["num_chunks"] == large["num_chunks"] == 1
    assert {path.name for path in index.iterdir()} == {path.name for path in together.iterdir()}
    assert verify(index) == []
    whole = exhaustive(index)
    assert set(whole.search(QUERIES[0], k=400)[0]) == set(range(360))
    assert list(whole.collection)[300:] == NEW


def test_the_share_of_centroids_lasts_through_any_number_of_updates(tiny_index: TinyIndex, index: Path) -> None:
    before = read_json(index / "metadata.json")["num_partitions"]
    for text in NEW[:30]:
        update = updater(index)
        update.add([text])
        update.persist_to_disk()
    assert read_json(index / "metadata.json")["num_partitions"] == before * 330 // 300


@pytest.mark.parametrize("step", ["_drop_work", "_finish_swap"])
def test_an_update_run_again_after_a_kill_in_its_swap_is_not_made_twice(
    step: str, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> list[int]:
        update = updater(index)
        pids = update.add(NEW[:5])
        update.remove([1, 4])
        update.persist_to_disk()
        return pids

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Places, step, dies)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert make() == list(range(300, 305))
    searcher = opened(index)
    assert len(searcher.collection) == 305
    assert searcher.removed == {1, 4}
    assert verify(index) == []
    assert make_again(index) == [305]  # an update that ended well may be made once more


def make_again(index: Path) -> list[int]:
    update = updater(index)
    pids = update.add(NEW[:1])
    update.persist_to_disk()
    return pids


def test_another_update_after_a_kill_in_a_swap_is_told_to_open_the_index_again_and_then_made(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    update = updater(index)
    update.add(NEW[:5])
    with monkeypatch.context() as patch:
        patch.setattr(Places, "_drop_work", dies)
        with pytest.raises(KeyboardInterrupt):
            update.persist_to_disk()
    other = updater(index)
    other.add(NEW[5:7])
    with pytest.raises(UserError, match="open it again"):
        other.persist_to_disk()
    assert make_again(index) == [305]
    assert list(opened(index).collection)[300:] == [*NEW[:5], NEW[0]]


def test_of_two_updaters_one_is_refused_while_the_other_writes_and_told_of_its_change_afterwards(index: Path) -> None:
    first, second = updater(index), updater(index)
    first.add(NEW[:5])
    second.add(NEW[5:9])
    with first._places.writing(), pytest.raises(UserError, match=f"is being written by process {os.getpid()}"):
        second.persist_to_disk()
    first.persist_to_disk()
    with pytest.raises(UserError, match="changed since it was opened"):
        second.persist_to_disk()
    assert list(opened(index).collection)[300:] == NEW[:5]


def test_stored_texts_that_changed_are_refused_before_an_update(index: Path) -> None:
    path = index / "collection.tsv"
    path.write_bytes(path.read_bytes().replace(b"france", b"frankr", 1))
    update = updater(index)
    update.add(NEW[:1])
    before = files_of(index)
    with pytest.raises(UserError, match=r"collection\.tsv: changed"):
        update.persist_to_disk()
    assert files_of(index) == before
