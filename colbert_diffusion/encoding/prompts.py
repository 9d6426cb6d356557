"""Token ids of a text -> prefix | text | suffix | mask x k | tail. Knows ids, not models.

Positions come from offsets, never from searching for the mask id: a text may contain it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import UserError
from ..config import DiffusionConfig, Part, Side


class Row(NamedTuple):
    """One model input: its token ids and the offset of the first mask (of the tail, when there are no masks)."""

    ids: list[int]
    first_mask: int


@dataclass(frozen=True)
class Prompt:
    """The frame around a text's ids.

    Args:
        prefix, suffix, tail: token ids.
        masks: the mask ids; vectors are read at the first of them.
        room: how many text ids fit; the rest of a text is cut off.
        filler: stands in when a row would be empty (an empty text with an empty frame).
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    masks: tuple[int, ...]
    tail: tuple[int, ...]
    room: int
    filler: int

    @property
    def max_row(self) -> int:
        """The longest row this prompt makes, in tokens."""
        return len(self.prefix) + self.room + len(self.suffix) + len(self.masks) + len(self.tail)

    def row(self, text_ids: Sequence[int]) -> Row:
        """Frame one text's ids."""
        head = [*self.prefix, *text_ids[: self.room], *self.suffix]
        ids = [*head, *self.masks, *self.tail]
        return Row(ids, len(head)) if ids else Row([self.filler], 0)


def make_prompt(
    config: DiffusionConfig,
    side: Side,
    tokenize: Callable[[str], Sequence[int]],
    mask_token_id: int | None,
    filler: int,
) -> Prompt:
    """Resolve a side's prompt to ids. `mask_token_id` None: no masks are appended.

    Raises:
        UserError: prefix and suffix leave no room for a text (length_bound "prompt").
    """

    def ids(part: Part) -> tuple[int, ...]:
        return tuple(tokenize(part)) if isinstance(part, str) else part

    parts = config.prompt(side)
    prefix, suffix, tail = ids(parts.prefix), ids(parts.suffix), ids(parts.tail)
    room = config.max_length(side)
    if config.length_bound == "prompt":
        room -= len(prefix) + len(suffix)
        if room < 1:
            raise UserError(
                f"{side}_max_length {config.max_length(side)} leaves no room for a text: prefix {len(prefix)} + "
                f"suffix {len(suffix)} tokens; raise it to {len(prefix) + len(suffix) + 32} or more"
            )
    masks = () if mask_token_id is None else (mask_token_id,) * config.masks(side)
    return Prompt(prefix, suffix, masks, tail, room, filler)


def pad(rows: Sequence[Sequence[int]], filler_id: int) -> tuple[Tensor, Tensor]:
    """Pad on the right: absolute positions need it, RoPE does not care.

    Returns:
        ids int64 (batch, longest), lengths int64 (batch,).
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), filler_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, lengths
