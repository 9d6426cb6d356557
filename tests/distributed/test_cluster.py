"""On a real Ray cluster of this machine: what its workers make is, byte for byte, what one process makes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from colbert_diffusion import DiffusionCheckpoint, open_index
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.distributed import RayCluster, tasks
from colbert_diffusion.encoding import vectors as vector_files
from colbert_diffusion.encoding.checkpoint import default_checkpoint, named_elsewhere
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.index.by_path import build_index
from colbert_diffusion.index.rows import Replica, Row
from colbert_diffusion.seam import building

from ..cli.test_cli import run
from ..conftest import make_texts
from ..seam.test_building import assert_same_index

TEXTS = make_texts(430, seed=9)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster("local") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Many shards and chunks of few passages; one thread, as a worker has."""
    monkeypatch.setattr(vector_files, "SHARD", 50)
    monkeypatch.setattr(building, "CHUNK", 100)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def contents(folder: Path) -> dict[str, Any]:
    """Every file; of a shard its tensors' bytes and its header, whose entries safetensors writes in any order."""
    found: dict[str, Any] = {}
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found[path.name] = file.metadata(), {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        else:
            found[path.name] = path.read_bytes()
    return found


def test_vectors_and_words_are_those_of_one_process(cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    identity = identify(tiny_checkpoint)
    for name, workers in (("one", None), ("many", cluster)):
        encode_to(tmp_path / name, identity, lambda: DiffusionCheckpoint(tiny_checkpoint), TEXTS, lexical=True, cluster=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 9


def test_what_is_not_read_of_texts_is_told_once_of_all(
    cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [*TEXTS[:180], *(["the cat runs . " * 30] * 70)]  # five shards, two of them with none
    told = []
    for name, workers in (("one", None), ("many", cluster)):
        how: dict[str, Any] = {"cluster": workers, "show_progress_bar": True}
        encode_to(tmp_path / name, identify(tiny_checkpoint), lambda: DiffusionCheckpoint(tiny_checkpoint), texts, **how)
        told.append([line for line in capsys.readouterr().err.splitlines() if "are longer than" in line])
    assert told[0] == told[1]
    assert re.search(r"70 of 250 passages are longer than the \d+ tokens", told[0][0])


def test_an_index_is_that_of_one_process(cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, workers in (("one", None), ("many", cluster)):
        build_index(tmp_path / name / "i", TEXTS, tiny_checkpoint, lexical="predicted", cluster=workers, verbose=0)
    assert_same_index(tmp_path / "one", tmp_path / "many")
    assert len(list((tmp_path / "many" / "i").glob("*.codes.pt"))) == 5
    with pytest.raises(UserError, match="leave one out"):
        build_index(tmp_path / "both", TEXTS, tiny_checkpoint, nranks=2, cluster=cluster, verbose=0)


def busy_workers() -> list[int]:
    """Ray's worker processes that run a task of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::encode"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_a_worker_that_is_killed_costs_its_shards_once_more(
    cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, killed = identify(tiny_checkpoint), list[int]()
    monkeypatch.setattr(vector_files, "SHARD", 215)
    begun, real = str(tmp_path / "begun"), tasks.encode

    def encode(path: str, fingerprint: str, dtype: str, texts: list[str], *others: Any) -> Any:
        with open(begun, "a") as file:
            file.write(f"{TEXTS.index(texts[0])}\n")
        return real(path, fingerprint, dtype, texts, *others)

    monkeypatch.setattr(tasks, "encode", encode)

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for pid in busy_workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    encode_to(tmp_path / "many", identity, lambda: DiffusionCheckpoint(tiny_checkpoint), TEXTS, cluster=cluster)
    killer.join()
    assert killed
    times = Counter(Path(begun).read_text().split())
    assert set(times) == {"0", "215"}
    assert max(times.values()) <= 2  # at most once more
    encode_to(tmp_path / "one", identity, lambda: DiffusionCheckpoint(tiny_checkpoint), TEXTS)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_a_worker_that_says_nothing_more_holds_up_nobody(
    cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that was cut off: the task is never answered, and Ray does not notice."""
    monkeypatch.setattr("colbert_diffusion.distributed.cluster.OVERDUE", 2.0)
    identity, stopped = identify(tiny_checkpoint), list[int]()

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not stopped and time.monotonic() < deadline:
            if len(list((tmp_path / "many").glob("*.safetensors"))) >= 2 and (busy := busy_workers()):
                os.kill(busy[0], signal.SIGSTOP)
                stopped.append(busy[0])

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        encode_to(tmp_path / "many", identity, lambda: DiffusionCheckpoint(tiny_checkpoint), TEXTS, cluster=cluster)
    finally:
        stopper.join()
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    assert stopped
    encode_to(tmp_path / "one", identity, lambda: DiffusionCheckpoint(tiny_checkpoint), TEXTS)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


DRIVER = """
import sys
from pathlib import Path
import colbert_diffusion.encoding.vectors
import colbert_diffusion.seam.building
from colbert_diffusion.distributed import RayCluster
from colbert_diffusion.index.by_path import build_index

colbert_diffusion.encoding.vectors.SHARD = 20
colbert_diffusion.seam.building.CHUNK = 100
if __name__ == "__main__":
    checkpoint, texts, index = sys.argv[1:]
    with RayCluster("local") as cluster:
        build_index(index, texts, checkpoint, cluster=cluster, verbose=0)
"""


def test_a_driver_that_is_killed_goes_on_with_what_is_missing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(vector_files, "SHARD", 20)
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "c.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS)))
    files = [tmp_path / "driver.py", tiny_checkpoint, tmp_path / "c.tsv", tmp_path / "many" / "i"]
    command = [sys.executable, *map(str, files)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    shards = tmp_path / "many" / "i.partial"
    deadline = time.monotonic() + 120
    while len(done := list(shards.rglob("*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert 3 <= len(done) < 22
    written = {path: path.stat().st_mtime_ns for path in shards.rglob("*.safetensors")}
    watched = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while watched.poll() is None:
        for path, when in written.items():
            try:
                assert path.stat().st_mtime_ns == when  # not made again
            except FileNotFoundError:  # the index stands
                written = {}
                break
        time.sleep(0.05)
    assert watched.returncode == 0, watched.stderr and watched.stderr.read()
    build_index(tmp_path / "one" / "i", tmp_path / "c.tsv", tiny_checkpoint, verbose=0)
    assert_same_index(tmp_path / "one", tmp_path / "many")


def test_another_checkpoint_on_a_worker_is_refused(cluster: RayCluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    identity = replace(identify(tiny_checkpoint), dtype="bfloat16")
    with pytest.raises(UserError, match=r"computes .* in float32, the driver in bfloat16"):
        encode_to(tmp_path / "v", identity, lambda: DiffusionCheckpoint(tiny_checkpoint), TEXTS, cluster=cluster)


@pytest.mark.parametrize(("options", "wrong"), [({"cpus": 0}, "0 CPUs"), ({"gpus": -1}, "-1 GPUs")])
def test_a_task_wants_something(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        RayCluster(**options)


@pytest.mark.parametrize(
    ("address", "cpus", "said"),
    [
        ("local", 100_000, "a task wants 100000 CPUs and 0 GPUs, the cluster has"),
        ("127.0.0.1:1", 1, "no Ray cluster at 127.0.0.1:1"),
        ("nowhere", 1, "no Ray cluster at nowhere (expected local, auto or HOST:PORT)"),
    ],
)
def test_a_cluster_without_room_or_without_an_answer_is_one_line(
    address: str, cpus: int, said: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.tsv").write_text("0\tthe cat\n")
    done = run(
        "encode", tmp_path / "c.tsv", tmp_path / "v", "--checkpoint", tiny_checkpoint, "--ray", address, "--ray-cpus", cpus
    )
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "v").exists()


@pytest.fixture(scope="module")
def searched(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("searched") / "i", TEXTS, tiny_checkpoint, lexical="bm25", verbose=0)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_replicas_find_what_one_searcher_finds(cluster: RayCluster, searched: Path, mode: str) -> None:
    searcher = open_index(searched)
    queries = {f"q{i}": text for i, text in enumerate(make_texts(300, seed=4))}  # three batches
    one = searcher.search_all(queries, k=7, mode=mode).todict()
    many = searcher.search_all(queries, k=7, mode=mode, cluster=cluster).todict()
    assert list(many) == list(one)
    for qid, found in one.items():
        assert [(pid, rank) for pid, rank, _ in many[qid]] == [(pid, rank) for pid, rank, _ in found]
        assert [score for *_, score in many[qid]] == pytest.approx([score for *_, score in found], abs=1e-4)
    with pytest.raises(UserError, match="are not asked of a cluster"):
        searcher.search_all(queries, k=7, mode=mode, cluster=cluster, filter_fn=lambda pids: pids)


def test_the_checkpoint_that_ships_is_each_machines_own(tmp_path: Path) -> None:
    assert named_elsewhere(Path(default_checkpoint())) is None
    assert named_elsewhere(tmp_path) == str(tmp_path)


def test_another_build_on_a_worker_is_not_searched(cluster: RayCluster, searched: Path) -> None:
    replica = Replica.of(searched)._replace(state="0" * 32)
    with pytest.raises(UserError, match=r"is another build on this machine \(.*, not 00000000\)"):
        list(cluster.search(replica, [(0, ["the cat"])], {"": Row("dense")}, 3))


def test_the_commands_measure_and_search_on_a_cluster(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": f"{name[0]}{i}", "text": text}) for i, text in enumerate(TEXTS[:60])]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = [f"q{i}\tc{i}\t1\n" for i in range(60)]
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    options = ["--checkpoint", tiny_checkpoint, "--plaid", "--exact", "--depth", 20, "--measures", "nDCG@10", "--json"]
    means = []
    for name, ray in (("one", []), ("many", ["--ray", "local"])):
        done = run("evaluate", tmp_path, *options, "--out", tmp_path / name, *ray)
        assert done.returncode == 0, done.stderr
        means.append(json.loads(done.stdout)["means"])
    assert means[0] == means[1]
    assert means[0]["plaid"]["nDCG@10"] > 0.5  # each query is a passage, cut short
    index = tmp_path / "many" / "index"
    done = run("search", index, "--queries", tmp_path / "queries.jsonl", "-k", 3, "--ray", "local", "--json")
    found = [json.loads(line)["topk"] for line in done.stdout.splitlines()]
    assert len(found) == 60
    assert [hit["rank"] for hit in found[0]] == [1, 2, 3]
