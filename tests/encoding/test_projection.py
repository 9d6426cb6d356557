from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import PROJECTION_FILE, DiffusionConfig
from colbert_diffusion.encoding.projection import Projection, fit_pca, load_projection

CONFIG = DiffusionConfig(backbone="b", dim=8, projection="pca")


def states(count: int = 200, hidden: int = 32, rank: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, rank, generator=generator) @ torch.randn(rank, hidden, generator=generator)


@pytest.mark.parametrize("projection", [Projection(), Projection(torch.randn(8, 32))])
def test_vectors_are_normalised_float32(projection: Projection) -> None:
    vectors = projection(states().bfloat16())
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(vectors)), atol=1e-5)


def test_vectors_are_normalised_again_after_truncation() -> None:
    cut = Projection(torch.randn(8, 32)).truncated(4)(states())
    assert cut.shape[-1] == 4
    assert torch.allclose(cut.norm(dim=-1), torch.ones(len(cut)), atol=1e-5)


def test_pca_keeps_every_dot_product_of_states_that_span_no_more_dimensions() -> None:
    low_rank = states(rank=8)
    vectors = fit_pca([low_rank[:50], low_rank[50:]], 8)(low_rank)
    unit = normalize(low_rank, dim=-1)
    assert torch.allclose(vectors @ vectors.T, unit @ unit.T, atol=1e-4)


def test_further_dimensions_follow_those_of_before_and_hold_what_these_leave() -> None:
    low_rank = states(rank=8)
    first = Projection(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    more = fit_pca([low_rank], 8 + 3, first)
    assert first.weight is not None
    assert more.weight is not None
    assert torch.allclose(more.weight[:3], first.weight)
    further = more.weight[3:]
    assert torch.allclose(further @ first.weight.T, torch.zeros(8, 3), atol=1e-4)
    assert torch.allclose(further.norm(dim=1), first.weight.norm(dim=1).mean().expand(8), atol=1e-4)
    inside = torch.linalg.lstsq(more.weight.T, low_rank.T).solution  # the states lie in what the rows span
    assert torch.allclose(more.weight.T @ inside, low_rank.T, atol=1e-3)


def test_pca_does_not_depend_on_how_the_states_are_batched() -> None:
    one, many = fit_pca([states()], 4), fit_pca(states().split(7), 4)
    assert one.weight is not None
    assert many.weight is not None
    assert torch.allclose(one.weight.abs(), many.weight.abs(), atol=1e-5)  # directions have no sign


def test_pca_refuses_too_few_texts_and_too_large_a_dim() -> None:
    with pytest.raises(UserError, match="the texts gave 3"):
        fit_pca([states()[:3]], 8)
    with pytest.raises(UserError, match="hidden size 32"):
        fit_pca([states()], 64)
    assert fit_pca([states()[:8]], 8).weight is not None  # as many as dimensions are enough


def test_a_saved_projection_loads_as_it_was_and_cut_to_the_configs_dim(tmp_path: Path) -> None:
    projection = fit_pca([states()], 8)
    projection.save(tmp_path)
    loaded, cut = load_projection(CONFIG, tmp_path, 32), load_projection(replace(CONFIG, dim=4), tmp_path, 32)
    assert projection.weight is not None
    assert torch.equal(loaded.weight, projection.weight)  # type: ignore[arg-type]
    assert torch.equal(cut.weight, projection.weight[:4])  # type: ignore[arg-type]


def test_a_projection_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        load_projection(CONFIG, tmp_path, 32)
    with pytest.raises(UserError, match="without a projection"):
        load_projection(replace(CONFIG, projection="none"), tmp_path, 32)
    fit_pca([states()], 8).save(tmp_path)
    with pytest.raises(UserError, match="shape"):
        load_projection(CONFIG, tmp_path, 64)
    (tmp_path / PROJECTION_FILE).write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="damaged"):
        load_projection(CONFIG, tmp_path, 32)


@pytest.mark.parametrize("shape", [(32,), (1, 32, 1), (8, 32, 1), (7, 32)], ids=str)
def test_a_weight_that_is_no_matrix_of_dim_rows_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(shape)}, tmp_path / PROJECTION_FILE)
    with pytest.raises(UserError, match=r"has shape .*expected \(at least 8, 32\)"):
        load_projection(CONFIG, tmp_path, 32)


def test_a_cut_to_more_dimensions_than_there_are_is_refused() -> None:
    assert Projection(torch.zeros(8, 32)).truncated(8).weight is not None
    with pytest.raises(UserError, match="has 8 dimensions"):
        Projection(torch.zeros(8, 32)).truncated(9)
    with pytest.raises(UserError, match="has no projection"):
        Projection().truncated(8)
