import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_diffusion import Indexer, IndexUpdater, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.texts.collection import Documents, Passages
from colbert_diffusion.texts.ids import IDS_FILE, Ids, as_ids, write_ids

from ..conftest import make_texts


def corpus(path: Path, ids: list[str]) -> Passages:
    texts = make_texts(len(ids))
    path.write_text("".join(json.dumps({"_id": i, "text": text}) + "\n" for i, text in zip(ids, texts, strict=True)))
    return Passages(path)


def test_ids_are_found_by_pid_and_pids_by_id(tmp_path: Path) -> None:
    names = [f"doc {i} – é" for i in range(300)]
    write_ids(tmp_path / IDS_FILE, corpus(tmp_path / "c.jsonl", names))
    ids = Ids(tmp_path, 300)
    assert ids.of([299, 0, 7]) == [names[299], names[0], names[7]]
    assert ids.pids(names) == list(range(300))
    with pytest.raises(UserError, match="1 ids are not in the index"):
        ids.pids(["doc 1 – é", "doc 1"])


def test_ids_that_are_the_pids_are_not_stored(tmp_path: Path) -> None:
    write_ids(tmp_path / IDS_FILE, corpus(tmp_path / "c.jsonl", ["0", "1", "2"]))
    assert not (tmp_path / IDS_FILE).exists()
    ids = Ids(tmp_path, 3)
    assert ids.of([2, 0]) == ["2", "0"]
    assert ids.pids(["1", 2]) == [1, 2]
    for unknown in ("3", "-1", "01", "x", ""):
        with pytest.raises(UserError):
            ids.pids([unknown])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b", "a"], "line 3: the id 'a' is also on line 1"),
        (["a\nb"], "line 1: .* has a line break"),
        (["a", "\ud83d"], "line 2: .* has half a character"),
    ],
)
def test_ids_that_cannot_stand_are_refused_by_line(names: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        write_ids(tmp_path / IDS_FILE, corpus(tmp_path / "c.jsonl", names))
    assert not (tmp_path / IDS_FILE).exists()


def test_ids_are_texts_or_whole_numbers() -> None:
    assert as_ids(["a", 7, np.int64(8), np.str_("b")]) == ["a", "7", "8", "b"]
    assert as_ids(np.array(["a", "b"])) == ["a", "b"]
    assert as_ids(str(i) for i in range(2)) == ["0", "1"]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ("d1", "ids are 'd1' of type str, expected a list"),
        (b"d1", "of type bytes, expected a list"),
        (7, "ids are 7 of type int, expected a list"),
        (["a", b"b"], "id 1 is b'b' of type bytes"),
        ([None], "id 0 is None"),
        ([1.0], "id 0 is 1.0 of type float"),
        ([True], "id 0 is True of type bool"),
        (["a\rb"], "has a line break"),
        (["\udc00"], "half a character"),
    ],
)
def test_what_can_be_no_id_is_refused_when_adding_and_when_asking(ids: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        as_ids(ids)
    with pytest.raises(UserError, match=said):
        Ids(tmp_path, 3).pids(ids)


def test_an_index_keeps_its_collections_ids_through_search_and_update(
    tiny_checkpoint: Path, tmp_path: Path, index_root: str
) -> None:
    passages = corpus(tmp_path / "c.jsonl", [f"d{i}" for i in range(60)])
    index = Indexer(str(tiny_checkpoint)).index("with-ids", str(tmp_path / "c.jsonl"))
    searcher = Searcher("with-ids")
    pids, _, _ = searcher.search(passages[7], k=5)
    assert searcher.ids(pids) == [f"d{pid}" for pid in pids]
    only = searcher.pids(["d3", "d9"])
    assert sorted(searcher.search(passages[7], k=5, pids=only)[0]) == only == [3, 9]
    with pytest.raises(UserError, match="not in the index"):
        searcher.ids([60])

    updater = IndexUpdater(index)
    with pytest.raises(UserError, match="in the index already"):
        updater.add(["one"], ids=["d3"])
    with pytest.raises(UserError, match="line break"):
        updater.add(["one"], ids=["x\ny"])
    with pytest.raises(UserError, match="different new ids"):
        updater.add(["one", "two"], ids=["x", "x"])
    assert updater.add(["one cat", "two dogs"], ids=["x", 61]) == [60, 61]
    updater.remove([3])
    updater.persist_to_disk()
    updated = Searcher("with-ids")
    assert updated.ids([59, 60, 61]) == ["d59", "x", "61"]
    assert updated.pids([61]) == [61]


def test_an_index_without_ids_refuses_them_and_goes_by_pids(tiny_checkpoint: Path, tmp_path: Path, index_root: str) -> None:
    index = Indexer(str(tiny_checkpoint)).index("no-ids", make_texts(20))
    with pytest.raises(UserError, match="leave ids out"):
        IndexUpdater(index).add(["one"], ids=["x"])
    assert Searcher("no-ids").ids([3, 4]) == ["3", "4"]


def test_an_id_is_read_from_the_file_once_however_often_its_passage_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = Documents(corpus(tmp_path / "c.jsonl", ["p0", "p1", "p2"]))
    ids, read, key = documents.ids, list[int](), Passages.key

    def counted(passages: Passages, pid: int) -> str:
        read.append(pid)
        return key(passages, pid)

    monkeypatch.setattr(Passages, "key", counted)
    assert [ids[pid] for pid in (2, 0, 2, 2, 0)] == ["p2", "p0", "p2", "p2", "p0"]
    assert read == [2, 0]
