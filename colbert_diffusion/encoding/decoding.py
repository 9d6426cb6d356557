"""Greedy decoding of a causal model, one token after another with its keys and values kept. Knows no prompts or vectors."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

from ..backbones.backbone import Backbone


@torch.no_grad()
def decode(
    backbone: Backbone, ids: Tensor, lengths: Tensor, likeliest: Callable[[Tensor], Tensor], k: int, stops: Tensor
) -> tuple[Tensor, Tensor]:
    """The state at each row's last token and at up to k - 1 tokens that follow it greedily.

    A row ends before the first token of `stops`; rows that have ended wait for the others.

    Args:
        ids, lengths: as `Backbone.states` takes them, on its device.
        likeliest: states (batch, hidden) -> the next tokens, int64 (batch,).
        stops: int64 ids.

    Returns:
        states (batch, k, hidden), zeros behind a row's end; the tokens of the states from the second on, int64
        (batch, k - 1), undefined behind a row's end.
    """
    batch, width = ids.shape
    mask = (torch.arange(width, device=ids.device) < lengths[:, None]).long()
    output = backbone.model(input_ids=ids, attention_mask=mask, past_key_values=DynamicCache(), use_cache=True)
    state = output.last_hidden_state[torch.arange(batch, device=ids.device), lengths - 1]
    states = state.new_zeros(batch, k, state.shape[1])
    tokens = ids.new_zeros(batch, k - 1)
    states[:, 0], going = state, torch.ones(batch, dtype=torch.bool, device=ids.device)
    for place in range(k - 1):
        token = likeliest(state)
        going &= ~torch.isin(token, stops)
        if not going.any():
            break
        mask = torch.cat([mask, mask.new_ones(batch, 1)], dim=1)
        output = backbone.model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=lengths[:, None] + place,
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        state = output.last_hidden_state[:, 0]
        states[:, place + 1] = torch.where(going[:, None], state, 0)
        tokens[:, place] = token
    return states, tokens
