import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import colbert
import numpy as np
import pytest
import torch
from colbert.infra import ColBERTConfig
from torch import Tensor
from torch.nn.functional import normalize

from colbert_diffusion import DiffusionConfig, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.index.manifest import write_manifest
from colbert_diffusion.seam.settings import SearchSettings, choose_settings

from ..conftest import TinyIndex, make_texts

QUERIES = make_texts(20, seed=9)


@pytest.fixture(scope="module")
def searcher(tiny_index: TinyIndex) -> Searcher:
    return tiny_index.searcher()


def decompressed(searcher: Searcher) -> tuple[Tensor, Tensor]:
    """(vectors as the index holds them, normalised as ColBERT does; pid of each)."""
    ranker = searcher.ranker
    count = int(ranker.doclens.sum())  # ColBERT's own arrays are 512 longer, for strides
    packed = type(ranker.embeddings)(ranker.embeddings.codes[:count], ranker.embeddings.residuals[:count])
    vectors = ranker.codec.decompress(packed).float()
    return normalize(vectors, dim=-1), torch.repeat_interleave(torch.arange(len(ranker.doclens)), ranker.doclens)


def test_full_probing_equals_brute_force_maxsim_over_the_decompressed_vectors(tiny_index: TinyIndex) -> None:
    plain = tiny_index.searcher()
    passages = len(tiny_index.texts)
    full = ColBERTConfig(ncells=len(plain.ranker.codec.centroids), centroid_score_threshold=-2.0, ndocs=4 * passages)
    searcher = Searcher(tiny_index.path.name, config=full, index_root=str(tiny_index.path.parent), verbose=0)
    vectors, owners = decompressed(searcher)
    for query in QUERIES:
        [q] = searcher.encode(query)
        dots = (q @ vectors.T).clamp(min=0)  # ColBERT's CPU scorer floors each maximum at 0
        best = torch.zeros(len(q), passages).scatter_reduce(1, owners.expand(len(q), -1), dots, "amax")
        expected = best.sum(0)
        pids, ranks, scores = searcher.search(query, k=passages)
        assert sorted(pids) == list(range(passages))
        assert ranks == list(range(1, passages + 1))
        assert torch.allclose(torch.tensor(scores), expected[pids], atol=1e-4)
        assert torch.allclose(torch.tensor(scores), expected.sort(descending=True).values, atol=1e-4)


