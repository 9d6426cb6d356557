"""Any size of collection, any interruption, any number of ranks: the same index, every text encoded once."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.indexing.collection_indexer import CollectionIndexer
from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig, Indexer, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.encoding.vectors import claim, encode_shards
from colbert_diffusion.index.places import Places
from colbert_diffusion.index.trial import random_vectors
from colbert_diffusion.seam import building, compressing, install
from colbert_diffusion.seam.building import PlaidIndexer

from ..conftest import make_texts

# What a user runs; small chunks and shards so that a kill can fall between any two of them.
BUILD = """
import os, signal, sys
from pathlib import Path
from colbert.infra import ColBERTConfig, Run, RunConfig
import colbert_diffusion.encoding.vectors
import colbert_diffusion.seam.building
from colbert_diffusion import Indexer
from colbert_diffusion.encoding.encoder import Encoder

checkpoint, collection, target, nranks, log = sys.argv[1:]
encode = Encoder.encode

def counting(self, texts, side, **options):
    texts = list(texts)
    for vectors in encode(self, texts, side, **options):
        yield vectors
    with open(log, "a") as file:
        file.writelines(text + "\\n" for text in texts)

Encoder.encode = counting
colbert_diffusion.encoding.vectors.SHARD = 500
colbert_diffusion.seam.building.CHUNK = 400
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests run in the background are born deaf to it
    target = Path(target)
    Path(log).with_name("started").touch()
    with Run().context(RunConfig(index_root=str(target.parent), nranks=int(nranks))):
        Indexer(checkpoint, ColBERTConfig(nbits=2), verbose=0).index(target.name, collection, overwrite=True)
"""


def start_build(folder: Path, checkpoint: Path, collection: Path, nranks: int = 1) -> "subprocess.Popen[bytes]":
    (folder / "build.py").write_text(BUILD)
    command = [sys.executable, str(folder / "build.py"), str(checkpoint), str(collection), str(folder / "i"), str(nranks)]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen([*command, str(folder / "encoded.txt")], stdout=output, stderr=output, start_new_session=True)


def finish(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    assert process.wait(timeout=300) == 0, (folder / "output.txt").read_text()[-3000:]


def write_collection(path: Path, count: int) -> list[str]:
    texts = [f"{text} {i}" for i, text in enumerate(make_texts(count, seed=4))]  # no two alike: they are counted
    path.write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    return texts


def content(index: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(index.iterdir())}


def build_here(root: Path, checkpoint: Path, texts: list[str], **config: int) -> Searcher:
    with Run().context(RunConfig(index_root=str(root))):
        Indexer(str(checkpoint), ColBERTConfig(**{"nbits": 2, **config}), verbose=0).index("i", texts)
        return Searcher("i", verbose=0)


@pytest.fixture(scope="module")
def one_vector(tiny_bert: Path, tiny_config: DiffusionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k = 1: the smallest collections ColBERT's clustering can be asked for."""
    folder = tmp_path_factory.mktemp("checkpoints") / "one"
    replace(tiny_config, k_query=1, k_passage=1).save(folder)
    return folder


@pytest.mark.parametrize("passages", [1, 2, 5, 19, 100])
def test_any_number_of_passages_indexes_from_one_up(
    passages: int, tiny_checkpoint: Path, one_vector: Path, tmp_path: Path
) -> None:
    texts = make_texts(passages, seed=6)
    for name, checkpoint in (("many", tiny_checkpoint), ("one", one_vector)):
        searcher = build_here(tmp_path / name, checkpoint, texts)
        firsts = {searcher.search(text, k=1)[0][0] for text in texts}
        assert len(firsts) > len(set(texts)) // 2  # of one vector and a random model several texts share their best
        pids, ranks, scores = searcher.search(texts[-1], k=passages)
        assert 1 <= len(pids) <= passages
        assert len(ranks) == len(scores) == len(pids)
        assert set(searcher.search("cat", k=10, pids=list(range(passages)))[0]) <= set(range(passages))


