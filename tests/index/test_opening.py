"""An open index is one index, with the texts it was built from; nothing a reader does changes anything."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from colbert.data import Collection
from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import Indexer, IndexUpdater, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.index import searching
from colbert_diffusion.index.opening import checkpoint_of, index_config, verify
from colbert_diffusion.texts import lines
from colbert_diffusion.texts.collection import Passages

from ..conftest import make_texts

QUERY = "the capital of france"


def build(folder: Path, checkpoint: Path, texts: Any, **options: Any) -> Path:
    with Run().context(RunConfig(index_root=str(folder.parent))):
        return Path(Indexer(str(checkpoint), ColBERTConfig(nbits=2), verbose=0).index(folder.name, texts, **options))


def opened(folder: Path, **options: Any) -> Searcher:
    return Searcher(folder.name, index_root=str(folder.parent), verbose=0, **options)


def write_jsonl(path: Path, texts: list[str], prefix: str) -> str:
    path.write_text("".join(json.dumps({"_id": f"{prefix}-{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def write_tsv(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    return str(path)


@pytest.fixture
def monday(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """An index with ids, metadata and stored texts."""
    texts = write_jsonl(tmp_path / "monday.jsonl", make_texts(40, seed=1), "mon")
    return build(tmp_path / "daily", tiny_checkpoint, texts, metadata=[{"day": "mon"}] * 40)


def everything(searcher: Searcher) -> tuple[Any, ...]:
    pids, _, scores = searcher.search(QUERY, k=5)
    allowed = searcher.search(QUERY, k=5, where=lambda about: about["day"] == "mon")[0]
    texts = list(searcher.collection)
    return (
        pids,
        scores,
        searcher.ids(pids),
        searcher.pids(["mon-3"]),
        allowed,
        texts,
        [searcher.collection[pid] for pid in pids],
    )


@pytest.mark.parametrize("what", ["rebuilt", "deleted", "moved", "updated", "opened by a relative path"])
def test_an_open_searcher_is_the_index_it_opened_whatever_happens_to_the_folder(
    what: str, monday: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(opened(monday))
    searcher = opened(monday)
    if what == "opened by a relative path":
        monkeypatch.chdir(monday.parent)
        searcher = Searcher("daily", index_root=".", verbose=0)
        monkeypatch.chdir("/")
    elif what == "rebuilt":
        texts = write_jsonl(tmp_path / "tuesday.jsonl", make_texts(40, seed=2), "tue")
        build(monday, tiny_checkpoint, texts, metadata=[{"day": "tue"}] * 40, overwrite=True)
    elif what == "updated":
        update = IndexUpdater("daily", index_root=str(monday.parent), verbose=0)
        update.remove(before[0])
        update.persist_to_disk()
    elif what == "moved":
        monday.rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(monday)
    assert everything(searcher) == before


@pytest.mark.parametrize("when", ["check_sizes", "checkpoint_of", "removed_pids", "Ids"])
def test_an_index_replaced_while_it_is_opened_is_never_a_mixture(
    when: str, monday: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuesday = build(
        tmp_path / "tuesday",
        tiny_checkpoint,
        write_jsonl(tmp_path / "tuesday.jsonl", make_texts(30, seed=2), "tue"),
        metadata=[{"day": "tue"}] * 30,
    )
    calls, original = list[int](), getattr(searching, when)

    def replacing(*arguments: Any) -> Any:
        result = original(*arguments)
        if not calls:
            calls.append(1)
            monday.rename(tmp_path / "gone")
            tuesday.rename(monday)
        return result

    monkeypatch.setattr(searching, when, replacing)
    searcher = opened(monday)
    assert len(searcher.collection) == len(searcher.ranker.doclens) == 30
    assert searcher.ids(range(30)) == [f"tue-{i}" for i in range(30)]
    assert searcher._metadata == [{"day": "tue"}] * 30


def test_reading_changes_nothing_on_the_disk(monday: Path) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(monday.parent.rglob("*"))}

    before = state()
    everything(opened(monday))
    verify(monday)
    index_config(monday)
    assert state() == before


# Texts -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tiny_checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An index that refers to the user's own TSV, and that file."""
    texts = tmp_path / "texts.tsv"
    return build(tmp_path / "i", tiny_checkpoint, write_tsv(texts, make_texts(40, seed=1))), texts


