import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig, convert
from colbert_diffusion.common import files
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.locking import writing
from colbert_diffusion.evaluation.benchmarks import read_benchmark
from colbert_diffusion.evaluation.exact import Cell, cell_runs, exact_run
from colbert_diffusion.evaluation.measuring import evaluate
from colbert_diffusion.evaluation.plaid import build_index, plaid_run
from colbert_diffusion.training.data import read_source
from colbert_diffusion.training.log import read_log
from colbert_diffusion.training.recipe import Recipe
from colbert_diffusion.training.state import load_state, save_state, saved_step
from colbert_diffusion.training.teacher import Teacher
from colbert_diffusion.training.trainer import Data, draw_batches, rate_at, train

from ..conftest import make_texts

RECIPE = Recipe(
    steps=20,
    batch=32,
    learning_rate=5e-3,
    temperature=0.05,
    symmetric=True,
    query_tokens=12,
    passage_tokens=40,
    lora_rank=8,
    bf16=False,
    nested_k_query=(1, 2, 4),
    nested_k_passage=(1, 2, 4, 8),
    nested_dim=(8, 16),
    save_every=5,
    evaluate_every=10,
)


def losses(out: Path) -> list[dict[str, float]]:
    return [entry["losses"] for entry in read_log(out.with_name(out.name + ".training") / "log.jsonl") if "losses" in entry]


def quality(checkpoint: str | Path, folder: Path) -> float:
    benchmark = read_benchmark(folder)
    runs = {"exact": exact_run(DiffusionCheckpoint(checkpoint), benchmark)}
    return evaluate(benchmark, runs, "nDCG@10").means["exact"]["nDCG@10"]


