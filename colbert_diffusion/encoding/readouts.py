"""Which last-layer states become a text's vectors. Each readout is one function over a padded batch.

masked: the k masked positions (DiffRetriever, arXiv 2605.07210, section 3); mean: the mean of all positions
(DiffEmbed, arXiv 2505.15045); last: the last position (RepLLaMA, arXiv 2310.08319); tokens: every position, as many
vectors as the text has tokens (ColBERT, arXiv 2004.12832), k being the most: the teacher of the masked positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.errors import UserError
from ..config import DiffusionConfig

# (states (batch, length, hidden), lengths (batch,), first_mask (batch,), k) -> (batch, k, hidden)
Read = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def masked_positions(states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
    """The k states from `first_mask` on."""
    positions = first_mask[:, None] + torch.arange(k, device=states.device)
    return states.take_along_dim(positions[:, :, None], dim=1)


def mean_pool(states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
    """The mean of all states that are not padding, summed in float32."""
    real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    summed = (states.float() * real[:, :, None]).sum(dim=1, keepdim=True)
    return summed / lengths[:, None, None]


def last_token(states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
    """The state of the last token that is not padding."""
    return states.take_along_dim((lengths - 1)[:, None, None], dim=1)


def every_token(states: Tensor, lengths: Tensor, first_mask: Tensor, k: int) -> Tensor:
    """All states, padding included: a row's first `lengths` are its own."""
    return states[:, :k]


@dataclass(frozen=True)
class Readout:
    """A readout and what it asks of the input: masks appended or not, one vector, k, or as many as there are tokens."""

    name: str
    read: Read
    appends_masks: bool = False
    every_token: bool = False

    def check(self, config: DiffusionConfig) -> None:
        """Raises UserError when the config asks this readout for what it cannot give."""
        if self.every_token and config.merge_above is not None:
            raise UserError(f'readout "{self.name}" merges no vectors; set merge_above to null')
        if not self.appends_masks and not self.every_token and (config.k_query, config.k_passage) != (1, 1):
            raise UserError(
                f'readout "{self.name}" gives one vector per text, the checkpoint asks for '
                f"k_query {config.k_query} and k_passage {config.k_passage}; set both to 1"
            )
        if not self.appends_masks and config.read_offset:
            raise UserError(f'read_offset {config.read_offset} has no meaning for readout "{self.name}"; set it to 0')


READOUTS = {
    readout.name: readout
    for readout in (
        Readout("masked", masked_positions, appends_masks=True),
        Readout("mean", mean_pool),
        Readout("last", last_token),
        Readout("tokens", every_token, every_token=True),
    )
}


def get_readout(config: DiffusionConfig) -> Readout:
    """The config's readout, checked against its k.

    Raises:
        UserError: unknown name, or a k the readout cannot give.
    """
    if config.readout not in READOUTS:
        raise UserError(f'readout "{config.readout}" is unknown; choose one of {sorted(READOUTS)}')
    readout = READOUTS[config.readout]
    readout.check(config)
    return readout