CHANGES = {
    "a text of the same length": lambda path: path.write_bytes(path.read_bytes().replace(b"0\tt", b"0\tT", 1)[:-2] + b"x\n"),
    "lines swapped": lambda path: write_tsv(path, make_texts(40, seed=1)[::-1]),
    "a line more": lambda path: path.write_text(path.read_text() + "40\tmore\n"),
    "a line less": lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1])),
    "another of the same size under the old time": lambda path: _same_size_and_time(path),
}


def _same_size_and_time(path: Path) -> None:
    about, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-3] + bytes(reversed(content[-3:-1])) + b"\n")
    assert path.stat().st_size == about.st_size
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kept", [False, True], ids=["small", "large"])
def test_a_tsv_that_changed_since_is_refused_by_search_verify_and_update(
    change: str, kept: bool, outside: tuple[Path, Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, texts = outside
    if kept:
        monkeypatch.setattr(lines, "KEPT_FROM", 1)
    opened(index)
    update = IndexUpdater("i", index_root=str(index.parent), verbose=0)
    update.add(["one more"])
    CHANGES[change](texts)
    with pytest.raises(UserError, match=r"changed since .*restore the file|passages"):
        opened(index)
    assert verify(index) == [f"{texts}: changed since the index was built from its texts"]
    with pytest.raises(UserError, match=r"changed since"):
        update.persist_to_disk()


def test_a_tsv_that_was_only_touched_or_copied_is_the_same(outside: tuple[Path, Path]) -> None:
    index, texts = outside
    os.utime(texts)
    assert opened(index).search(QUERY, k=3)[0]
    shutil.copy(texts, texts.with_name("copy"))
    texts.unlink()
    texts.with_name("copy").rename(texts)
    assert opened(index).search(QUERY, k=3)[0]
    assert verify(index) == []


def test_a_tsv_of_an_index_by_version_0_1_is_known_by_its_texts(outside: tuple[Path, Path]) -> None:
    index, texts = outside
    manifest = json.loads((index / "index.json").read_text())
    del manifest["texts"]  # its size and sha256, which that version did not keep
    (index / "index.json").write_text(json.dumps(manifest))
    assert verify(index) == []
    assert opened(index).search(QUERY, k=3)[0]
    CHANGES["lines swapped"](texts)
    assert verify(index) == [f"{texts}: changed since the index was built from its texts"]
    with pytest.raises(UserError, match="changed since"):
        opened(index)


def test_a_tsv_that_is_gone_is_named_with_the_remedy(outside: tuple[Path, Path]) -> None:
    index, texts = outside
    texts.unlink()
    with pytest.raises(UserError, match=r"texts\.tsv, which is gone; restore it, or pass collection="):
        opened(index)
    assert verify(index) == [f"{texts}: missing, it holds the texts"]


def test_texts_given_by_the_caller_must_be_those_of_the_index(outside: tuple[Path, Path], monday: Path, tmp_path: Path) -> None:
    same, other = make_texts(40, seed=1), make_texts(40, seed=9)
    for index in (outside[0], monday):
        for right in (same, write_tsv(tmp_path / "same.tsv", same), Path(write_tsv(tmp_path / "same.tsv", same))):
            assert list(opened(index, collection=right).collection) == same
        for wrong in (other, same[:-1], write_tsv(tmp_path / "other.tsv", other), Collection(data=other)):
            with pytest.raises(UserError, match="are not the 40 of"):
                opened(index, collection=wrong)


def test_the_copy_that_an_index_stores_is_its_own_wherever_its_config_says_it_is(monday: Path, tmp_path: Path) -> None:
    before = list(opened(monday).collection)
    secret = write_tsv(tmp_path / "secret.tsv", ["secret"] * 40)
    for name in ("metadata.json", "plan.json"):
        about = json.loads((monday / name).read_text())
        about["config"]["collection"] = secret
        (monday / name).write_text(json.dumps(about))
    manifest = json.loads((monday / "index.json").read_text())
    for name in ("metadata.json", "plan.json"):
        manifest["files"][name]["size"] = (monday / name).stat().st_size
    (monday / "index.json").write_text(json.dumps(manifest))
    assert list(opened(monday).collection) == before


@pytest.mark.parametrize("source", ["its own copy", "its searcher's", "its searcher's data", "another index's copy"])
def test_an_index_built_from_texts_inside_an_index_has_its_own_copy(
    source: str, monday: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    before = list(opened(monday).collection)
    given = {
        "its own copy": str(monday / "collection.tsv"),
        "its searcher's": opened(monday).collection,
        "its searcher's data": opened(monday).collection.data,
        "another index's copy": str(monday / "collection.tsv"),
    }[source]
    target = tmp_path / "other" if source == "another index's copy" else monday
    build(target, tiny_checkpoint, given, overwrite=True)
    if target != monday:
        shutil.rmtree(monday)
    assert list(opened(target).collection) == before
    assert verify(target) == []


def test_an_index_of_an_unpacked_file_has_its_own_copy(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import gzip

    texts = make_texts(20)
    packed = tmp_path / "t.tsv.gz"
    packed.write_bytes(gzip.compress("".join(f"{i}\t{text}\n" for i, text in enumerate(texts)).encode()))
    index = build(tmp_path / "i", tiny_checkpoint, str(packed))
    for path in tmp_path.glob("t.*"):
        path.unlink()
    assert list(opened(index).collection) == texts


def test_the_offsets_of_a_large_collection_are_built_with_the_index_and_needed_by_nobody(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "KEPT_FROM", 1)
    first = build(tmp_path / "i", tiny_checkpoint, make_texts(40))
    assert (first / "collection.tsv.lines").is_file()
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    assert build(tmp_path / "i", tiny_checkpoint, make_texts(40), overwrite=True) == first
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before  # no times in it
    with monkeypatch.context() as patch:
        patch.setattr(Passages, "sha256", property(lambda self: pytest.fail("the collection is read in full")))
        assert len(opened(first).collection) == 40
    (first / "collection.tsv.lines").unlink()
    with pytest.raises(UserError, match=r"collection\.tsv\.lines is missing"):
        opened(first)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metadata.json", b'{"config": {}}'),
        ("metadata.json", b'{"config": {"checkpoint": "x", "collection": "y"}, "num_chunks": "1"}'),
        ("metadata.json", b"[]"),
        ("metadata.json", b"\x00" * 100),
        ("index.json", b'{"format_version": 1}'),
        ("index.json", b'{"format_version": 1, "files": {"a": 3}}'),
        ("index.json", b'{"format_version": 1, "files": {"../../etc/passwd": {"size": 1, "sha256": "x"}}}'),
        ("index.json", b'{"format_version": 1, "files": {}, "build": 3}'),
        ("index.json", b"\x00" * 100),
        ("deleted.json", b'{"pids": "all"}'),
        ("deleted.json", b"{}"),
    ],
)
def test_a_damaged_json_file_is_one_line(name: str, damage: bytes, monday: Path) -> None:
    (monday / name).write_bytes(damage)
    if name != "index.json":
        (monday / "index.json").unlink()
    for read in (opened, verify, lambda folder: IndexUpdater(str(folder), index_root="/", verbose=0)):
        with pytest.raises(UserError) as caught:
            read(monday)
        assert "\n" not in str(caught.value)


def test_the_checkpoint_given_must_be_the_one_the_index_was_built_with(monday: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        checkpoint_of(monday, index_config(monday), str(tmp_path / "nowhere"))


def test_an_index_whose_texts_moved_verifies_and_opens_verified_when_given_their_new_place(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    texts = Path(write_tsv(tmp_path / "texts.tsv", make_texts(40, seed=1)))
    index = build(tmp_path / "outside", tiny_checkpoint, str(texts))
    moved = texts.rename(tmp_path / "moved.tsv")
    assert verify(index) == [f"{texts}: missing, it holds the texts"]
    assert verify(index, moved) == []
    assert opened(index, collection=str(moved), verify=True).search(QUERY, k=1)[0]
    moved.write_text(moved.read_text().replace("the", "a"))
    [difference] = verify(index, moved)
    assert "not the 40" in difference
    with pytest.raises(UserError, match="damaged"):
        opened(index, collection=str(moved), verify=True)
