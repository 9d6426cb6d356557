"""A checkpoint with its parameters free to move: adapter or all weights, projection, prediction head."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..backbones.adapters import new_adapter, save_adapter
from ..backbones.backbone import Backbone
from ..backbones.loading import load_backbone
from ..backbones.sources import TOKENIZER_FILES, WEIGHTS_FILE, settled
from ..common.errors import UserError
from ..common.files import read_json, save_tensors, written_aside
from ..config import ADAPTER_CONFIG_FILE, HEAD_FILE, DiffusionConfig, Side
from ..encoding.encoder import Encoder
from ..encoding.heads import PredictionHead, load_head, new_head
from ..encoding.identity import CheckpointIdentity, identify
from ..encoding.projection import Projection, load_projection
from ..encoding.prompts import Row
from ..encoding.readouts import Head, find_readout
from ..encoding.scoring import Vectors
from .losses import word_activations
from .recipe import Recipe


def autocasts(recipe: Recipe, device: torch.device) -> bool:
    """Whether a run computes in bfloat16: asked for, and not emulated.

    An x86 processor without AVX-512 multiplies bfloat16 matrices at .6 GFLOP/s beside 49 in float32 (measured).
    """
    return recipe.bf16 and (device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2"))


class TrainableModel:
    """The checkpoint in `start`, loaded for training.

    Its base stays as it is (without dropout) but for what the recipe trains. `parameters` is everything that moves,
    by a stable name.

    Raises:
        UserError: the readout appends no masks and a loss needs them, or the checkpoint does not load.
    """

    def __init__(self, start: str | Path, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        frozen_dtype = "bfloat16" if recipe.bf16 and recipe.lora_rank and device.type == "cuda" else "float32"
        identity = identify(start, device=device, dtype=frozen_dtype)
        self.start = identity
        self.backbone = load_backbone(
            identity.backbone_path,
            family=identity.config.family,
            checkpoint=identity.path,
            dtype=getattr(torch, frozen_dtype),
            device=device,
            merge=False,
        )
        self._adapter = self._free_weights(identity.path)
        self.projection = self._free_projection(identity.config, identity.path)
        self.head, self._head_moves = self._free_head(identity.config, identity.path, identity.backbone_path)
        self.config = self._trained_config(identity.config, identity.path)
        bounds = {"query_max_length": recipe.query_tokens, "passage_max_length": recipe.passage_tokens}
        bounded = replace(self.config, length_bound="text", **bounds)  # type: ignore[arg-type]
        self.encoder = Encoder(self.backbone, bounded, self.projection, head=lambda: self.head)
        if recipe.gradient_checkpointing:
            self._checkpoint_gradients()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        named = {f"backbone.{name}": p for name, p in self.backbone.model.named_parameters() if p.requires_grad}
        if isinstance(self.projection.weight, nn.Parameter):
            named["projection.weight"] = self.projection.weight
        if self.head is not None and self._head_moves:
            named |= {f"head.{name}": p for name, p in self.head.named_parameters()}
        return named

    def _free_weights(self, checkpoint: Path) -> dict[str, Any] | None:
        """The adapter's config, or None when all weights move."""
        model, recipe = self.backbone.model, self.recipe
        has_adapter = (checkpoint / ADAPTER_CONFIG_FILE).is_file()
        if not recipe.lora_rank:
            if has_adapter:
                raise UserError(f"{checkpoint} has an adapter: train it (lora_rank above 0), or start from its backbone")
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not self.backbone.family.is_set_aside(name))
            return None
        if has_adapter:
            config: dict[str, Any] = read_json(checkpoint / ADAPTER_CONFIG_FILE)
        else:
            settings = {"rank": recipe.lora_rank, "alpha": recipe.lora_alpha}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                config = new_adapter(model, self.backbone.family, dropout=recipe.lora_dropout, **settings)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name)
            if ".lora_" in name:
                parameter.data = parameter.data.float()
        for name, module in model.named_modules():
            if name.endswith("lora_dropout.default"):
                module.train()
        return config

    def _free_projection(self, config: DiffusionConfig, checkpoint: Path) -> Projection:
        weight = load_projection(config, checkpoint, self.backbone.hidden_size).weight
        return Projection() if weight is None else Projection(nn.Parameter(weight.to(self.backbone.device)))

    def _free_head(self, config: DiffusionConfig, checkpoint: Path, backbone: Path) -> tuple[PredictionHead | None, bool]:
        """A head where it is needed or the checkpoint has one, and whether it moves; a published one only with all weights."""
        trained = bool(self.recipe.sparse or self.recipe.diffusion)
        own = (checkpoint / HEAD_FILE).is_file()
        if not (trained or own or find_readout(config.readout).decodes):
            return None, False
        head = load_head(self.backbone, checkpoint, backbone)
        moves = trained and (own or head is None or not self.recipe.lora_rank)
        if head is None and trained:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.recipe.seed)
                head = new_head(self.backbone)
        if head is not None and moves:
            head = head.float().requires_grad_(True)
        return head, moves

    def _trained_config(self, config: DiffusionConfig, checkpoint: Path) -> DiffusionConfig:
        recipe = self.recipe
        if (recipe.sparse or recipe.diffusion) and not find_readout(config.readout).predicts_words:
            raise UserError(
                f'the losses on words need a readout that predicts some, "{config.readout}" does not: weight them 0'
            )
        if recipe.diffusion and self.backbone.mask_token_id is None:
            raise UserError(f"the diffusion loss needs a mask token, family {self.backbone.family.name} has none: weight it 0")
        for name, largest in (("k_query", config.k_query), ("k_passage", config.k_passage), ("dim", config.dim)):
            prefixes: tuple[int, ...] = getattr(recipe, f"nested_{name}")
            if max(prefixes, default=0) > largest:
                raise UserError(f"nested_{name} has {max(prefixes)}, the checkpoint's {name} is {largest}")
        if self.projection.weight is None:
            projection = "none"
        else:  # rotated dimensions stay so unless their prefixes are trained
            projection = "rotated" if config.projection == "rotated" and not recipe.nested_dim else "learned"
        return replace(
            config,
            backbone=settled(config.backbone, checkpoint),
            nested=config.nested or recipe.nested,
            projection=projection,
        )

    def _checkpoint_gradients(self) -> None:
        """Recompute layers in the backward pass; their own dropout stays off."""
        untyped: Any = self.backbone.model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers renames it; 5.2 knows this name only
            untyped.gradient_checkpointing_enable({"use_reentrant": False})
        for module in self.backbone.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True

    # What the losses are functions of -------------------------------------------------------------------------

    def vectors(self, rows: Sequence[Row], side: Side, words: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk: vectors float32 (n, k, dim) and, for the sparse loss, activations (n, words)."""
        states = self.encoder.readout.states(rows, side)
        activations = present[:, :0].float()
        if self.recipe.sparse and self.head is not None:
            activations = word_activations(self.head(states, words), present).float()
        with torch.autocast(states.device.type, enabled=False):  # what is normalised and compared stays float32
            return self.projection(states), activations

    def word_logits(self, ids: Tensor, lengths: Tensor, chosen: Tensor) -> Tensor:
        """Logits (chosen positions, vocabulary) of a padded batch; a shifted family's come from one position before."""
        if self.head is None:
            raise UserError("the masked-diffusion objective needs a prediction head")
        states = self.backbone.states(ids, lengths)
        row, position = chosen.nonzero(as_tuple=True)
        if self.backbone.family.shifted:
            position = (position - 1).clamp(min=0)
        logits: Tensor = self.head(states[row.to(states.device), position.to(states.device)])
        return logits

    # What is made of it -----------------------------------------------------------------------------------------

    def save(self, folder: Path, training: dict[str, Any]) -> None:
        """Write a complete checkpoint folder with its provenance."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            if (self.start.path / name).is_file():
                copyfile(self.start.path / name, folder / name)
        if self._adapter is not None:
            save_adapter(self.backbone.model, self._adapter, folder)
        else:
            weights = {name: tensor.contiguous().cpu() for name, tensor in self.backbone.model.state_dict().items()}
            with written_aside(folder / WEIGHTS_FILE) as aside:
                save_tensors(weights, aside)
        self.projection.save(folder)
        if self.head is not None and (self._head_moves or (self.start.path / HEAD_FILE).is_file()):
            self.head.save(folder)
        replace(self.config, training=training).save(folder)

    def live(self) -> "LiveCheckpoint":
        """The model as it stands, to be evaluated."""
        return LiveCheckpoint(self.backbone, self.config, self.projection, lambda: self.head)


class LiveCheckpoint:
    """What an evaluation or a student asks of a checkpoint, on a backbone that is already loaded."""

    def __init__(self, backbone: Backbone, config: DiffusionConfig, projection: Projection, head: Head) -> None:
        weight = None if projection.weight is None else projection.weight.detach()
        self.config = config
        self._encoder = Encoder(backbone, config, Projection(weight), head=head)

    @classmethod
    def load(cls, identity: CheckpointIdentity, config: DiffusionConfig) -> "LiveCheckpoint":
        """A checkpoint under another config of lengths or prefixes, its weights fixed."""
        dtype = getattr(torch, identity.dtype)
        backbone = load_backbone(
            identity.backbone_path, family=config.family, checkpoint=identity.path, dtype=dtype, device=identity.device
        )
        head = partial(load_head, backbone, identity.path, identity.backbone_path)
        return cls(backbone, config, load_projection(config, identity.path, backbone.hidden_size), cache(head))

    def encode_query(self, queries: Sequence[str]) -> list[Vectors]:
        return list(self._encoder.encode(queries, "query"))

    def encode_document(self, documents: Sequence[str]) -> list[Vectors]:
        return list(self._encoder.encode(documents, "passage"))
