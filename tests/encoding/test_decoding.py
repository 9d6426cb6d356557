"""The `generated` readout (PromptReps) against a plain loop over transformers' own model, one text at a time, no cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import PromptParts
from colbert_diffusion.encoding.decoding import decode

from ..backbones.published import publish

K = 8
TEXTS = ["a", "tMwbK", "", "qr", "cccccccc", "Bd", "zab", "xyW", "hij", "KL", "o", "vV", "gggg", "ne", "XI", "dDd"]
PROMPT = PromptParts("pa", "sm")
LETTERS = [*map(chr, range(ord("a"), ord("z") + 1)), *map(chr, range(ord("A"), ord("Z") - 1))]
QUOTED = ['"', '."', '",', '"!', 'a"', 'e"', 's"', '?"', '""']  # what a model may close a quote with
STOPS = {0, 1, 2, 3, 4, *range(5 + len(LETTERS), 64)}
CAUSAL = ["qwen2", "qwen3", "llama"]


class Alone(NamedTuple):
    tokens: list[int]
    states: Tensor


class Causal(NamedTuple):
    model: Any
    folder: Path
    checkpoint: DiffusionCheckpoint

    def alone(self, text: str, k: int) -> Alone:
        """One text, every token again at each step."""
        tokenizer = self.checkpoint.encoder.backbone.tokenizer
        ids = tokenizer(f"{PROMPT.prefix}{text}{PROMPT.suffix}", add_special_tokens=False)["input_ids"]
        tokens, states = list[int](), []
        with torch.no_grad():
            while True:
                output = self.model(input_ids=torch.tensor([ids + tokens]), output_hidden_states=True, use_cache=False)
                states.append(output.hidden_states[-1][0, -1])
                token = int(output.logits[0, -1].argmax())
                if len(states) == k or token in STOPS:
                    return Alone(tokens, torch.stack(states))
                tokens.append(token)


def write_tokenizer(folder: Path, *, begins: bool = False) -> None:
    """Letters, some tokens that hold a quote, and the ids of `published.write_tokenizer`'s special ones.

    Args:
        begins: <s> before every text.
    """
    words = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *LETTERS, *QUOTED]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if begins:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)


@pytest.fixture(scope="module", params=CAUSAL)
def causal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Causal:
    folder = tmp_path_factory.mktemp(request.param)
    model = publish(request.param, folder / "backbone")
    write_tokenizer(folder / "backbone")
    config = DiffusionConfig(
        backbone=str(folder / "backbone"),
        readout="generated",
        k_query=3,
        k_passage=K,
        query_prompt=PROMPT,
        passage_prompt=PROMPT,
        dim=32,
    )
    config.save(folder / "checkpoint")
    return Causal(model, folder, DiffusionCheckpoint(folder / "checkpoint"))


def test_vectors_are_those_of_a_loop_over_one_text(causal: Causal) -> None:
    found = causal.checkpoint.encode_document(TEXTS)
    expected = [torch.nn.functional.normalize(causal.alone(text, K).states, dim=1) for text in TEXTS]
    assert [len(own) for own in found] == [len(own) for own in expected]
    assert len({len(own) for own in found}) > 2  # texts end at different places, or nothing is tested
    assert max((torch.from_numpy(own) - of_loop).abs().max() for own, of_loop in zip(found, expected, strict=True)) < 1e-5


def test_a_side_decodes_as_many_as_it_is_told(causal: Causal) -> None:
    found = causal.checkpoint.encode_query(TEXTS)
    assert [len(own) for own in found] == [len(causal.alone(text, 3).states) for text in TEXTS]


def test_one_vector_is_the_state_at_the_prompts_last_token(causal: Causal) -> None:
    config = replace(causal.checkpoint.config, k_query=1, k_passage=1)
    config.save(causal.folder / "one")
    found = DiffusionCheckpoint(causal.folder / "one").encode_document(TEXTS)
    for text, own in zip(TEXTS, found, strict=True):
        assert torch.allclose(
            torch.from_numpy(own), torch.nn.functional.normalize(causal.alone(text, 1).states, dim=1), atol=1e-5
        )


def test_tokens_are_those_of_the_loop(causal: Causal) -> None:
    encoder, head = causal.checkpoint.encoder, causal.checkpoint.word_head()
    for text in TEXTS:  # together their states are compared above
        [row] = encoder.rows([text], "passage")
        stops = torch.tensor(sorted(STOPS))
        lengths = torch.tensor([len(row.ids)])
        _, tokens = decode(encoder.backbone, torch.tensor([row.ids]), lengths, lambda s: head(s).argmax(-1), K, stops)
        expected = causal.alone(text, K).tokens
        assert tokens[0, : len(expected)].tolist() == expected


def test_words_are_those_of_the_decoded_positions_alone(causal: Causal) -> None:
    """A text that ended early must not predict the words of a state of zeros."""
    found = causal.checkpoint.lexical_document(TEXTS, content_words=False).toarray()
    for text, own in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            logits = causal.model.lm_head(causal.alone(text, K).states)
        assert torch.allclose(torch.from_numpy(own), torch.log1p(logits.relu()).amax(dim=0), atol=1e-5)
    assert [len(own) for own in causal.checkpoint.predict_words(TEXTS)] == [len(causal.alone(t, K).states) for t in TEXTS]


def test_with_gradients_the_states_are_the_same(causal: Causal) -> None:
    readout = causal.checkpoint.encoder.readout
    rows = causal.checkpoint.encoder.rows(TEXTS, "passage")
    with torch.no_grad():
        expected = readout.states(rows, "passage")
    parameters = list(causal.checkpoint.encoder.backbone.model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    found = readout.states(rows, "passage")
    found.square().sum().backward()
    assert torch.allclose(found, expected, atol=1e-5)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(False)


def test_a_bidirectional_backbone_is_refused(tiny_config: DiffusionConfig, tmp_path: Path) -> None:
    replace(tiny_config, readout="generated", query_prompt=PromptParts("paris"), passage_prompt=PromptParts("paris")).save(
        tmp_path / "c"
    )
    with pytest.raises(UserError, match="looks both ways"):
        DiffusionCheckpoint(tmp_path / "c")


def test_a_prompt_that_goes_on_is_refused(causal: Causal) -> None:
    replace(causal.checkpoint.config, passage_prompt=PromptParts("a", "b", "c")).save(causal.folder / "tail")
    with pytest.raises(UserError, match="leave its tail empty"):
        DiffusionCheckpoint(causal.folder / "tail")


def test_rows_and_what_is_decoded_fit_the_positions(causal: Causal) -> None:
    positions = causal.checkpoint.encoder.backbone.max_positions
    fits = replace(causal.checkpoint.config, length_bound="text", passage_max_length=positions - 4 - (K - 1))
    fits.save(causal.folder / "fits")
    DiffusionCheckpoint(causal.folder / "fits")
    replace(fits, passage_max_length=positions - 4 - (K - 2)).save(causal.folder / "long")
    with pytest.raises(UserError, match=f"rows of {positions + 1}"):
        DiffusionCheckpoint(causal.folder / "long")