def test_a_large_dim_keeps_to_what_torchs_quantile_takes(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = torch.zeros(100_000, 8), torch.zeros(50_000, 8)
    monkeypatch.setattr(CollectionIndexer, "_concatenate_and_split_sample", lambda self: sample)
    monkeypatch.setattr(building, "QUANTILE_LIMIT", 80_000)
    _, heldout = PlaidIndexer._concatenate_and_split_sample(PlaidIndexer.__new__(PlaidIndexer))
    assert heldout.numel() == 80_000


def test_compression_in_pieces_is_colberts() -> None:
    install()
    vectors, centroids = random_vectors(1000, 32), random_vectors(64, 32)
    edges = torch.linspace(-0.2, 0.2, 9)
    codec = ResidualCodec(
        ColBERTConfig(dim=32, nbits=2), centroids, torch.tensor(0.1), bucket_cutoffs=edges[2:-1:2], bucket_weights=edges[1::2]
    )
    ours, colberts = compressing.compress(codec, vectors), codec.compress(vectors)
    chosen = centroids.float()[ours.codes.long()], centroids.float()[colberts.codes.long()]
    torch.testing.assert_close(*((vectors.float() * own).sum(-1) for own in chosen))  # equally near, if not the same
    same = ours.codes == colberts.codes
    assert same.float().mean() > 0.99
    assert torch.equal(ours.residuals[same], colberts.residuals[same])


def test_equal_texts_index(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert len(build_here(tmp_path, tiny_checkpoint, ["the cat"] * 30).search("the cat", k=30)[0]) == 30


# The long form: KILL_RUNS=5 KILLS=10 KILL_TEXTS=10000 pytest tests/seam/test_building.py -k killed_at_random
@pytest.mark.parametrize("seed", range(int(os.environ.get("KILL_RUNS", "1"))))
def test_a_build_killed_at_random_moments_ends_in_the_same_bytes(seed: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = write_collection(tmp_path / "c.tsv", int(os.environ.get("KILL_TEXTS", "4000")))
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    for folder in (reference, killed):
        folder.mkdir()
    process = start_build(reference, tiny_checkpoint, tmp_path / "c.tsv")
    wait_for(reference / "started", process)
    started = time.monotonic()
    finish(process, reference)
    whole = time.monotonic() - started

    with Run().context(RunConfig(index_root=str(killed))):
        before = content(Path(Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=2), verbose=0).index("i", texts[:200])))
    generator, deaths, died = random.Random(seed), 0, False
    while (
        deaths < int(os.environ.get("KILLS", "3")) and content(killed / "i") == before
    ):  # the previous index is served throughout
        process = start_build(killed, tiny_checkpoint, tmp_path / "c.tsv")
        wait_for(killed / "started", process)
        died = False
        try:
            process.wait(timeout=generator.uniform(0, 0.5 if deaths else 0.1) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            deaths, died = deaths + 1, True
        (killed / "started").unlink()
    if content(killed / "i") == before:
        finish(start_build(killed, tiny_checkpoint, tmp_path / "c.tsv"), killed)
        died = False
    assert deaths > 0
    assert_same_index(reference, killed)
    encoded = (killed / "encoded.txt").read_text().splitlines()
    assert len(set(encoded)) == len(texts)
    assert len(encoded) <= len(texts) + 500 * deaths  # at most the shard that a kill fell into
    assert died or not (killed / "i.partial").exists()  # a kill behind the swap leaves it to the next build


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)


def assert_same_index(one: Path, two: Path) -> None:
    """Byte for byte, but for the path of the index itself, which its config holds."""
    first, second = content(one / "i"), content(two / "i")
    second = {name: data.replace(str(two).encode(), str(one).encode()) for name, data in second.items()}
    del first["index.json"], second["index.json"]  # hashes of files that hold the path
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_any_number_of_ranks_encodes_each_text_once_and_builds_the_bytes_of_one(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # another number of threads rounds some vectors another way
    texts = write_collection(tmp_path / "c.tsv", 1700)
    for nranks in (1, 2, 3):
        folder = tmp_path / str(nranks)
        folder.mkdir()
        finish(start_build(folder, tiny_checkpoint, tmp_path / "c.tsv", nranks), folder)
        assert sorted((folder / "encoded.txt").read_text().splitlines()) == sorted(texts)
        assert not list(folder.glob("**/.*lock"))
        assert_same_index(tmp_path / "1", folder)


def test_a_killed_rank_ends_the_command_with_the_cause(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_collection(tmp_path / "c.tsv", 4000)
    process = start_build(tmp_path, tiny_checkpoint, tmp_path / "c.tsv", nranks=2)
    ranks = wait_for_ranks(process, tmp_path)
    os.kill(ranks[-1], signal.SIGKILL)
    started = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - started <= 10
    assert "was killed by signal 9" in (tmp_path / "output.txt").read_text()
    wait_until_gone(ranks)


def test_ranks_end_with_a_parent_that_was_killed_and_the_build_goes_on_with_another_number_of_them(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write_collection(tmp_path / "c.tsv", 4000)
    process = start_build(tmp_path, tiny_checkpoint, tmp_path / "c.tsv", nranks=2)
    ranks = wait_for_ranks(process, tmp_path)
    assert len(ranks) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_gone(ranks)
    finish(start_build(tmp_path, tiny_checkpoint, tmp_path / "c.tsv", nranks=3), tmp_path)


def test_the_same_build_started_twice_is_made_once_and_refused_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_collection(tmp_path / "c.tsv", 2000)
    first = start_build(tmp_path, tiny_checkpoint, tmp_path / "c.tsv")
    wait_for(tmp_path / "i.partial", first)
    first.send_signal(signal.SIGSTOP)
    second = start_build(tmp_path, tiny_checkpoint, tmp_path / "c.tsv")
    assert second.wait(timeout=300) != 0
    first.send_signal(signal.SIGCONT)
    assert f"is being written by process {first.pid} on" in (tmp_path / "output.txt").read_text()
    finish(first, tmp_path)
    assert not list(tmp_path.glob(".i*"))


def test_interrupting_leaves_no_orphan_and_a_build_that_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_collection(tmp_path / "c.tsv", 1500)
    process = start_build(tmp_path, tiny_checkpoint, tmp_path / "c.tsv", nranks=2)
    ranks = wait_for_ranks(process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    wait_until_gone(ranks)
    finish(start_build(tmp_path, tiny_checkpoint, tmp_path / "c.tsv", nranks=2), tmp_path)


def wait_for_ranks(process: "subprocess.Popen[bytes]", folder: Path) -> list[int]:
    """Process ids of the two ranks, once the first has encoded something."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if len(ranks) >= 2 and (folder / "encoded.txt").exists():
            return ranks
        time.sleep(0.05)
    raise AssertionError((folder / "output.txt").read_text()[-3000:])


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.1)


def test_a_full_disk_is_one_line_and_leaves_a_build_that_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = write_collection(tmp_path / "c.tsv", 600)
    command = [sys.executable, "-m", "colbert_diffusion", "index", str(tmp_path / "c.tsv"), str(tmp_path / "i")]
    command += ["--checkpoint", str(tiny_checkpoint)]
    limit = 100_000  # bytes a file may have: the vectors of 600 passages have more

    def no_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=no_room, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    last = done.stderr.splitlines()[-1]
    assert f"no space left on {tmp_path}, needs about " in last
    assert "run the same command again" in last
    assert not (tmp_path / "i").exists()
    assert not list((tmp_path / "i.partial" / "vectors").glob("0*"))  # no half-written shard
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert json.loads((tmp_path / "i" / "index.json").read_text())["build"]["passages"] == len(texts)


def test_a_build_killed_in_its_swap_is_not_made_again(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_texts(50)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    for overwrite in (False, True):
        indexer = Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=2), verbose=0)
        indexer.configure(index_root=str(tmp_path / str(overwrite)))
        with monkeypatch.context() as patch:
            patch.setattr(Places, "_finish_swap", dies)
            with pytest.raises(KeyboardInterrupt):
                indexer.index("i", texts, overwrite=overwrite)
        with monkeypatch.context() as patch:
            patch.setattr(PlaidIndexer, "run", dies)
            finished = Path(indexer.index("i", texts, overwrite=overwrite))
        assert json.loads((finished / "index.json").read_text())["build"]["passages"] == 50
        assert [p.name for p in finished.parent.iterdir()] == ["i"]


def test_an_unfinished_build_of_another_kind_is_refused_and_dropped_only_when_told(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    texts = make_texts(50)
    (tmp_path / "i.partial").mkdir()
    build = {"checkpoint": "another"}
    (tmp_path / "i.partial" / "build.json").write_text(json.dumps(build))
    with Run().context(RunConfig(index_root=str(tmp_path))):
        indexer = Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=2), verbose=0)
        for overwrite in (False, "resume", "reuse"):
            with pytest.raises(UserError, match="checkpoint another there"):
                indexer.index("i", texts, overwrite=overwrite)
        indexer.index("i", texts, overwrite=True)
        assert indexer.index("i", texts, overwrite="resume") == str(tmp_path / "i")
        with pytest.raises(UserError, match="another build"):
            indexer.index("i", texts[:-1], overwrite="resume")


def test_vectors_that_still_fit_outlive_a_change_of_nbits(tiny_checkpoint: Path, tmp_path: Path, encoded: list[str]) -> None:
    texts = make_texts(50)
    with Run().context(RunConfig(index_root=str(tmp_path))):
        kept = tmp_path / "i.partial" / "vectors"
        claim(kept, identify(tiny_checkpoint), texts)
        encode_shards(kept, lambda: DiffusionCheckpoint(tiny_checkpoint, verbose=0), texts)
        (tmp_path / "i.partial" / "build.json").write_text('{"nbits": 4}')
        encoded.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("colbert_diffusion.index.places.Places.swap", lambda self: None)
            Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=2), verbose=0).index("i", texts, overwrite=True)
        assert (kept / "00000.safetensors").exists()
        assert encoded == []
