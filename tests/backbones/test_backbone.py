import random
from pathlib import Path

import pytest

from colbert_diffusion.backbones.backbone import Backbone
from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.common.errors import UserError

from ..conftest import PARITY, make_texts


@pytest.fixture(scope="module", params=["tiny-dream", "tiny-llada", "bert"])
def backbone(request: pytest.FixtureRequest, tiny_bert: Path) -> Backbone:
    return load_backbone(tiny_bert if request.param == "bert" else PARITY / request.param)


LONG = {
    "sentences": " ".join(make_texts(3000, seed=3)),
    "one word": "x" * 50_000,
    "spaces": " " * 50_000 + "the end",
    "line breaks alone": "\n".join(make_texts(3000, seed=3)),
    "no spaces in another script": "日本語の長い文章" * 5000,
    "rare characters": "\U0001f41d \u0301 " * 9000,
    "special tokens": "[MASK] <|mask|> [SEP] " * 4000,
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("length", [1, 7, 200])
def test_of_a_long_text_the_ids_are_the_first_ones_of_all_of_it(backbone: Backbone, kind: str, length: int) -> None:
    [whole] = backbone.tokenize([LONG[kind]])
    short = "the cat"
    assert backbone.tokenize([LONG[kind], short], length) == [whole[:length], backbone.tokenize([short])[0][:length]]


def test_random_long_texts_are_cut_as_though_all_of_them_were_read(backbone: Backbone) -> None:
    draw = random.Random(0)
    alphabet = "abc  de.,'\n\téß漢字🐝-"
    for _ in range(60):
        text = "".join(draw.choices(alphabet, k=draw.randrange(1, 4000)))
        length = draw.randrange(1, 40)
        assert backbone.tokenize([text], length) == [backbone.tokenize([text])[0][:length]]


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused_at_load(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "meadow\n")
    with pytest.raises(UserError, match=r"'meadow' as token \d+, the embedding \d+ rows"):
        load_backbone(folder)