def test_twenty_steps_on_200_pairs_beat_the_start_and_index_and_give_real_prefixes(
    tiny_checkpoint: Path, pairs: Path, benchmark_folder: Path, tmp_path: Path, encoded: list[str]
) -> None:
    start = quality(tiny_checkpoint, benchmark_folder)
    recipe = replace(RECIPE, lora_rank=0, learning_rate=1e-2, batch=100)
    out = train(tiny_checkpoint, Data([pairs]), tmp_path / "out", recipe, dev=[benchmark_folder], command="train it")
    trained = quality(out, benchmark_folder)
    assert trained > start + 0.2

    benchmark = read_benchmark(benchmark_folder)
    served = {"plaid": plaid_run(build_index(str(out), benchmark, tmp_path / "index", nbits=2), benchmark, depth=100)}
    assert evaluate(benchmark, served, "nDCG@10").means["plaid"]["nDCG@10"] > start + 0.2

    encoded.clear()
    cells = [Cell(8, 16), Cell(4, 16), Cell(1, 8)]
    runs = cell_runs(DiffusionCheckpoint(out), benchmark, cells)
    assert len(encoded) == len(benchmark.documents) + len(benchmark.queries)
    means = evaluate(benchmark, {str(cell): run for cell, run in runs.items()}, "nDCG@10").means
    assert means[str(cells[0])]["nDCG@10"] == pytest.approx(trained, abs=1e-6)
    assert all(means[str(cell)]["nDCG@10"] > 0.1 for cell in cells)

    about = DiffusionConfig.load(out)
    assert about.nested
    assert about.training["command"] == "train it"
    assert about.training["recipe"]["temperature"] == RECIPE.temperature
    assert [entry["file"] for entry in about.training["data"]] == [pairs.name]
    assert about.training["best"]["step"] == about.training["step"]
    work = out.with_name("out.training")
    assert (work / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(losses(out)) == RECIPE.steps


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.training.test_trainer import RECIPE, Data, train
from dataclasses import replace
from colbert_diffusion.training.step import TrainingStep
call = TrainingStep.__call__
def counted(self, examples, step):
    with open(sys.argv[3] + ".steps", "a") as file:
        print(step, file=file)
    return call(self, examples, step)
TrainingStep.__call__ = counted
recipe = replace(RECIPE, lora_dropout=0.1, diffusion=0.5, sparse=0.5)
train(sys.argv[1], Data([Path(sys.argv[2])]), Path(sys.argv[3]), recipe)
"""


def launch(checkpoint: Path, pairs: Path, out: Path, folder: Path) -> "subprocess.Popen[bytes]":
    script = folder / "run.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    with (folder / "output.txt").open("wb") as output:
        command = [sys.executable, str(script), str(checkpoint), str(pairs), str(out)]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def test_a_killed_run_goes_on_to_the_same_losses_and_weights(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch(tiny_checkpoint, pairs, whole, tmp_path).wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()
    process = launch(tiny_checkpoint, pairs, broken, tmp_path)
    deadline = time.monotonic() + 120
    while len(losses(broken)) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not broken.exists()
    assert 8 <= len(losses(broken)) < RECIPE.steps
    saved = saved_step(broken.with_name("broken.training") / "state")
    assert saved is not None
    (tmp_path / "broken.steps").unlink()
    assert launch(tiny_checkpoint, pairs, broken, tmp_path).wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()
    made = list(map(int, (tmp_path / "broken.steps").read_text().split()))
    assert made == list(range(saved + 1, RECIPE.steps + 1))  # none of those that were saved
    assert losses(broken) == losses(whole)
    assert (broken / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def short() -> Recipe:
    return replace(RECIPE, steps=2, save_every=1)


def test_on_a_processor_that_emulates_bfloat16_a_run_is_in_float32_and_says_so(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    two = replace(RECIPE, steps=2)
    train(tiny_checkpoint, Data([pairs]), tmp_path / "asked", replace(two, bf16=True))
    assert "bfloat16 slowly" in capsys.readouterr().err
    train(tiny_checkpoint, Data([pairs]), tmp_path / "plain", two)
    assert "bfloat16" not in capsys.readouterr().err
    assert losses(tmp_path / "asked") == losses(tmp_path / "plain")


def test_another_run_under_the_same_name_is_refused_by_what_differs(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    out = train(tiny_checkpoint, Data([pairs]), tmp_path / "out", short)
    with pytest.raises(UserError, match="exists"):
        train(tiny_checkpoint, Data([pairs]), out, short)
    shutil.rmtree(out)
    with pytest.raises(UserError, match=r"recipe\.batch 32 there, 16 now"):
        train(tiny_checkpoint, Data([pairs]), out, replace(short, batch=16))
    pairs.write_text(pairs.read_text() + '{"query": "cat", "positive": "the cat sleeps"}\n')
    with pytest.raises(UserError, match=r"holds another run \(data "):
        train(tiny_checkpoint, Data([pairs]), out, short)


def test_a_run_is_refused_while_another_process_trains_into_the_same_folder(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    with writing(tmp_path / "out"), pytest.raises(UserError, match=f"is being written by process {os.getpid()}"):
        train(tiny_checkpoint, Data([pairs]), tmp_path / "out", short)
    assert not (tmp_path / "out.training").exists()


def test_a_state_is_whole_on_the_disk_before_the_one_before_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"a": torch.nn.Parameter(torch.arange(4.0))}
    optimizer = torch.optim.AdamW(parameters.values())
    for step in (1, 2):
        save_state(tmp_path, step, parameters, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    for step in (3, 2):  # a new one, and the same one once more
        with monkeypatch.context() as patch:
            patch.setattr(files, "put_in_place", dies)
            with pytest.raises(KeyboardInterrupt):
                save_state(tmp_path, step, parameters, optimizer)
        assert saved_step(tmp_path) == 2
        load_state(tmp_path, 2, parameters, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_best_weights_caught_between_two_renames_are_back_when_the_run_goes_on(
    tiny_checkpoint: Path, pairs: Path, benchmark_folder: Path, tmp_path: Path, short: Recipe
) -> None:
    out = train(tiny_checkpoint, Data([pairs]), tmp_path / "out", short, dev=[benchmark_folder])
    first = (out / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(out)
    work = tmp_path / "out.training"
    (work / "best").rename(work / ".best.replaced")  # where a system without an exchange of folders leaves it for a moment
    train(tiny_checkpoint, Data([pairs]), out, short, dev=[benchmark_folder])
    assert (out / "adapter_model.safetensors").read_bytes() == first


def test_a_finished_run_whose_result_was_deleted_only_writes_it_again(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe, encoded: list[str]
) -> None:
    out = train(tiny_checkpoint, Data([pairs]), tmp_path / "out", short)
    first = (out / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(out)
    train(tiny_checkpoint, Data([pairs]), out, short)
    assert (out / "adapter_model.safetensors").read_bytes() == first


def test_training_goes_on_from_a_trained_checkpoint(tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe) -> None:
    first = train(tiny_checkpoint, Data([pairs]), tmp_path / "first", short)
    second = train(first, Data([pairs]), tmp_path / "second", short)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def test_a_teacher_is_asked_once_per_text_over_all_runs(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe, encoded: list[str]
) -> None:
    taught = replace(short, teacher=str(tiny_checkpoint), teacher_weight=1.0, steps=14)
    train(tiny_checkpoint, Data([pairs]), tmp_path / "first", taught)
    assert len(encoded) == 400  # 200 queries and 200 passages, seen more than twice
    train(tiny_checkpoint, Data([pairs]), tmp_path / "second", taught)
    assert len(encoded) == 400
    assert losses(tmp_path / "first") == losses(tmp_path / "second")


def test_grouped_batches_are_each_epochs_examples_once_and_are_resumed_inside_a_pool(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    recipe = replace(short, teacher=str(tiny_checkpoint), grouped=3, batch=10)
    stream, teacher = Data([pairs]).stream(recipe), Teacher(str(tiny_checkpoint), recipe, torch.device("cpu"), tmp_path)
    batches = list(itertools.islice(draw_batches(stream, recipe, teacher, 0), 6))
    plain = itertools.islice(stream.iterate(), 60)
    assert sorted(example.query for batch in batches for example in batch) == sorted(example.query for example in plain)
    assert batches[0] != list(itertools.islice(stream.iterate(), 10))
    assert next(draw_batches(stream, recipe, teacher, 4)) == batches[4]


def test_coverage_needs_a_teacher_of_the_same_dim(
    tiny_checkpoint: Path, tiny_config: DiffusionConfig, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    taught = replace(short, teacher=str(tiny_checkpoint), coverage=1.0)
    train(tiny_checkpoint, Data([pairs]), tmp_path / "out", taught)
    assert all(step["coverage"] > 0 for step in losses(tmp_path / "out"))
    convert(tiny_config.backbone, tmp_path / "other", dim=8, fit_on=make_texts(20))
    with pytest.raises(UserError, match="of dim 8; the checkpoint's dim is 16"):
        train(tiny_checkpoint, Data([pairs]), tmp_path / "wrong", replace(taught, teacher=str(tmp_path / "other")))


def test_token_vectors_teach_texts_of_different_lengths(
    tiny_checkpoint: Path, tiny_config: DiffusionConfig, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    convert(tiny_config.backbone, tmp_path / "tokens", readout="tokens", dim=16, query_max_length=16, passage_max_length=48)
    taught = replace(short, teacher=str(tmp_path / "tokens"), coverage=1.0, teacher_weight=1.0, contrastive=0.0, grouped=2)
    train(tiny_checkpoint, Data([pairs]), tmp_path / "out", replace(taught, steps=24))
    seen = losses(tmp_path / "out")
    for name in ("coverage", "teacher"):
        first, last = (sum(step[name] for step in part) for part in (seen[:6], seen[-6:]))
        assert 0 < last < first, name


def test_words_and_a_second_teachers_scores_are_added_to_the_firsts_and_codes_to_the_passages(
    tiny_checkpoint: Path, tiny_config: DiffusionConfig, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    convert(tiny_config.backbone, tmp_path / "other", readout="mean", dim=16)
    whole = replace(short, nested_k_query=(), nested_k_passage=(), nested_dim=())
    taught = replace(whole, teacher=str(tiny_checkpoint), teacher_weight=1.0, contrastive=0.0)
    recipes = {"plain": taught, "words": replace(taught, teacher_words=0.3), "codes": replace(taught, codes=1)}
    recipes["second"] = replace(taught, second_teacher=str(tmp_path / "other"), second_weight=1.0)
    first = {}
    for name, recipe in recipes.items():
        train(tiny_checkpoint, Data([pairs]), tmp_path / name, recipe)
        first[name] = losses(tmp_path / name)[0]["teacher"]
    assert first["plain"] == pytest.approx(0, abs=1e-3)  # it is its own teacher
    assert first["words"] > 0.01
    assert first["codes"] > 0.01
    assert first["second"] > 0.01


def test_hard_negatives_are_mined_first_and_trained_on(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    recipe = replace(short, negatives=2)
    mined = Data([pairs]).mined(tiny_checkpoint, recipe, tmp_path / "mined")
    examples = [example for path in mined.paths for example in read_source(path) if len(example.passages) > 1]
    assert len(examples) > 100
    out = train(tiny_checkpoint, mined, tmp_path / "out", recipe)
    assert DiffusionConfig.load(out).training["data"][0]["file"] == "mined.jsonl"
    with pytest.raises(UserError, match="negatives of 1 or more"):
        Data([pairs]).mined(tiny_checkpoint, short, tmp_path / "none")


def test_full_training_writes_whole_weights_that_load(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    out = train(tiny_checkpoint, Data([pairs]), tmp_path / "out", replace(short, lora_rank=0, learning_rate=1e-3))
    assert (out / "model.safetensors").is_file()
    assert not (out / "adapter_config.json").exists()
    assert DiffusionCheckpoint(out).encode_query(["cat"])[0].shape == (4, 16)


def test_two_processes_train_what_one_does(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    options = ["--set", "steps=3", "--set", "batch=32", "--set", "bf16=false", "--set", "query_tokens=12"]
    options += ["--set", "passage_tokens=40"]
    arguments = ["train", str(tiny_checkpoint), str(pairs), *options, "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher, out in ((torchrun, tmp_path / "two"), ([sys.executable], tmp_path / "one")):
        command = [*launcher, "-m", "colbert_diffusion", *arguments, str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
    assert DiffusionConfig.load(tmp_path / "two").training["processes"] == 2
    for ours, theirs in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_loss_that_is_not_a_number_ends_the_run_with_the_remedy(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, short: Recipe
) -> None:
    with pytest.raises(UserError, match="learning rate"):
        train(tiny_checkpoint, Data([pairs]), tmp_path / "out", replace(short, learning_rate=1e30, clip=0.0, steps=10))
    assert not (tmp_path / "out").exists()


def test_the_rate_climbs_then_falls_to_its_end() -> None:
    recipe: Any = Recipe(steps=100, warmup=10, final=0.1)
    rates = [rate_at(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == rates[9] == 1
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_command_line_names_what_is_wrong(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "colbert_diffusion",
        "train",
        str(tiny_checkpoint),
        str(pairs),
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run([*command, "--set", "steps"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --set steps: expected FIELD=VALUE")
    assert done.stdout == ""
