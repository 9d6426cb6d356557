"""Proof at load time that attention runs the way the family says. A wrong recipe gives vectors that look fine."""

import torch
from torch import Tensor

from ..common.errors import UserError
from .backbone import Backbone

LENGTH, SHORT = 9, 6
# Relative to the largest state: far above rounding, far below the 0.16-0.4 of a wrong recipe.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@torch.inference_mode()
def prove_attention(backbone: Backbone) -> None:
    """Refuse a backbone whose first state sees (or fails to see) the last token, padded or not.

    In a batch of one without padding and in a padded batch: changing a row's last token must change its first
    state if the family is bidirectional, and must not if it is causal. Padding must change nothing.

    Raises:
        UserError: one of these does not hold; the vectors would be wrong without looking so.
    """
    vocabulary = backbone.model.config.vocab_size
    ids = torch.arange(11, 11 + LENGTH) % vocabulary
    other = (ids[SHORT - 1] + 29) % vocabulary
    family = backbone.family

    alone = _states(backbone, ids[None, :SHORT])
    padded_ids = torch.stack([ids, ids])
    padded_ids[1, SHORT:] = backbone.filler_id
    padded = _states(backbone, padded_ids, (LENGTH, SHORT))
    scale = alone.abs().max()
    tolerance = TOLERANCE[backbone.dtype] * scale

    changed_alone, changed_padded = ids[None, :SHORT].clone(), padded_ids.clone()
    changed_alone[0, SHORT - 1] = other
    changed_padded[1, SHORT - 1] = other
    sees_alone = (_states(backbone, changed_alone)[0, 0] - alone[0, 0]).abs().max() > 0
    sees_padded = (_states(backbone, changed_padded, (LENGTH, SHORT))[1, 0] - padded[1, 0]).abs().max() > 0
    leak = (padded[1, :SHORT] - alone[0]).abs().max()

    wanted = "bidirectional" if family.bidirectional else "causal"
    for where, sees in (("without a mask", sees_alone), ("in a padded batch", sees_padded)):
        if bool(sees) != family.bidirectional:
            raise UserError(
                f"attention is {'bidirectional' if sees else 'causal'} {where}, family {family.name} must be {wanted}: "
                f"refused, its vectors would be wrong; install a supported transformers (>=5.2) or name another family"
            )
    if not leak <= tolerance:
        raise UserError(
            f"padding changes a text's states by {leak / scale:.2g} of their size (allowed {TOLERANCE[backbone.dtype]}): "
            f"refused, vectors would depend on the batch; install a supported transformers (>=5.2)"
        )


def _states(backbone: Backbone, ids: Tensor, lengths: tuple[int, ...] | None = None) -> Tensor:
    rows, width = ids.shape
    return backbone.states(ids, torch.tensor(lengths or (width,) * rows)).float()
