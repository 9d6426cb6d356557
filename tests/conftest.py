"""A tiny fake backbone (random BERT, 16 hidden, real tokenizer) and checkpoints over it: most tests run in seconds."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions")  # tests kill processes: not in yours

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from colbert_diffusion import Searcher, build_index, open_index
from colbert_diffusion.config import DiffusionConfig, PromptParts
from colbert_diffusion.encoding.encoder import Encoded, Encoder

PARITY = Path(__file__).parent / "fixtures" / "parity"
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a the of in is and capital france paris germany berlin city dog cat runs sleeps "
    "red blue green apple pear sun moon star river sea mountain one two three four five query passage . , ? !"
).split()
HIDDEN = 16


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("backbones") / "tiny-bert")


def write_bert(folder: Path, hidden_size: int = HIDDEN) -> Path:
    """A published-looking BERT masked language model: config, safetensors, tokenizer."""
    folder.mkdir()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.4,  # wide, so that texts differ
    )
    BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    special = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **special}))
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_bert: Path) -> DiffusionConfig:
    """4 query and 8 passage vectors of the fake backbone's own 16 dimensions."""
    prompt = PromptParts("[CLS]", "[SEP]", "[SEP]")
    return DiffusionConfig(
        backbone=str(tiny_bert),
        k_query=4,
        k_passage=8,
        query_prompt=prompt,
        passage_prompt=prompt,
        query_max_length=16,
        passage_max_length=48,
        dim=HIDDEN,
        search={"nbits": 2},
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config: DiffusionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tiny_config.save(folder)
    return folder


@pytest.fixture(scope="session")
def adapted_checkpoint(tiny_config: DiffusionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a LoRA adapter: loading one draws random numbers."""
    from .releases import write_adapter

    folder = tmp_path_factory.mktemp("checkpoints") / "adapted"
    write_adapter(folder, {"bert.encoder.layer.0.attention.self.query": (HIDDEN, HIDDEN)})
    tiny_config.save(folder)
    return folder


@dataclass(frozen=True)
class TinyIndex:
    """A small index over the fake backbone, shared by the tests that only read it."""

    path: Path
    texts: list[str]

    def searcher(self) -> Searcher:
        return open_index(self.path, verbose=0)


@pytest.fixture(scope="session")
def tiny_index(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyIndex:
    texts = make_texts(300)
    return TinyIndex(build_index(tmp_path_factory.mktemp("indexes") / "tiny", texts, tiny_checkpoint, verbose=0), texts)


@pytest.fixture
def index_root(tmp_path: Path) -> Iterator[str]:
    """Indexes of this test are built and looked for in a folder of its own."""
    from colbert.infra import Run, RunConfig

    with Run().context(RunConfig(index_root=str(tmp_path / "indexes"))):
        yield str(tmp_path / "indexes")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that goes through the model, in order."""
    seen: list[str] = []
    encode = Encoder.encode_both  # `encode` calls it

    def counting(self: Encoder, texts: Iterable[str], *arguments: Any, **options: Any) -> Iterator[Encoded]:
        given = list(texts)
        seen.extend(given)
        return encode(self, given, *arguments, **options)

    monkeypatch.setattr(Encoder, "encode_both", counting)
    return seen


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Random sentences over the fake backbone's words, of 1 to 30 words."""
    generator = torch.Generator().manual_seed(seed)
    words = WORDS[5:]
    lengths = torch.randint(1, 31, (count,), generator=generator).tolist()
    return [" ".join(words[i] for i in torch.randint(len(words), (n,), generator=generator).tolist()) for n in lengths]
