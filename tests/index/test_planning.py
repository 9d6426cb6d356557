import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import DiffusionConfig, Indexer
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.index import planning
from colbert_diffusion.index.places import Places
from colbert_diffusion.index.planning import (
    Rates,
    Step,
    example_passages,
    hours,
    make_plan,
    memory_bytes,
    notes,
    rates,
    shortages,
)
from colbert_diffusion.seam.shape import Shape, building_bytes, faults, index_bytes, peak_disk

from ..cli.test_cli import run
from ..conftest import HIDDEN, PARITY, make_texts

MSMARCO = Shape(8_841_823, k=16, dim=128, nbits=2)
K_PASSAGE = 8


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PROBE_SECONDS", 0.05)


@pytest.mark.parametrize("nbits", [1, 2])
def test_sizes_are_those_of_a_real_index_within_a_tenth(
    nbits: int, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_texts(2000)
    monkeypatch.setattr(Places, "swap", lambda self: None)  # the vectors stay beside the index
    with Run().context(RunConfig(index_root=str(tmp_path))):
        Indexer(str(tiny_checkpoint), ColBERTConfig(nbits=nbits), verbose=0).index("i", texts)
    index, vectors = tmp_path / "i.partial" / "index", tmp_path / "i.partial" / "vectors"
    about = json.loads((index / "metadata.json").read_text())
    shape = Shape(len(texts), K_PASSAGE, HIDDEN, nbits)
    assert (shape.partitions, shape.vectors, shape.chunks) == tuple(
        about[name] for name in ("num_partitions", "num_embeddings", "num_chunks")
    )

    def stored(folder: Path, pattern: str = "*") -> int:
        return sum(file.stat().st_size for file in folder.glob(pattern) if file.name != "collection.tsv")

    planned = index_bytes(shape)
    for part, pattern in (("codes", "*.codes.pt"), ("residuals", "*.residuals.pt"), ("doclens", "doclens.*"), ("ivf", "ivf*")):
        assert planned[part] == pytest.approx(stored(index, pattern), rel=0.1), part
    assert sum(planned.values()) == pytest.approx(stored(index), rel=0.1)
    assert building_bytes(shape)["vectors"] == pytest.approx(stored(vectors, "*.safetensors"), rel=0.1)


def test_ms_marco_has_the_known_shape() -> None:
    assert MSMARCO.partitions == 131_072
    assert MSMARCO.sampled_vectors == pytest.approx(8.3e6, rel=0.01)
    assert 4 * 128 * MSMARCO.sampled_vectors == pytest.approx(4.3e9, rel=0.02)  # what k-means reads, as float32
    assert MSMARCO.chunks == 354
    assert sum(index_bytes(MSMARCO)[part] for part in ("codes", "residuals")) / 2**30 == pytest.approx(4.74, abs=0.01)


def test_the_disk_holds_the_vectors_and_the_sample_or_the_index() -> None:
    vectors, sample = building_bytes(MSMARCO).values()
    assert peak_disk(MSMARCO) == vectors + sum(index_bytes(MSMARCO).values())
    few = replace(MSMARCO, passages=1000)  # all of them are sampled
    assert peak_disk(few) == sum(building_bytes(few).values()) > building_bytes(few)["vectors"] + sum(index_bytes(few).values())
    assert sample < vectors


def test_more_ranks_share_all_but_the_clustering_and_the_files() -> None:
    rates = Rates(encoding=100, clustering=1e11, compression=1000)
    one, eight = hours(MSMARCO, rates), hours(replace(MSMARCO, ranks=8), rates)
    assert one["encoding"] == pytest.approx(8 * eight["encoding"])
    assert one["compression"] == pytest.approx(8 * eight["compression"], rel=0.01)  # one of them measures the held-out
    assert one["k-means"] == eight["k-means"]
    assert one["reading and writing"] == eight["reading and writing"]
    assert "encoding" not in hours(MSMARCO, replace(rates, encoding=None))


def test_a_chunk_is_at_most_a_ranks_share() -> None:
    few = Shape(1000, k=1, dim=128, nbits=2)
    assert few.chunks == 1
    assert (replace(few, ranks=4).chunk, replace(few, ranks=4).chunks) == (251, 4)
    assert replace(MSMARCO, ranks=8).chunk == MSMARCO.chunk == 25_000


@pytest.mark.parametrize(
    ("dim", "nbits", "gpu", "message"),
    [
        (128, 3, False, "nbits=3"),
        (100, 2, False, "dim must be a multiple of 16"),
        (3584, 4, True, "would need 1792 threads"),
        (3584, 4, False, None),
        (128, 2, True, None),
    ],
)
def test_what_colbert_cannot_pack_or_unpack_is_named(dim: int, nbits: int, gpu: bool, message: str | None) -> None:
    found = list(faults(dim, nbits, gpu=gpu))
    assert len(found) == (message is not None)
    assert all(message in fault for fault in found if message)


def test_limits_that_are_worked_around_say_what_it_costs() -> None:
    assert not list(notes(MSMARCO))
    [few] = notes(Shape(100, k=1, dim=128, nbits=2))
    assert few == "95 sampled vectors are too few for ColBERT's 128 partitions: there will be 64"
    assert not list(notes(replace(MSMARCO, dim=328)))
    [quantile] = notes(replace(MSMARCO, dim=3584))
    assert "measured on 4,681 vectors, not on 50,000" in quantile


def test_disk_and_memory_that_are_not_there_are_named() -> None:
    memory = memory_bytes(MSMARCO, weights=15 * 10**9)
    assert not list(shortages(MSMARCO, memory, Path("/data"), free=43 * 10**9, available=16 * 10**9))
    assert not list(shortages(MSMARCO, memory, Path("/data"), free=43 * 10**9, available=None))
    disk, encoding, sample = shortages(MSMARCO, memory, Path("/data"), free=41 * 10**9, available=8 * 10**9)
    assert disk.startswith("42.0 GB of disk are needed, 41.0 GB are free in /data")
    assert encoding.startswith("encoding holds 15.2 GB, 8.0 GB of memory are available")
    assert sample.startswith("k-means sample holds 8.5 GB")


def test_each_stages_memory_is_counted_by_what_it_holds() -> None:
    shape = Shape(10**6, k=2, dim=64, nbits=2)  # a vector of float32 is 256 bytes
    held = memory_bytes(shape, weights=1000)
    assert held["encoding"] == 1000 + 2 * 10_000 * (2 * 256 + 128)
    assert held["k-means sample"] == 2 * shape.sampled_vectors * 256
    assert held["k-means"] == shape.training_vectors * (256 + 128) + 2 * 256 * shape.partitions
    assert held["compression"] == 2 * 25_000 * 128 + 256 * shape.partitions + 4 * 2**29
    assert held["inverted list"] == 32 * 2 * 10**6
    assert held["searching"] == sum(index_bytes(shape)[part] for part in ("codes", "residuals", "ivf")) + 256 * shape.partitions
    few = memory_bytes(Shape(100, k=2, dim=512, nbits=2))
    assert few["encoding"] == 2 * 100 * (2 * 2048 + 1024)
    assert few["compression"] == 2 * 200 * 2048


def test_a_rate_is_the_median_of_rounds_of_the_longest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tried = SimpleNamespace(now=0.0), list[int]()
    waits = iter([0, 0, 0, 5, 1, 100])  # doubling, then three rounds

    def run(units: int) -> None:
        tried.append(units)
        clock.now += next(waits)

    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    assert rates({"step": Step(run, 16, 100)}) == {"step": 100 / 5}
    assert tried == [16, 32, 64, 100, 100, 100]


def test_steps_take_turns() -> None:
    tried: list[str] = []

    def note(name: str, units: int) -> None:
        tried.append(name)

    found = rates({name: Step(partial(note, name), 8, 8) for name in ("a", "b")})
    assert tried == ["a", "b"] * planning.ROUNDS
    assert min(found.values()) > 0


def test_example_passages_are_as_long_as_ms_marcos() -> None:
    lengths = [len(text) for text in example_passages(500)]
    assert sum(lengths) / 500 == pytest.approx(335, rel=0.05)
    assert min(lengths) < 250 < 420 < max(lengths)


def test_a_checkpoint_decides_the_shape_and_is_timed(quick: None, tiny_checkpoint: Path, encoded: list[str]) -> None:
    plan = make_plan(5000, checkpoint=str(tiny_checkpoint))
    assert (plan.shape.k, plan.shape.dim, plan.shape.nbits) == (K_PASSAGE, HIDDEN, 2)
    assert plan.hours is not None
    assert list(plan.hours) == ["encoding", "k-means", "compression", "reading and writing"]
    assert all(value > 0 for value in plan.hours.values())
    assert encoded
    assert not plan.refused
    with pytest.raises(UserError, match=r"--dim 128: .* has 16; leave --dim or the checkpoint out"):
        make_plan(5000, dim=128, checkpoint=str(tiny_checkpoint))


def test_a_checkpoint_that_merges_makes_the_figures_upper_bounds(
    quick: None, tiny_config: DiffusionConfig, tmp_path: Path
) -> None:
    replace(tiny_config, merge_above=0.9).save(tmp_path / "merging")
    plan = make_plan(5000, checkpoint=str(tmp_path / "merging"))
    assert any("fewer vectors where they are alike: all figures are upper bounds" in note for note in plan.notes)


def test_a_release_is_refused_with_the_command_that_helps() -> None:
    plan = make_plan(5000, checkpoint=str(PARITY / "released-dream"))
    assert plan.hours is None
    assert "colbert-diffusion convert" in plan.refused[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="plans for GPUs that are not here")
def test_hours_of_gpus_that_are_not_here_are_not_made_up() -> None:
    plan = make_plan(8_841_823, gpus=8)
    assert plan.hours is None
    assert plan.shape.ranks == 8
    assert plan.notes == ["hours can be measured only on a machine with a GPU; run plan there"]


def test_plan_from_the_command_line(tmp_path: Path) -> None:
    refused = run("plan", "--passages", 5000, "--dim", 100, "--json")
    assert refused.returncode == 1
    assert "dim must be a multiple of 16" in json.loads(refused.stdout)["refused"][0]
    done = run("plan", "--passages", 1000, "--k", 1, "--dim", 8, "--nbits", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1,000 passages x 1 vectors x 8 dimensions at 1 bits: 256 partitions\nindex: ")
    assert done.stderr == ""
    below = run("plan", "--passages", 0)
    assert below.returncode == 2
