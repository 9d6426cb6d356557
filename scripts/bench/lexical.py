"""Words beside vectors: what they cost a search and an encoding, each mode beside the others in one run.

search: an index of --passages passages is built whose words have a real collection's statistics (each passage is drawn from
the words of two of its passages) and whose vectors are drawn, as in plan.py. Then each mode answers the same queries in turns,
one thread, without encoding them: p50, p95, the ratio to dense. The first query of each mode is not counted.

encode: passages are encoded with and without their predicted words, in turns; the ratio of the medians.

Usage: lexical.py search COLLECTION QUERIES --out FOLDER [--passages 100000] [--length 60] [--k 10] [--queries 300]
       lexical.py encode COLLECTION [--checkpoint FOLDER] [--texts 300] [--rounds 3]
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from common import bytes_of, errors_in_a_line, in_turns, make_parser, packed_bytes, print_table, timed
from plan import Built, Drawn, identity

from colbert_diffusion import DiffusionCheckpoint, Searcher, build_index, default_checkpoint, open_index
from colbert_diffusion.common.progress import note, only_our_output, progress_bar
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.index.searching import MODES, Asked
from colbert_diffusion.texts.collection import read_collection, read_queries, write_tsv

SHAPE = {"k": 10, "dim": 128, "nbits": 2}  # of the small checkpoint's first edition, near vectors merged


def drawn_texts(texts: Sequence[str], count: int, length: int) -> Iterator[str]:
    """Words of two passages each, so that a word is in as many passages as in the collection, and with the same ones."""
    draw, words = np.random.default_rng(0), [text.split() for text in texts if text.split()]
    for _ in range(count):
        one, other = draw.integers(len(words), size=2)
        both = np.array([*words[one], *words[other]], object)
        yield " ".join(both[draw.integers(len(both), size=max(1, int(draw.normal(length, length / 4))))])


def build(options: argparse.Namespace) -> Path:
    """The index; one that is there is taken as it is."""
    index: Path = options.out / "index"
    if index.is_dir():
        return index
    options.out.mkdir(parents=True, exist_ok=True)
    source = options.out / "passages.tsv"
    write_tsv(source, drawn_texts(read_collection(options.collection), options.passages, options.length))
    cell = Built(options.passages, **SHAPE)
    made_by = identity(cell, options.out / "checkpoint")
    encode_to(options.out / "vectors", made_by, lambda: Drawn(cell), read_collection(source), show_progress_bar=True)
    with only_our_output(Path("/dev/null")):
        _, seconds = timed(lambda: build_index(index, source, options.out / "vectors", lexical="bm25", verbose=0))
    note(f"built in {seconds:.0f} s, words included")
    return index


def ask(searcher: Searcher, texts: Sequence[str]) -> list[Asked]:
    """Their words, and drawn vectors: what is timed costs the same with any."""
    cell = Built(len(texts), k=4, dim=SHAPE["dim"], nbits=SHAPE["nbits"])
    vectors = (torch.from_numpy(own)[None] for own in Drawn(cell).iter_document(texts))
    words = searcher.ask(texts, mode="lexical")
    return [Asked(q, own.words) for q, own in zip(vectors, words, strict=True)]


def search(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    index = build(options)
    searcher = open_index(index)
    asked = ask(searcher, list(islice(read_queries(options.queries_file).values(), options.queries + 1)))
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    with progress_bar(len(asked), "search") as progress:
        for query in asked:
            runs = {mode: partial(searcher.answer, query, options.k, mode=mode) for mode in MODES}
            for mode, found in in_turns(runs, 1).items():
                seconds[mode] += found
            progress.update(1)
    dense = statistics.median(seconds["dense"][1:])
    rows = []
    for mode, times in seconds.items():
        half, most = np.quantile(times[1:], [0.5, 0.95])
        rows.append((mode, f"{1000 * half:.2f}", f"{1000 * most:.2f}", f"{half / dense:.2f}"))
    print_table(("mode", "p50 ms", "p95 ms", "p50 / dense"), rows)
    passages = len(searcher.collection)
    words, vectors = bytes_of(index, "lexical.*") / passages, packed_bytes(index) / passages
    print(f"\n{passages:,} passages, k = {options.k}, {len(asked) - 1} queries")
    print(f"bytes a passage: words {words:.0f}, vectors {vectors:.0f}")


def encode(options: argparse.Namespace) -> None:
    texts = list(islice(read_collection(options.collection), options.texts))
    checkpoint = DiffusionCheckpoint(options.checkpoint)
    runs = {
        "vectors": partial(checkpoint.encode_document, texts),
        "vectors and words": partial(checkpoint.encode_document, texts, lexical=True),
    }
    for run in runs.values():
        run()
    seconds = {name: statistics.median(found) for name, found in in_turns(runs, options.rounds).items()}
    rows = [(name, f"{len(texts) / found:.1f}", f"{found / seconds['vectors']:.3f}") for name, found in seconds.items()]
    print_table(("encoded", "passages / s", "time / vectors alone"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    searching = commands.add_parser("search")
    searching.add_argument("collection", type=Path)
    searching.add_argument("queries_file", type=Path, metavar="QUERIES")
    searching.add_argument("--out", type=Path, required=True)
    for name, default in (("passages", 100_000), ("length", 60), ("k", 10), ("queries", 300)):
        searching.add_argument(f"--{name}", type=int, default=default)
    searching.set_defaults(run=search)
    encoding = commands.add_parser("encode")
    encoding.add_argument("collection", type=Path)
    encoding.add_argument("--checkpoint", default=default_checkpoint())
    encoding.add_argument("--texts", type=int, default=300)
    encoding.add_argument("--rounds", type=int, default=3)
    encoding.set_defaults(run=encode)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    with errors_in_a_line():
        main(sys.argv[1:])
