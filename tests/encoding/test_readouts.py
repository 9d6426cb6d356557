from dataclasses import replace

import pytest
import torch

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import DiffusionConfig
from colbert_diffusion.encoding.encoder import Encoder
from colbert_diffusion.encoding.readouts import READOUTS, find_readout
from colbert_diffusion.encoding.scoring import Vectors

STATES = torch.arange(2 * 6 * 1, dtype=torch.float32).reshape(2, 6, 1)  # values 0..5 and 6..11
LENGTHS, FIRST = torch.tensor([6, 4]), torch.tensor([2, 1])


@pytest.mark.parametrize(
    ("name", "offset", "k", "expected"),
    [
        ("masked", 0, 2, [[2, 3], [7, 8]]),
        ("masked", -1, 2, [[1, 2], [6, 7]]),
        ("mean", 0, 1, [[2.5], [7.5]]),
        ("last", 0, 1, [[5], [9]]),
        ("tokens", 0, 5, [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]),
    ],
)
def test_each_readout_reads_its_positions(
    encoder: Encoder, name: str, offset: int, k: int, expected: list[list[float]]
) -> None:
    config = find_readout(name).fitted(replace(encoder.config, readout=name, read_offset=offset))
    readout = find_readout(name)(encoder.backbone, config)
    assert readout.read(STATES, LENGTHS, FIRST, k).squeeze(-1).tolist() == expected


@pytest.mark.parametrize("name", [name for name, readout in READOUTS.items() if not readout.decodes])  # test_decoding
def test_each_readout_gives_the_vectors_that_its_config_says(encoder: Encoder, name: str) -> None:
    """Through the whole encoder, of texts of several lengths; `fitted` gives a config that `check` takes."""
    config = find_readout(name).fitted(replace(encoder.config, readout=name))
    texts = ["paris", "the cat sleeps in berlin and runs"]
    found: list[Vectors] = list(Encoder(encoder.backbone, config, encoder.projection).encode(texts, "passage"))
    expected = {"masked": [8, 8], "mean": [1, 1], "last": [1, 1], "tokens": [4, 10]}  # [CLS] text [SEP] [SEP]
    assert [len(vectors) for vectors in found] == expected[name]


@pytest.mark.parametrize("name", ["mean", "last"])
def test_a_single_vector_readout_refuses_k_above_one(name: str) -> None:
    with pytest.raises(UserError, match="one vector per text"):
        find_readout(name).check(DiffusionConfig(backbone="b", readout=name, k_query=4, k_passage=1))


@pytest.mark.parametrize("name", ["mean", "last", "tokens"])
def test_an_offset_is_for_masks_alone(name: str) -> None:
    config = find_readout(name).fitted(DiffusionConfig(backbone="b", readout=name, read_offset=-1))
    with pytest.raises(UserError, match="no meaning"):
        find_readout(name).check(config)


@pytest.mark.parametrize("name", ["tokens", "generated"])
@pytest.mark.parametrize("field", ["merge_above", "cover_above"])
def test_a_readout_of_texts_own_lengths_keeps_all_it_reads(name: str, field: str) -> None:
    with pytest.raises(UserError, match=f"set {field} to null"):
        find_readout(name).check(replace(DiffusionConfig(backbone="b", readout=name), **{field: 0.9}))  # type: ignore[arg-type]


def test_an_unknown_readout_lists_the_known() -> None:
    with pytest.raises(UserError, match="masked"):
        find_readout("max")


def test_masks_may_stand_at_the_backbones_last_positions(encoder: Encoder) -> None:
    """Of the longest row too: what is clamped is padding alone."""
    masks = 8 + len(encoder.prompts["passage"].tail)
    last = encoder.backbone.max_positions - masks
    readout = find_readout("masked")(encoder.backbone, replace(encoder.config, mask_position=last))
    positions = readout._positions(torch.tensor([3, 48]), 48 + masks + 2)
    assert positions is not None
    assert positions[0, 3 : 3 + masks].tolist() == positions[1, 48 : 48 + masks].tolist() == list(range(last, last + masks))
    assert positions.max() == encoder.backbone.max_positions - 1
