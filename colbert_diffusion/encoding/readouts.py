"""How a text is framed for the model, and which of its last-layer states become its vectors: one class a readout.

masked: the k masked positions (DiffRetriever, arXiv 2605.07210, section 3); mean: the mean of all positions
(DiffEmbed, arXiv 2505.15045); last: the last position (RepLLaMA, arXiv 2310.08319); tokens: every position, as many
vectors as the text has tokens (ColBERT, arXiv 2004.12832), k being the most: the teacher of the masked positions; generated:
the last position and those of up to k - 1 tokens that a causal model decodes after it (PromptReps, arXiv 2404.18424).

A readout decides all that differs between them: what a config may ask, the frame, how often the model runs, which
states are read and how many of them are a text's own. Nobody else asks which one it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..backbones.backbone import Backbone
from ..common.errors import UserError
from ..config import DiffusionConfig, PromptParts, Side
from .decoding import decode
from .heads import PredictionHead
from .prompts import Prompt, Row, make_prompt, pad
from .templates import default_prompt, plain_prompt

Head = Callable[[], PredictionHead | None]  # loaded when it is asked for: most readouts never do


class Readout(ABC):
    """A readout over a backbone: `rows` of token ids -> `states` (batch, k, hidden) -> projected -> `trim`.

    Args:
        head: gives the prediction head, for a readout that goes on by what it predicts.

    Raises:
        UserError: the config asks for what it cannot give, a prompt leaves no room, or a row would exceed the
            backbone's positions.
    """

    name: ClassVar[str]
    predicts_words: ClassVar[bool] = False  # whether a prediction head makes sense of its states
    decodes: ClassVar[bool] = False  # whether it goes on by what the head predicts

    def __init__(self, backbone: Backbone, config: DiffusionConfig, head: Head | None = None) -> None:
        self.check(config)
        self.backbone, self.config, self.head = backbone, config, head
        self.prompts: dict[Side, Prompt] = {"query": self._prompt("query"), "passage": self._prompt("passage")}

    # Of a config ----------------------------------------------------------------------------------------------------

    @classmethod
    def check(cls, config: DiffusionConfig) -> None:
        """Raises UserError when the config asks this readout for what it cannot give."""
        if config.read_offset:
            raise UserError(f'read_offset {config.read_offset} has no meaning for readout "{cls.name}"; set it to 0')

    @classmethod
    def fitted(cls, config: DiffusionConfig) -> DiffusionConfig:
        """The config with the k that this readout gives, where it has no choice."""
        return replace(config, k_query=1, k_passage=1)

    @classmethod
    def default_prompt(cls, tokenizer: PreTrainedTokenizerBase, side: Side, k: int) -> PromptParts:
        """What to say to a backbone that brings no prompt."""
        return plain_prompt(tokenizer, end=True)

    # Of a text ------------------------------------------------------------------------------------------------------

    def states(self, rows: Sequence[Row], side: Side) -> Tensor:
        """One batch through the model: the states that become vectors, (batch, k, hidden) in the model's dtype."""
        ids, lengths = pad([row.ids for row in rows], self.backbone.filler_id)
        first = torch.tensor([row.first_mask for row in rows])
        states = self.backbone.states(ids, lengths, self._positions(first, ids.shape[1]))
        return self.read(states, lengths.to(states.device), first.to(states.device), self.config.k(side))

    @abstractmethod
    def read(self, states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
        """(batch, length, hidden), int64 (batch,), int64 (batch,) -> (batch, k, hidden)."""

    def trim(self, vectors: list[Tensor], rows: Sequence[Row]) -> list[Tensor]:
        """Of each text's states or vectors, (k, ...), those that are its own."""
        return vectors

    def _mask_token_id(self) -> int | None:
        """What is appended k times; None: nothing."""
        return None

    def _positions(self, first_mask: Tensor, width: int) -> Tensor | None:
        """int64 (batch, width) where the positions are not 0, 1, 2 ..."""
        return None

    def _prompt(self, side: Side) -> Prompt:
        def tokenize(text: str) -> Sequence[int]:
            return self.backbone.tokenize([text])[0]

        prompt = make_prompt(self.config, side, tokenize, self._mask_token_id(), self.backbone.filler_id)
        if prompt.max_row > self.backbone.max_positions:
            raise UserError(
                f"a {side} of {self.config.max_length(side)} tokens makes rows of {prompt.max_row}, the backbone has "
                f"{self.backbone.max_positions} positions; lower {side}_max_length by "
                f"{prompt.max_row - self.backbone.max_positions}"
            )
        return prompt


class Masked(Readout):
    """The k states from the first mask on, or from the position before it (`read_offset` -1)."""

    name = "masked"
    predicts_words = True

    @classmethod
    def check(cls, config: DiffusionConfig) -> None:
        """Every k and offset."""

    @classmethod
    def fitted(cls, config: DiffusionConfig) -> DiffusionConfig:
        return config

    @classmethod
    def default_prompt(cls, tokenizer: PreTrainedTokenizerBase, side: Side, k: int) -> PromptParts:
        return default_prompt(tokenizer, side, k)

    def read(self, states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
        positions = first_mask[:, None] + self.config.read_offset + torch.arange(k, device=states.device)
        return states.take_along_dim(positions[:, :, None], dim=1)

    def _mask_token_id(self) -> int | None:
        mask_token_id = self.backbone.mask_token_id
        if mask_token_id is None:
            raise UserError(
                f'readout "{self.name}" needs a mask token, family {self.backbone.family.name} has none; '
                'choose readout "mean" or "last"'
            )
        if self.config.mask_token_id not in (None, mask_token_id):
            raise UserError(
                f"the checkpoint was trained with mask_token_id {self.config.mask_token_id}, the backbone's is "
                f"{mask_token_id}; is it the right backbone?"
            )
        return mask_token_id

    def _positions(self, first_mask: Tensor, width: int) -> Tensor | None:
        """Where the config places the masks, whatever the text's length."""
        if self.config.mask_position is None:
            return None
        offsets = torch.arange(width) - first_mask[:, None]
        positions = torch.where(offsets < 0, torch.arange(width), self.config.mask_position + offsets)
        return positions.clamp(max=self.backbone.max_positions - 1)  # reached by padding alone

    def _prompt(self, side: Side) -> Prompt:
        prompt = super()._prompt(side)
        if self.config.read_offset < 0 and not prompt.prefix + prompt.suffix:
            raise UserError("read_offset -1 reads the state before the first mask; the prompt has no token there")
        first, masks = self.config.mask_position, len(prompt.masks) + len(prompt.tail)
        before = prompt.max_row - masks
        if first is not None and not before <= first <= self.backbone.max_positions - masks:
            raise UserError(
                f"mask_position is {first}: a {side} has up to {before} tokens before its masks, {masks} from them on, and the "
                f"backbone {self.backbone.max_positions} positions; choose {before} to {self.backbone.max_positions - masks}"
            )
        return prompt


class _OneVector(Readout):
    @classmethod
    def check(cls, config: DiffusionConfig) -> None:
        if (config.k_query, config.k_passage) != (1, 1):
            raise UserError(
                f'readout "{cls.name}" gives one vector per text, the checkpoint asks for '
                f"k_query {config.k_query} and k_passage {config.k_passage}; set both to 1"
            )
        super().check(config)


class MeanPool(_OneVector):
    """The mean of all states that are not padding, summed in float32."""

    name = "mean"

    @classmethod
    def default_prompt(cls, tokenizer: PreTrainedTokenizerBase, side: Side, k: int) -> PromptParts:
        return plain_prompt(tokenizer)

    def read(self, states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
        real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        summed = (states.float() * real[:, :, None]).sum(dim=1, keepdim=True)
        return summed / lengths[:, None, None]


class LastToken(_OneVector):
    """The state of the last token that is not padding."""

    name = "last"

    @classmethod
    def default_prompt(cls, tokenizer: PreTrainedTokenizerBase, side: Side, k: int) -> PromptParts:
        return plain_prompt(tokenizer, f"{side}: ", end=True)

    def read(self, states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
        return states.take_along_dim((lengths - 1)[:, None, None], dim=1)


class _OwnLength(Readout):
    """As many vectors as it reads of a text."""

    @classmethod
    def check(cls, config: DiffusionConfig) -> None:
        for field in ("merge_above", "cover_above"):
            if getattr(config, field) is not None:
                raise UserError(f'readout "{cls.name}" has as many vectors as it reads; set {field} to null')
        super().check(config)


class EveryToken(_OwnLength):
    """All states; a text's own are as many as its row is long."""

    name = "tokens"

    @classmethod
    def fitted(cls, config: DiffusionConfig) -> DiffusionConfig:
        return replace(config, k_query=config.query_max_length, k_passage=config.passage_max_length)

    def read(self, states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
        return states[:, :k]

    def trim(self, vectors: list[Tensor], rows: Sequence[Row]) -> list[Tensor]:
        return [own[: len(row.ids)] for own, row in zip(vectors, rows, strict=True)]


class Generated(_OwnLength):
    """The state of the prompt's last token, an opening quote, and those of the tokens that the model says after it.

    One forward pass a token, up to k - 1 of them; a text that ends sooner (a special token, or one with a closing quote)
    has fewer vectors, in training zeros in their place. Greedy, so no gradient passes through the choice of a token.
    """

    name = "generated"
    predicts_words = True
    decodes = True

    @classmethod
    def fitted(cls, config: DiffusionConfig) -> DiffusionConfig:
        return config

    @classmethod
    def default_prompt(cls, tokenizer: PreTrainedTokenizerBase, side: Side, k: int) -> PromptParts:
        return replace(default_prompt(tokenizer, side, k), tail="")

    def states(self, rows: Sequence[Row], side: Side) -> Tensor:
        padded, count = pad([row.ids for row in rows], self.backbone.filler_id)
        ids, lengths, k = padded.to(self.backbone.device), count.to(self.backbone.device), self.config.k(side)
        if k == 1:
            return self.read(self.backbone.states(ids, lengths), lengths, lengths, 1)
        states, tokens = decode(self.backbone, ids, lengths, self._likeliest, k, self._stops.to(ids.device))
        if not torch.is_grad_enabled():
            return states
        # All tokens are known now: gradients need one pass over the whole rows, which reads the same states again.
        longer = torch.cat([ids, ids.new_full((len(ids), k - 1), self.backbone.filler_id)], dim=1)
        longer.scatter_(1, lengths[:, None] + torch.arange(k - 1, device=ids.device), tokens)
        again = self.read(self.backbone.states(longer, lengths + k - 1), lengths, lengths, k)
        return torch.where(states.any(dim=2, keepdim=True), again, 0)

    def read(self, states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
        positions = (lengths - 1)[:, None] + torch.arange(k, device=states.device)
        return states.take_along_dim(positions[:, :, None], dim=1)

    def trim(self, vectors: list[Tensor], rows: Sequence[Row]) -> list[Tensor]:
        return [own[own.any(dim=1)] for own in vectors]

    def _likeliest(self, states: Tensor) -> Tensor:
        head = None if self.head is None else self.head()
        if head is None:
            raise UserError(
                f'readout "{self.name}" decodes tokens, and neither the checkpoint nor its backbone has a prediction head; '
                "set k_query and k_passage to 1, or choose a backbone with its head"
            )
        likeliest: Tensor = head(states).argmax(dim=-1)
        return likeliest

    @cached_property
    def _stops(self) -> Tensor:
        """Special tokens, and all that hold a quote (`."` is one token in some vocabularies)."""
        tokenizer = self.backbone.tokenizer
        quoted = (token_id for token, token_id in tokenizer.get_vocab().items() if '"' in token)
        return torch.tensor(sorted({*tokenizer.all_special_ids, *quoted}))

    def _prompt(self, side: Side) -> Prompt:
        if self.backbone.family.bidirectional:
            raise UserError(
                f'readout "{self.name}" decodes token after token, which family {self.backbone.family.name} does not: its '
                'attention looks both ways; choose readout "masked" or a causal backbone'
            )
        prompt, more = super()._prompt(side), self.config.k(side) - 1
        if prompt.tail:
            raise UserError(f'readout "{self.name}" goes on where the {side} prompt ends: leave its tail empty')
        if prompt.max_row + more > self.backbone.max_positions:
            raise UserError(
                f"a {side} of {self.config.max_length(side)} tokens and {more} decoded ones make rows of "
                f"{prompt.max_row + more}, the backbone has {self.backbone.max_positions} positions; lower {side}_max_length"
            )
        return prompt


READOUTS: dict[str, type[Readout]] = {readout.name: readout for readout in (Masked, MeanPool, LastToken, EveryToken, Generated)}


def find_readout(name: Any) -> type[Readout]:
    """The readout of this name.

    Raises:
        UserError: there is none.
    """
    if name not in READOUTS:
        raise UserError(f'readout "{name}" is unknown; choose one of {sorted(READOUTS)}')
    return READOUTS[name]
