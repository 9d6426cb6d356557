"""A job killed before its n-th operation on files, for every n: `python -m tests.index.crash SCENARIO CHECKPOINT FOLDER EVERY`.

Prints a line of JSON for each kill: what a reader then found, and whether the same job, run again, ended in the same bytes.
Each job runs in a forked process of one thread, so that the model is loaded once.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from colbert_diffusion import DiffusionCheckpoint, Indexer, IndexUpdater, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding import vectors
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.texts.collection import read_collection

from ..conftest import make_texts

TEXTS, OTHERS = make_texts(12, seed=1), make_texts(12, seed=2)
WATCHED = {"open", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


class Jobs:
    """The scenarios: each prepares a folder and does one job in it."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.checkpoint = folder, checkpoint
        vectors.SHARD = 5

    def _index(self, texts: list[str], **options: Any) -> None:
        from colbert.infra import ColBERTConfig, Run, RunConfig

        source = self.folder / "c.jsonl"
        content = "".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts))
        source.write_text(content)
        with Run().context(RunConfig(index_root=str(self.folder))):
            metadata = [{"n": number} for number in range(len(texts))]
            Indexer(str(self.checkpoint), ColBERTConfig(nbits=2), verbose=0).index(
                "x", str(source), metadata=metadata, lexical="predicted" if texts is TEXTS else "bm25", **options
            )

    def prepare_index(self) -> None:
        pass

    def index(self) -> None:
        self._index(TEXTS)

    def prepare_overwrite(self) -> None:
        self._index(OTHERS)
        (self.folder / "x" / "notes.txt").write_text("mine")
        (self.folder / "x" / "sub").mkdir()
        (self.folder / "x" / "sub" / "deep").write_text("mine too")

    def overwrite(self) -> None:
        self._index(TEXTS, overwrite=True)

    prepare_update = prepare_overwrite

    def update(self) -> None:
        update = IndexUpdater("x", str(self.checkpoint), index_root=str(self.folder), verbose=0)
        pids = update.add(TEXTS[:6], ids=[f"new-{i}" for i in range(6)])
        assert pids == [12, 13, 14, 15, 16, 17], pids
        update.remove([1, 4])
        update.persist_to_disk()

    def prepare_encode(self) -> None:
        (self.folder / "c.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS)))

    def encode(self) -> None:
        texts = read_collection(self.folder / "c.tsv")
        vectors.encode_to(self.folder / "x", identify(self.checkpoint), lambda: DiffusionCheckpoint(self.checkpoint), texts)

    def read(self) -> Any:
        """What a reader finds at x."""
        if (self.folder / "c.tsv").exists() or not (self.folder / "x").exists():  # vectors, which are read when whole
            return None
        searcher = Searcher("x", str(self.checkpoint), index_root=str(self.folder), verbose=0)
        pids, _, scores = searcher.search(TEXTS[0], k=5, mode="hybrid")
        return [pids, [round(score, 4) for score in scores], searcher.ids(pids), list(searcher.collection)]


def state(folder: Path) -> dict[str, str]:
    """Every file's hash, every folder's and link's name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def in_child(job: Callable[[], Any], folder: Path, kill_at: int | None = None) -> tuple[str, Any, int]:
    """-> ("ok", result, operations) or ("refused" | "failed", message, _) or ("killed", _, _)."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(read)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        operations = watch(folder, kill_at)
        try:
            answer: tuple[str, Any, int] = ("ok", job(), operations[0])
        except UserError as error:
            answer = ("refused", str(error), 0)
        except BaseException:
            answer = ("failed", traceback.format_exc(), 0)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed", os.WTERMSIG(status), 0
    kind, result, count = json.loads(said)
    return kind, result, count


def watch(folder: Path, kill_at: int | None) -> list[int]:
    """Count the operations that change the folder; die before this one. A file is also cut in half before it is forced."""
    count, inside = [0], str(folder)

    def operation() -> None:
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WATCHED:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        names = [os.fsdecode(name) for name in arguments if isinstance(name, str | bytes)]
        if any(name.startswith(inside) or not name.startswith("/") for name in names):
            operation()

    sys.addaudithook(hook)
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        operation()
        fsync(descriptor)

    os.fsync = counted  # type: ignore[assignment]
    return count


def differences(one: dict[str, str], two: dict[str, str]) -> list[str]:
    return sorted(name for name in {**one, **two} if one.get(name) != two.get(name))


def kills(scenario: str, folder: Path, checkpoint: Path, every: int) -> Iterator[dict[str, Any]]:
    jobs = Jobs(folder / "room", checkpoint)
    room, saved = folder / "room", folder / "saved"
    saved.mkdir(parents=True)
    room.mkdir()
    assert in_child(getattr(jobs, f"prepare_{scenario}"), room)[0] == "ok"
    shutil.copytree(room, saved, dirs_exist_ok=True)
    before = in_child(jobs.read, room)[1]
    kind, result, total = in_child(getattr(jobs, scenario), room)
    assert kind == "ok", result
    reference, after = state(room), in_child(jobs.read, room)[1]
    assert total > 20
    for number in range(1, total + 1, every):
        shutil.rmtree(room)
        shutil.copytree(saved, room)
        kind, result, _ = in_child(getattr(jobs, scenario), room, number)
        found = in_child(jobs.read, room)
        again, message, _ = in_child(getattr(jobs, scenario), room)
        yield {
            "operation": number,
            "first": kind,
            "reader": "old or new" if found[0] == "ok" and found[1] in (before, after) else found,
            "again": again,
            "message": message,
            "differs": differences(reference, state(room)),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, path, place, step = sys.argv[1:]
    for line in kills(name, Path(place), Path(path), int(step)):
        sys.stdout.write(json.dumps(line) + "\n")
