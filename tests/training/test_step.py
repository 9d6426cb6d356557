import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import DiffusionConfig, PromptParts
from colbert_diffusion.encoding.conversion import convert
from colbert_diffusion.encoding.readouts import READOUTS
from colbert_diffusion.encoding.scoring import mean_maxsim
from colbert_diffusion.training.losses import Targets, infonce
from colbert_diffusion.training.model import TrainableModel
from colbert_diffusion.training.recipe import Recipe
from colbert_diffusion.training.step import TrainingStep, hash_of

from ..backbones.published import publish
from ..conftest import make_texts
from ..encoding.test_decoding import write_tokenizer
from .conftest import make_examples

Gradients = dict[str, torch.Tensor]

PLAIN = Recipe(batch=12, temperature=0.05, query_tokens=12, passage_tokens=40, lora_rank=4, bf16=False, chunk_tokens=200)
EVERYTHING = replace(
    PLAIN,
    negatives=2,
    symmetric=True,
    sparse=1.0,
    scores=1.0,
    diffusion=1.0,
    diffusion_share=0.5,
    diversity=0.1,
    nested_k_query=(1, 2, 4),
    nested_k_passage=(1, 2, 8),
    nested_dim=(4, 16),
)
ONE_CHUNK = 10**6


def gradients(checkpoint: Path, recipe: Recipe, step: int = 3) -> tuple[Gradients, dict[str, float]]:
    accelerator = Accelerator(cpu=True)
    model = TrainableModel(checkpoint, recipe, accelerator.device)
    shake(model)
    losses = TrainingStep(model, recipe, accelerator)(make_examples(recipe.batch, recipe.negatives), step)
    return {name: p.grad for name, p in model.parameters.items() if p.grad is not None}, losses


def shake(model: TrainableModel) -> None:
    """LoRA starts at zero, where half of its gradients vanish."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters.values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def same(ours: Gradients, theirs: Gradients, tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, theirs[name], atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("recipe", [PLAIN, EVERYTHING], ids=["plain", "every loss"])
def test_gradient_caching_gives_one_big_batchs_gradients(recipe: Recipe, tiny_checkpoint: Path) -> None:
    cached, losses = gradients(tiny_checkpoint, replace(recipe, cached=True))
    whole, expected = gradients(tiny_checkpoint, replace(recipe, cached=False, chunk_tokens=ONE_CHUNK))
    same(cached, whole)
    assert losses == pytest.approx(expected, abs=1e-5)


def test_rotated_dimensions_stay_so_unless_their_prefixes_are_trained(tiny_bert: Path, tmp_path: Path) -> None:
    convert(str(tiny_bert), tmp_path / "rotated", dim=8, fit_on=make_texts(40), rotate=True)
    for recipe, projection in ((PLAIN, "rotated"), (replace(PLAIN, nested_dim=(4,)), "learned")):
        assert TrainableModel(tmp_path / "rotated", recipe, torch.device("cpu")).config.projection == projection


def test_the_gradients_are_those_of_the_loss_written_down_plainly(tiny_checkpoint: Path) -> None:
    ours, _ = gradients(tiny_checkpoint, PLAIN)
    model = TrainableModel(tiny_checkpoint, PLAIN, torch.device("cpu"))
    shake(model)
    examples = make_examples(PLAIN.batch)
    with sdpa_kernel(SDPBackend.MATH):  # another kernel's rounding is larger than the tolerance
        queries = model.projection(
            model.encoder.readout.states(model.encoder.rows([e.query for e in examples], "query"), "query")
        )
        passages = model.projection(
            model.encoder.readout.states(model.encoder.rows([e.passages[0] for e in examples], "passage"), "passage")
        )
    targets = Targets(torch.arange(12), torch.zeros(12, 12, dtype=torch.bool), 1)
    torch.autograd.backward(infonce(mean_maxsim(queries, passages) / PLAIN.temperature, targets, symmetric=False))
    same(ours, {name: p.grad for name, p in model.parameters.items() if p.grad is not None})


def test_a_chunks_second_pass_drops_what_its_first_dropped(tiny_checkpoint: Path) -> None:
    recipe = replace(PLAIN, lora_dropout=0.5)
    cached, _ = gradients(tiny_checkpoint, replace(recipe, cached=True))
    kept, _ = gradients(tiny_checkpoint, replace(recipe, cached=False))
    same(cached, kept)
    other, _ = gradients(tiny_checkpoint, replace(recipe, cached=True), step=4)
    assert any((cached[name] - other[name]).abs().max() > 1e-3 for name in cached)


def test_gradient_checkpointing_changes_no_gradient(tiny_checkpoint: Path) -> None:
    kept, _ = gradients(tiny_checkpoint, PLAIN)
    recomputed, _ = gradients(tiny_checkpoint, replace(PLAIN, gradient_checkpointing=True))
    same(recomputed, kept)


WORKER = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from accelerate import Accelerator
from tests.training.test_step import EVERYTHING, gradients
found, _ = gradients(Path(sys.argv[1]), EVERYTHING)
us = Accelerator(cpu=True)
assert us.num_processes == 2
save_file({name: g.contiguous() for name, g in found.items()}, f"{sys.argv[2]}/{us.process_index}.safetensors")
"""


