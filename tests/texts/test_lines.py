import copy
import gzip
import os
import pickle
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.texts import lines as module
from colbert_diffusion.texts.lines import LineFile, unpacked


@pytest.mark.parametrize("kept_from", [1, 1 << 24], ids=["beside the file", "in memory"])
def test_lines_are_those_of_the_file_by_number_and_in_order(
    kept_from: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_FROM", kept_from)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" "))), st.booleans())
    def check(content: list[bytes], ends: bool) -> None:
        path = tmp_path_factory.mktemp("lines") / "file"
        path.write_bytes(b"\n".join(content) + (b"\n" if ends and content else b""))
        with path.open("rb") as file:
            expected = [line.rstrip(b"\r\n") for line in file]
        lines = LineFile(path)
        assert list(lines) == expected
        assert [lines[i] for i in range(len(lines))] == expected
        assert lines[1:3] == expected[1:3]
        with pytest.raises(IndexError):
            lines[len(expected)]

    check()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_FROM", 1)


class Seen:
    """A check that notes the lines' numbers, and 0 at the end."""

    def __init__(self, numbers: list[int], refused: int | None = None) -> None:
        self.numbers, self.refused = numbers, refused

    def __call__(self, number: int, raw: bytes) -> None:
        self.numbers.append(number)
        if number == self.refused:
            raise UserError("wrong")

    def finish(self) -> None:
        self(0, b"")


def test_offsets_are_made_and_checked_once_and_again_when_the_file_changed(tmp_path: Path, kept: None) -> None:
    path, seen = tmp_path / "file", list[int]()
    path.write_text("a\nb\n")
    for _ in range(2):
        assert len(LineFile(path, Seen(seen))) == 2
    assert seen == [1, 2, 0]
    path.write_text("a\nb\nc\n")
    assert len(LineFile(path, Seen(seen))) == 3
    assert seen == [1, 2, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("at", [2, 0])
def test_a_line_that_is_refused_leaves_no_offsets(tmp_path: Path, kept: None, at: int) -> None:
    path = tmp_path / "file"
    path.write_text("a\nb\n")
    with pytest.raises(UserError):
        LineFile(path, Seen([], refused=at))
    assert os.listdir(tmp_path) == ["file"]


def test_where_nothing_can_be_written_offsets_stay_in_memory(
    tmp_path: Path, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("a\nb\nlast")

    def refused(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(module, "written_aside", refused)
    assert list(map(bytes.decode, LineFile(path)[0:3])) == ["a", "b", "last"]
    assert os.listdir(tmp_path) == ["file"]


def test_a_copy_is_itself_and_a_pickle_is_small_and_reads_the_same(tmp_path: Path, kept: None) -> None:
    path = tmp_path / "file"
    path.write_text("line\n" * 10_000)
    lines = LineFile(path)
    assert copy.deepcopy(lines) is lines
    pickled = pickle.dumps(lines)
    assert len(pickled) < 500
    assert pickle.loads(pickled)[9_999] == b"line"


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("".join(f"line {i}\n" for i in range(2000)))
    lines, wrong = LineFile(path), list[int]()

    def read(start: int) -> None:
        wrong.extend(i for i in range(start, 2000, 4) if lines[i] != f"line {i}".encode())

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_packed_files_are_unpacked_once_and_again_when_they_changed(tmp_path: Path) -> None:
    packed = tmp_path / "c.tsv.gz"
    packed.write_bytes(gzip.compress(b"0\ta\n"))
    plain = unpacked(packed)
    assert (plain.name, plain.read_bytes()) == ("c.unpacked.tsv", b"0\ta\n")
    before = plain.stat().st_ino
    assert unpacked(packed).stat().st_ino == before
    packed.write_bytes(gzip.compress(b"0\tb\n"))
    os.utime(packed, (1, 1))
    assert unpacked(packed).read_bytes() == b"0\tb\n"


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_truncated_packed_file_is_one_line_and_leaves_nothing(tmp_path: Path, end: str) -> None:
    if end == ".zst":
        zstd = pytest.importorskip("backports.zstd")
        content = zstd.compress(os.urandom(5000))
    else:
        content = gzip.compress(os.urandom(5000))
    packed = tmp_path / f"c.jsonl{end}"
    packed.write_bytes(content[:2500])
    with pytest.raises(UserError, match="damaged"):
        unpacked(packed)
    assert os.listdir(tmp_path) == [packed.name]
