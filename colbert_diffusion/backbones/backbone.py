"""A loaded backbone: ids in, last-layer states out. Knows nothing about prompts or retrieval."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .family import Family

CHARACTERS = 32  # of a text read for each token that is asked for; a token has 3 to 5 on average
MARGIN = 16  # tokens read beyond those asked for: where a text is cut the last ones may be others


def _beginning(text: str, tokens: int) -> str:
    """What holds the first tokens of a long text, cut at a space: tokens do not reach across. 20 MB took 47 s and 3 GB."""
    limit = CHARACTERS * (tokens + MARGIN)
    cut = text.rfind(" ", 0, limit) if len(text) > limit else -1
    return text if cut <= 0 else text[:cut]


@dataclass
class Cut:
    """How many texts were longer than the `room` tokens that are read of each, and how many characters of these were read."""

    room: int
    texts: int = 0
    longer: int = 0
    characters: int = 0
    read: int = 0

    def more(self, other: "Cut", sign: int = 1) -> "Cut":
        """Both together; with sign -1 what came after `other`."""
        own, its = astuple(self)[1:], astuple(other)[1:]
        return Cut(self.room, *(one + sign * two for one, two in zip(own, its, strict=True)))

    def told(self, kind: str) -> str | None:
        """For people; None: no text was longer."""
        if not self.longer:
            return None
        return (
            f"{self.longer:,} of {self.texts:,} {kind} are longer than the {self.room} tokens that are read of each: the last "
            f"{1 - self.read / self.characters:.0%} of their text changes nothing"
        )


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
        return int(self.model.config.max_position_embeddings) - self._first_position

    @property
    def _first_position(self) -> int:
        return self.family.first_position(self.model.config)

    def tokenize(self, texts: Sequence[str], max_length: int | None = None, cut: Cut | None = None) -> list[list[int]]:
        """Token ids without any added token, cut to `max_length`; of a long text only its beginning is read.

        Special-token strings inside a text become their ids, as in the reference.

        Args:
            cut: counts the texts that were cut.
        """
        if not texts:
            return []
        if max_length is None:
            return self._ids(texts, None)
        ids = self._ids([_beginning(text, max_length) for text in texts], max_length + MARGIN)
        for place, text in enumerate(texts):  # too few tokens of a beginning: a book of rare characters, or one long word
            if len(ids[place]) < max_length + MARGIN and len(_beginning(text, max_length)) < len(text):
                [ids[place]] = self._ids([text], max_length + 1)
        if cut is not None:
            cut.texts += len(texts)
            for text, own in zip(texts, ids, strict=True):
                if len(own) > max_length:
                    cut.longer += 1
                    cut.characters += len(text)
                    cut.read += min(len(text), len(str(self.tokenizer.decode(own[:max_length]))))
        return [own[:max_length] for own in ids]

    def _ids(self, texts: Sequence[str], max_length: int | None) -> list[list[int]]:
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
        placed = {} if positions is None else {"position_ids": positions.to(self.device) + self._first_position}
        states: Tensor = self.model(input_ids=ids, attention_mask=mask, **placed).last_hidden_state
        return states