def test_our_searcher_colberts_own_and_the_command_line_give_identical_results(
    tiny_index: TinyIndex, searcher: Searcher
) -> None:
    stock = colbert.Searcher(tiny_index.path.name, index_root=str(tiny_index.path.parent), verbose=0)
    # The index's own settings, which a stock Searcher obeys at any k, are ours for 10 < k <= 100.
    ours = [searcher.search(query, k=20) for query in QUERIES[:5]]
    assert [stock.search(query, k=20) for query in QUERIES[:5]] == ours
    command = [sys.executable, "-m", "colbert_diffusion", "search", str(tiny_index.path), *QUERIES[:5], "-k", "20", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = [json.loads(line)["topk"] for line in done.stdout.splitlines()]
    assert [tuple([row[name] for row in topk] for name in ("pid", "rank", "score")) for topk in printed] == ours


def test_search_all_gives_what_search_gives(searcher: Searcher) -> None:
    found = searcher.search_all({7: QUERIES[0], 8: QUERIES[1]}, k=5).todict()
    assert [pid for pid, _, _ in found[8]] == searcher.search(QUERIES[1], k=5)[0]


def test_search_all_takes_queries_from_a_dict_a_file_and_whatever_holds_them_in_an_order(
    searcher: Searcher, tmp_path: Path
) -> None:
    texts = ["paris france", "the red dog"]
    expected = [searcher.search(text, k=3) for text in texts]

    def found(queries: Any) -> dict[Any, Any]:
        data: dict[Any, Any] = searcher.search_all(queries, k=3).data
        for hits, (pids, ranks, scores) in zip(data.values(), expected, strict=True):
            assert [(pid, rank) for pid, rank, _ in hits] == list(zip(pids, ranks, strict=True))
            assert [score for *_, score in hits] == pytest.approx(scores, abs=1e-4)
        return data

    (tmp_path / "numbers.tsv").write_text("7\tparis france\n3\tthe red dog\n")
    (tmp_path / "names.tsv").write_text("q-a\tparis france\nq/b\tthe red dog\n")
    (tmp_path / "q.jsonl").write_text('{"_id": "a", "text": "paris france"}\n{"_id": "b", "text": "the red dog"}\n')
    assert list(found(texts)) == list(found(tuple(texts))) == list(found(np.array(texts))) == [0, 1]
    assert list(found(dict(zip("xy", texts, strict=True)))) == ["x", "y"]
    assert list(found(str(tmp_path / "numbers.tsv"))) == list(found(tmp_path / "numbers.tsv")) == [7, 3]
    assert list(found(str(tmp_path / "names.tsv"))) == ["q-a", "q/b"]
    assert list(found(tmp_path / "q.jsonl")) == ["a", "b"]
    data = searcher.search_all({"x": texts[0]}, k=3, qid_to_pids={"x": [5, 9]}).data
    assert sorted(pid for pid, *_ in data["x"]) == [5, 9]


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ({}, "there are no queries"),
        ([], "there are no queries"),
        ({"a": b"bees"}, "query 0 is b'bees' of type bytes"),
        ([None], "query 0 is None"),
        ("nowhere.tsv", "nowhere.tsv does not exist"),
        ({"a", "b"}, "no order"),
    ],
)
def test_queries_that_are_none_are_refused(searcher: Searcher, queries: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        searcher.search_all(queries)


def test_a_search_is_for_one_query(searcher: Searcher) -> None:
    with pytest.raises(UserError, match="for several queries call search_all"):
        searcher.search(["paris", "dog"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="qid_to_pids has no entry for 1 of 1 queries"):
        searcher.search_all({"a": "dog"}, qid_to_pids={})


def test_a_deep_search_after_a_shallow_one_is_as_deep_as_a_fresh_one(tiny_index: TinyIndex, searcher: Searcher) -> None:
    searcher.search(QUERIES[0], k=10)
    assert searcher.search(QUERIES[0], k=300) == tiny_index.searcher().search(QUERIES[0], k=300)


def test_ranks_are_as_many_as_the_passages_that_came_back(searcher: Searcher) -> None:
    pids, ranks, scores = searcher.search(QUERIES[0], k=5, pids=[3, 1])
    assert sorted(pids) == [1, 3]
    assert ranks == [1, 2]
    assert len(scores) == 2


def test_only_settings_that_the_caller_passes_stay_fixed(tiny_index: TinyIndex) -> None:
    config = ColBERTConfig(ncells=1, centroid_score_threshold=0.99, ndocs=4)
    narrow = Searcher(tiny_index.path.name, config=config, index_root=str(tiny_index.path.parent), verbose=0)
    assert len(narrow.search(QUERIES[0], k=300)[0]) == 1  # a quarter of ndocs is scored


@pytest.mark.parametrize("pids", [[-1], [300], [0, 10**9]])
def test_pids_that_the_index_does_not_have_are_refused(searcher: Searcher, pids: list[int]) -> None:
    with pytest.raises(UserError, match=r"pids 0\.\.299"):
        searcher.search(QUERIES[0], pids=pids)


def test_k_below_one_is_refused(searcher: Searcher) -> None:
    with pytest.raises(UserError, match="k is 0"):
        searcher.search(QUERIES[0], k=0)


def test_an_index_that_is_absent_or_incomplete_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Searcher("absent", index_root=str(tmp_path))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="is incomplete"):
        Searcher("half", index_root=str(tmp_path))


def moved_index(tiny_index: TinyIndex, root: Path, **config: str) -> None:
    """A copy of the index whose config says otherwise, as after its folders moved."""
    shutil.copytree(tiny_index.path, root / "moved")
    metadata = json.loads((root / "moved" / "metadata.json").read_text())
    metadata["config"].update(config)
    (root / "moved" / "metadata.json").write_text(json.dumps(metadata))
    manifest = json.loads((tiny_index.path / "index.json").read_text())
    write_manifest(root / "moved", {"build": manifest["build"]})


def test_an_index_that_moved_opens_with_its_own_collection(tiny_index: TinyIndex, tmp_path: Path) -> None:
    moved_index(tiny_index, tmp_path, collection="/gone/collection.tsv")
    assert list(Searcher("moved", index_root=str(tmp_path), verbose=0).collection) == tiny_index.texts


def test_an_index_whose_checkpoint_moved_opens_when_given_its_new_place(
    tiny_index: TinyIndex, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    moved_index(tiny_index, tmp_path, checkpoint="/gone/checkpoint")
    with pytest.raises(UserError, match="/gone/checkpoint, which is gone; pass checkpoint="):
        Searcher("moved", index_root=str(tmp_path), verbose=0)
    shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere")
    found = Searcher("moved", checkpoint=str(tmp_path / "elsewhere"), index_root=str(tmp_path), verbose=0)
    assert found.search(QUERIES[0]) == tiny_index.searcher().search(QUERIES[0])


def test_a_checkpoint_with_other_content_is_refused(
    tiny_index: TinyIndex, tiny_config: DiffusionConfig, tmp_path: Path
) -> None:
    replace(tiny_config, query_max_length=12).save(tmp_path / "other")
    with pytest.raises(UserError, match="fingerprint"):
        Searcher(tiny_index.path.name, checkpoint=str(tmp_path / "other"), index_root=str(tiny_index.path.parent))


@pytest.mark.parametrize("name", ["centroids.pt", "0.residuals.pt", "ivf.pid.pt", "doclens.0.json", "collection.tsv"])
def test_a_truncated_index_is_refused_in_one_line(tiny_index: TinyIndex, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_index.path, tmp_path / "cut")
    with (tmp_path / "cut" / name).open("r+b") as file:
        file.truncate((tmp_path / "cut" / name).stat().st_size - 1)
    with pytest.raises(UserError, match=f"{name} has .* bytes instead of") as error:
        Searcher("cut", index_root=str(tmp_path), verbose=0)
    assert "\n" not in str(error.value)


def test_memory_mapping_that_would_read_garbage_is_refused(tiny_index: TinyIndex) -> None:
    config = ColBERTConfig(load_index_with_mmap=True)
    with pytest.raises(UserError, match="leave it out"):
        Searcher(tiny_index.path.name, config=config, index_root=str(tiny_index.path.parent))


def test_a_hostile_tensor_file_is_not_unpickled(tiny_index: TinyIndex, tmp_path: Path) -> None:
    shutil.copytree(tiny_index.path, tmp_path / "hostile")
    torch.save(Hostile(tmp_path / "pwned"), tmp_path / "hostile" / "centroids.pt")
    write_manifest(tmp_path / "hostile", {})
    with pytest.raises(UserError, match="Weights only"):
        Searcher("hostile", index_root=str(tmp_path), verbose=0)
    assert not (tmp_path / "pwned").exists()


def test_an_environment_that_forces_unpickling_is_refused(tiny_index: TinyIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="unset it"):
        tiny_index.searcher()


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_settings_never_ask_for_more_cells_than_there_are() -> None:
    assert choose_settings(k=10, partitions=4).ncells == 4
    assert choose_settings(k=1000, partitions=4).ncells == 4
    assert choose_settings(k=10, partitions=4096) == SearchSettings(16, 0.3, 1024)
    assert choose_settings(k=5000, partitions=2**18).ndocs // 4 >= 5000  # a quarter is scored


@pytest.mark.parametrize("k", [3.0, "3", None, True, float("inf"), np.float32(3)])
def test_a_k_that_is_no_whole_number_is_refused(tiny_index: TinyIndex, k: object) -> None:
    with pytest.raises(UserError, match=r"k is .* expected a whole number"):
        tiny_index.searcher().search("cat", k=k)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [np.int64(300), torch.tensor(300), 10**9, 2**63])
def test_more_than_there_are_or_numpys_numbers_are_all_passages(tiny_index: TinyIndex, k: int) -> None:
    searcher = tiny_index.searcher()
    assert searcher.search("cat", k=k) == searcher.search("cat", k=300)


HOLDERS = [[5, 5, 2, 2], (5, 2), {5, 2}, np.array([5, 2]), torch.tensor([2, 5]), iter([5, 2]), {5: 0, 2: 0}.keys()]


@pytest.mark.parametrize("pids", HOLDERS)
def test_pids_are_taken_from_whatever_holds_them_and_found_once(tiny_index: TinyIndex, pids: Any) -> None:
    assert sorted(tiny_index.searcher().search("cat", pids=pids)[0]) == [2, 5]


@pytest.mark.parametrize("pids", [[True, False], [2.0], ["2"], np.array([True] * 300)])
def test_masks_and_texts_are_no_pids(tiny_index: TinyIndex, pids: Any) -> None:
    with pytest.raises(UserError, match=r"a pid is .* expected a whole number"):
        tiny_index.searcher().search("cat", pids=pids)


def test_settings_chosen_later_count_as_chosen_at_the_start_and_none_gives_them_back(tiny_index: TinyIndex) -> None:
    few = {"ncells": 1, "centroid_score_threshold": 0.99, "ndocs": 4}
    folder, root = tiny_index.path.name, str(tiny_index.path.parent)
    opened, later = Searcher(folder, config=ColBERTConfig(**few), index_root=root, verbose=0), tiny_index.searcher()
    plain = [later.search(query, k=10) for query in QUERIES]
    later.configure(**few)
    assert [later.search(query, k=10) for query in QUERIES] == [opened.search(query, k=10) for query in QUERIES] != plain
    later.configure(**dict.fromkeys(few))
    assert [later.search(query, k=10) for query in QUERIES] == plain
