"""k masked positions read in one pass against as many decoded tokens, by two backbones of one size: what encoding a text takes.

Both are random Qwen2s of the size given, one bidirectional (DiffRetriever), one causal with its keys and values kept
(PromptReps): weights decide no time. Texts have --tokens tokens, and --prompt of them stand
before each text. The cells take turns; a time is the median of the rounds, and beside each stands its ratio to
k = 1 and, for masks, the ratio of the rows' lengths, which is what one pass should cost.

Usage: parallel.py [--hidden 512] [--layers 8] [--tokens 128] [--prompt 0] [--k 1,2,4,8,16] [--batches 1,32] [--rounds 7]
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import ascii_letters
from typing import Any, NamedTuple

import torch
from common import errors_in_a_line, in_turns, make_parser, numbers, print_table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.common.files import read_json, write_json
from colbert_diffusion.common.progress import only_our_output
from colbert_diffusion.config import PromptParts

WORDS = 8192  # of the vocabulary
HEAD = 64  # of a head
SPECIAL = {"mask_token": "<mask>", "unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
FAMILIES = {"masked": "a2d", "decoded": "causal"}
READOUTS = {"masked": "masked", "decoded": "generated"}


class Way(NamedTuple):
    """A cell: how the states come about, how many, of how many texts at once."""

    how: str
    k: int
    batch: int


def publish(folder: Path, options: argparse.Namespace) -> None:
    """A random backbone; of its vocabulary texts have the letters, a token each."""
    torch.manual_seed(0)
    heads = max(1, options.hidden // HEAD)
    shape = {"hidden_size": options.hidden, "num_hidden_layers": options.layers, "intermediate_size": 4 * options.hidden}
    longest = options.prompt + options.tokens + 64
    config = Qwen2Config(
        vocab_size=WORDS, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=longest, **shape
    )
    with only_our_output(Path("/dev/null")):
        Qwen2ForCausalLM(config).save_pretrained(folder)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "model_type": "qwen2"})
    core = Tokenizer(models.BPE({token: i for i, token in enumerate((*SPECIAL.values(), *ascii_letters))}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL).save_pretrained(folder)  # type: ignore[no-untyped-call]


def checkpoint(backbone: Path, folder: Path, way: Way, options: argparse.Namespace) -> DiffusionCheckpoint:
    """Its passages are what is timed."""
    prefix = PromptParts(tuple(2 + i % 100 for i in range(max(1, options.prompt))))
    DiffusionConfig(
        backbone=str(backbone),
        family=FAMILIES[way.how],
        readout=READOUTS[way.how],
        k_query=1,
        k_passage=way.k,
        query_prompt=prefix,
        passage_prompt=prefix,
        length_bound="text",
        query_max_length=options.tokens,
        passage_max_length=options.tokens,
        dim=options.hidden,
    ).save(folder)
    return DiffusionCheckpoint(folder, verbose=0)


def texts_of(batch: int, tokens: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(ascii_letters, k=tokens)) for _ in range(batch)]


def measure(options: argparse.Namespace, work: Path) -> list[tuple[Any, ...]]:
    """Rows of the table."""
    publish(work / "backbone", options)
    runs: dict[Way, Callable[[], object]] = {}
    for k in options.k:
        for how in READOUTS:
            model = checkpoint(work / "backbone", work / f"{how}-{k}", Way(how, k, 1), options)
            for batch in options.batches:
                runs[Way(how, k, batch)] = partial(model.encode_document, texts_of(batch, options.tokens))
    for run in runs.values():
        run()  # the first pass of a shape allocates
    names = {str(way): way for way in runs}
    seconds = in_turns({name: runs[way] for name, way in names.items()}, options.rounds)
    each = {names[name]: 1000 * statistics.median(times) / names[name].batch for name, times in seconds.items()}
    before, first = max(1, options.prompt) + options.tokens, min(options.k)
    rows = []
    for batch in options.batches:
        base = {how: each[Way(how, first, batch)] for how in READOUTS}
        for k in options.k:
            masked, decoded = (each[Way(how, k, batch)] for how in READOUTS)
            lengths = (before + k) / (before + first)
            ratios = (masked / base["masked"], lengths, decoded / base["decoded"], decoded / masked)
            rows.append((batch, k, f"{masked:.2f}", f"{decoded:.2f}", *(f"{ratio:.2f}" for ratio in ratios)))
    return rows


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    for name, default in (("hidden", 512), ("layers", 8), ("tokens", 128), ("prompt", 0), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--k", type=numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--batches", type=numbers, default=[1, 32])
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        rows = measure(given, Path(work))
    columns = (
        "batch",
        "k",
        "masked, ms a text",
        "decoded",
        "masked / k 1",
        "lengths / k 1",
        "decoded / k 1",
        "decoded / masked",
    )
    print_table(columns, rows)


if __name__ == "__main__":
    main()
