from pathlib import Path

import pytest

from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.config import DiffusionConfig
from colbert_diffusion.encoding.encoder import Encoder
from colbert_diffusion.encoding.projection import Projection


@pytest.fixture(scope="session")
def encoder(tiny_bert: Path, tiny_config: DiffusionConfig) -> Encoder:
    return Encoder(load_backbone(tiny_bert), tiny_config, Projection())
