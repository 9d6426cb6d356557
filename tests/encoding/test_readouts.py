import pytest
import torch

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import DiffusionConfig
from colbert_diffusion.encoding.readouts import READOUTS, get_readout

STATES = torch.arange(2 * 6 * 1, dtype=torch.float32).reshape(2, 6, 1)  # values 0..5 and 6..11
LENGTHS, FIRST = torch.tensor([6, 4]), torch.tensor([2, 1])


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("masked", 2, [[2, 3], [7, 8]]),
        ("mean", 1, [[2.5], [7.5]]),
        ("last", 1, [[5], [9]]),
        ("tokens", 5, [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]),
    ],
)
def test_each_readout_reads_its_positions(name: str, k: int, expected: list[list[float]]) -> None:
    read = READOUTS[name].read(STATES, LENGTHS, FIRST, k)
    assert read.squeeze(-1).tolist() == expected


@pytest.mark.parametrize("name", ["mean", "last"])
def test_a_single_vector_readout_refuses_k_above_one(name: str) -> None:
    with pytest.raises(UserError, match="one vector per text"):
        get_readout(DiffusionConfig(backbone="b", readout=name, k_query=4, k_passage=1))


def test_token_vectors_are_not_merged() -> None:
    with pytest.raises(UserError, match="merges no vectors"):
        get_readout(DiffusionConfig(backbone="b", readout="tokens", merge_above=0.9))


def test_an_unknown_readout_lists_the_known() -> None:
    with pytest.raises(UserError, match="masked"):
        get_readout(DiffusionConfig(backbone="b", readout="max"))
