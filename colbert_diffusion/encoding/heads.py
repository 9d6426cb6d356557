"""The prediction head: which words a masked position would say. Knows nothing about prompts or retrieval.

Every published head is the same three steps, of which a family has some: a dense layer with GELU and LayerNorm (BERT
and its kin), then the word embeddings or a matrix of its own, then a bias. A family file names its tensors
(`Family.head`); a base that has no head gets a new one to train (`new_head`).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from ..backbones.adapters import merge_into_head
from ..backbones.backbone import Backbone
from ..backbones.sources import weight_files
from ..common.errors import UserError
from ..common.files import save_tensors, written_aside
from ..config import ADAPTER_FILE, HEAD_FILE


class PredictionHead(nn.Module):
    """States -> logits over the vocabulary.

    Args:
        embeddings: word embeddings (vocabulary, hidden), shared with the backbone, never saved here.
        transform: whether a dense layer, GELU and LayerNorm come first.
    """

    bias: nn.Parameter | None

    def __init__(
        self, embeddings: Tensor, *, transform: bool, bias: bool, own_output: bool = False, eps: float = 1e-12
    ) -> None:
        super().__init__()
        vocabulary, hidden = embeddings.shape
        self.dense = nn.Linear(hidden, hidden) if transform else None
        self.norm = nn.LayerNorm(hidden, eps=eps) if transform else None
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if bias else None
        self.output = nn.Parameter(torch.empty_like(embeddings)) if own_output else None
        self._tied = (embeddings,)  # in a tuple: not a parameter of this module

    def forward(self, states: Tensor, words: Tensor | None = None) -> Tensor:
        """(..., hidden) -> (..., vocabulary), or only the columns of `words` (int64 ids)."""
        weight: Tensor = self._tied[0] if self.output is None else self.output
        bias: Tensor | None = self.bias
        if words is not None:
            weight, bias = weight[words], None if bias is None else bias[words]
        if self.dense is not None and self.norm is not None:
            states = self.norm(gelu(self.dense(states)))
        return linear(states.to(weight.dtype), weight, bias)

    @property
    def vocabulary(self) -> int:
        """How many words it knows."""
        return len(self._tied[0] if self.output is None else self.output)

    def save(self, folder: Path) -> None:
        """Write `head.safetensors`, float16: words are ranked by it, not vectors."""
        with written_aside(folder / HEAD_FILE) as aside:
            save_tensors({name: tensor.half().contiguous().cpu() for name, tensor in self.state_dict().items()}, aside)


def new_head(backbone: Backbone) -> PredictionHead:
    """A head to train, for a base that has none; its output is tied to the word embeddings."""
    head = PredictionHead(_embeddings(backbone), transform=True, bias=True)
    if head.dense is not None:
        nn.init.normal_(head.dense.weight, std=0.02)  # as BERT initialises its own
        nn.init.zeros_(head.dense.bias)
    return head.to(backbone.device)


def load_head(backbone: Backbone, checkpoint: Path, backbone_folder: Path) -> PredictionHead | None:
    """The checkpoint's own head, else the one published with the backbone, else None.

    Raises:
        UserError: a head's file is damaged or does not fit the backbone.
    """
    if (checkpoint / HEAD_FILE).is_file():
        return _build(backbone, _read(checkpoint / HEAD_FILE), checkpoint)
    tensors = _published(backbone, backbone_folder)
    if (checkpoint / ADAPTER_FILE).is_file():
        tied = {} if "output" in tensors else {"output": _embeddings(backbone).detach()}
        adapted = tied | {name: tensor.to(backbone.dtype) for name, tensor in tensors.items()}  # as the encoder's are merged
        merge_into_head(adapted, checkpoint, backbone.family)
        tensors = {name: tensor for name, tensor in adapted.items() if tensor is not tied.get(name)}
    if backbone.family.head_transforms and "dense.weight" not in tensors:
        return None
    return _build(backbone, tensors, backbone_folder)


def _published(backbone: Backbone, folder: Path) -> dict[str, Tensor]:
    """A backbone's head under our names."""
    family, found = backbone.family, dict[str, Tensor]()
    for file in weight_files(folder):
        for name, tensor in _read(file).items():
            ours = family.head_name(family.rename(name))
            if ours is not None:
                found[ours] = tensor
    return found


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); copy or download it again") from error


def _build(backbone: Backbone, tensors: dict[str, Tensor], folder: Path) -> PredictionHead:
    embeddings = _embeddings(backbone)
    if "output" in tensors and torch.equal(tensors["output"].to(embeddings), embeddings):
        del tensors["output"]  # published twice
    transform = "dense.weight" in tensors
    for module in ("dense", "norm"):  # ModernBERT's have no bias
        if transform and f"{module}.bias" not in tensors:
            tensors[f"{module}.bias"] = torch.zeros(backbone.hidden_size)
    config: Any = backbone.model.config
    eps = getattr(config, "layer_norm_eps", getattr(config, "norm_eps", 1e-12))
    own = {"bias": "bias" in tensors, "own_output": "output" in tensors}
    head = PredictionHead(embeddings, transform=transform, eps=float(eps), **own)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{folder}: the prediction head does not fit the backbone ({reason})") from error
    return head.to(device=backbone.device, dtype=backbone.dtype).requires_grad_(False)


def _embeddings(backbone: Backbone) -> Tensor:
    layer: Any = backbone.model.get_input_embeddings()
    weight: Tensor = layer.weight
    return weight
