import pytest

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import DiffusionConfig, LengthBound, PromptParts
from colbert_diffusion.encoding.prompts import Prompt, make_prompt

MASK = 99


def prompt(bound: LengthBound, max_length: int = 10, parts: PromptParts | None = None) -> Prompt:
    parts = parts or PromptParts((1, 2), (3,), (4, 5))
    config = DiffusionConfig(backbone="b", k_query=3, query_prompt=parts, query_max_length=max_length, length_bound=bound)
    return make_prompt(config, "query", lambda text: [ord(c) for c in text], MASK, filler=7)


def test_a_row_is_prefix_text_suffix_masks_tail() -> None:
    row = prompt("prompt").row([10, 11])
    assert row.ids == [1, 2, 10, 11, 3, MASK, MASK, MASK, 4, 5]
    assert row.ids[row.first_mask :][:3] == [MASK] * 3


def test_length_bound_prompt_counts_prefix_text_and_suffix_alone() -> None:
    row = prompt("prompt").row(range(100, 200))
    assert len(row.ids) == 10 + 3 + 2  # masks and tail come on top


def test_length_bound_text_counts_the_text_alone() -> None:
    row = prompt("text").row(range(100, 200))
    assert len(row.ids) == 2 + 10 + 1 + 3 + 2


def test_a_mask_id_inside_the_text_does_not_move_the_positions() -> None:
    row = prompt("prompt").row([MASK, MASK])
    assert row.first_mask == 5


def test_prompts_may_be_text() -> None:
    assert prompt("prompt", parts=PromptParts("a", "b", "c")).row([5]).ids == [97, 5, 98, MASK, MASK, MASK, 99]


def test_an_empty_row_is_filled() -> None:
    config = DiffusionConfig(backbone="b")
    assert make_prompt(config, "query", lambda text: [], None, filler=7).row([]).ids == [7]


def test_a_prompt_without_room_for_text_is_refused() -> None:
    with pytest.raises(UserError, match="no room"):
        prompt("prompt", max_length=3)