def test_two_processes_give_one_processs_gradients_on_the_joined_batch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{WORKER}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(script), str(tiny_checkpoint), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone, _ = gradients(tiny_checkpoint, EVERYTHING)
    for rank in range(2):
        same(load_file(tmp_path / f"{rank}.safetensors"), alone)


@pytest.fixture
def generating(tmp_path: Path) -> Path:
    """PromptReps over a tiny Qwen3, whose tokens are letters."""
    publish("qwen3", tmp_path / "backbone")
    write_tokenizer(tmp_path / "backbone")
    prompt, shape = PromptParts("pa", "sm"), {"k_query": 3, "k_passage": 5, "dim": 32}
    config = DiffusionConfig(str(tmp_path / "backbone"), readout="generated", query_prompt=prompt, passage_prompt=prompt)
    replace(config, **shape).save(tmp_path / "generating")  # type: ignore[arg-type]
    return tmp_path / "generating"


def test_decoded_positions_train_and_caching_changes_nothing(generating: Path) -> None:
    """The tokens are decoded in the first pass and in the second alike; words too, by the backbone's own head."""
    recipe = replace(PLAIN, sparse=1.0)
    cached, losses = gradients(generating, replace(recipe, cached=True))
    whole, expected = gradients(generating, replace(recipe, cached=False, chunk_tokens=ONE_CHUNK))
    same(cached, whole, 1e-4)
    assert losses == pytest.approx(expected, abs=1e-4)
    assert {name.rpartition(".lora_")[2] for name in cached} == {"A.default.weight", "B.default.weight"}


def test_the_diffusion_loss_needs_a_mask(generating: Path) -> None:
    with pytest.raises(UserError, match="needs a mask token, family causal has none"):
        gradients(generating, replace(PLAIN, diffusion=1.0))


@pytest.mark.parametrize("readout", [name for name, readout in READOUTS.items() if not readout.decodes])
def test_every_readout_trains(readout: str, tiny_config: DiffusionConfig, tmp_path: Path) -> None:
    single: dict[str, Any] = {"k_query": 1, "k_passage": 1} if readout in ("mean", "last") else {}
    if readout == "tokens":
        single = {"k_query": 16, "k_passage": 48}
    replace(tiny_config, readout=readout, **single).save(tmp_path)
    found, _ = gradients(tmp_path, PLAIN)
    assert found
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    if readout == "masked":
        return
    with pytest.raises(UserError, match="readout that predicts some"):
        TrainableModel(tmp_path, replace(PLAIN, diffusion=1.0), torch.device("cpu"))


def test_without_an_adapter_all_weights_move_but_the_heads_and_poolers(tiny_checkpoint: Path) -> None:
    model = TrainableModel(tiny_checkpoint, replace(PLAIN, lora_rank=0), torch.device("cpu"))
    assert "backbone.embeddings.word_embeddings.weight" in model.parameters
    assert not any("pooler" in name for name in model.parameters)


def test_a_checkpoint_saved_and_loaded_for_training_goes_on_from_where_it_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = TrainableModel(tiny_checkpoint, EVERYTHING, torch.device("cpu"))
    shake(model)
    model.save(tmp_path / "saved", {})
    again = TrainableModel(tmp_path / "saved", EVERYTHING, torch.device("cpu"))
    assert again.config.nested
    assert again.parameters.keys() == model.parameters.keys()
    texts = [e.passages[0] for e in make_examples(3)]
    for ours, theirs in zip(again.live().encode_document(texts), model.live().encode_document(texts), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(theirs), atol=2e-3, rtol=0)


def test_negatives_that_are_wanted_and_missing_are_named_with_the_remedy(tiny_checkpoint: Path) -> None:
    recipe = replace(PLAIN, negatives=1)
    model = TrainableModel(tiny_checkpoint, recipe, torch.device("cpu"))
    with pytest.raises(UserError, match="--mine"):
        TrainingStep(model, recipe, Accelerator(cpu=True))(make_examples(recipe.batch), 1)


def test_seeds_differ_in_every_part() -> None:
    assert len({hash_of(s, t, side) for s in range(5) for t in range(50) for side in ("query", "passage")}) == 500
