"""A loaded backbone: ids in, last-layer states out. Knows nothing about prompts or retrieval."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .family import Family


@dataclass(frozen=True)
class Backbone:
    """A transformers base model (no prediction head) with its tokenizer.

    Args:
        mask_token_id: None for causal families.
        filler_id: what padding is made of; attention never sees it.
    """

    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int | None
    filler_id: int

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def max_positions(self) -> int:
        """The longest row the positions allow, in tokens."""
        return int(self.model.config.max_position_embeddings) - self._reserved_positions

    @property
    def _reserved_positions(self) -> int:
        """RoBERTa counts from the position behind its padding id."""
        config = self.model.config
        return int(config.pad_token_id) + 1 if config.model_type in ("roberta", "xlm-roberta") else 0

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids without any added token, cut to `max_length`.

        Special-token strings inside a text become their ids, as in the reference.
        """
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=max_length is not None,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return ids

    def states(self, ids: Tensor, lengths: Tensor, positions: Tensor | None = None) -> Tensor:
        """Last-layer states after the final norm.

        Args:
            ids: int64 (batch, length), padded on the right.
            lengths: int64 (batch,), tokens that are not padding.
            positions: int64 (batch, length); None: 0, 1, 2 and so on, as the model counts them.

        Returns:
            (batch, length, hidden) in the model's dtype; what stands at padding is undefined.
        """
        ids, lengths = ids.to(self.device), lengths.to(self.device)
        width = ids.shape[1]
        mask = None
        if int(lengths.min()) < width:
            mask = (torch.arange(width, device=self.device) < lengths[:, None]).long()
        placed = {} if positions is None else {"position_ids": positions.to(self.device) + self._reserved_positions}
        states: Tensor = self.model(input_ids=ids, attention_mask=mask, **placed).last_hidden_state
        return states
