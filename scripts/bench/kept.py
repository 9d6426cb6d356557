"""How many vectors does a text deserve: every rule beside the others, nDCG@10 against vectors and bytes.

prefix: the first n. merge, cover: as `merge_above` and `cover_above` do. pool: hierarchical clusters (Ward), as many as n,
ColBERT's own way. span: the first ones, until the rest has less than a share of the passage's energy outside their span. words:
those whose likeliest predicted word is neither a stop word nor a special token nor punctuation. router: the first n, n by a
linear map of the first vector that was fitted, on the other half of the passages, to the number that `cover` keeps.
agree: of a QUERY, those closer than a cosine become their sum (exact MaxSim alone; passages keep all of theirs). The last
line is the oracle: for each query the prefix that is best for it, an upper line for choosing k by query.

The checkpoint encodes each collection once, nothing merged. Measured by exact MaxSim and, with --nbits, through PLAID.

Usage: kept.py CHECKPOINT COLLECTION ... --out FOLDER [--rules prefix,merge,cover,pool,span,words,router,agree] [--nbits 2]

OUT/kept.json keeps every row, OUT/kept.png and .svg are the plot; interrupted, the same command goes on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Cell, KeptRows, Row, errors_in_a_line, make_parser, packed_bytes, print_table
from scipy.cluster.hierarchy import fcluster, linkage

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import written_aside
from colbert_diffusion.common.fingerprint import of_texts
from colbert_diffusion.common.progress import Progress, note, only_our_output
from colbert_diffusion.encoding.allocation import cover, merge, vectors_per_text
from colbert_diffusion.encoding.encoder import Encoder
from colbert_diffusion.encoding.identity import CheckpointIdentity, identify
from colbert_diffusion.encoding.lexical import STOP_WORDS, words
from colbert_diffusion.encoding.scoring import Vectors
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.evaluation import Benchmark, build_index, evaluate, exact_run, plaid_run, read_benchmark

MEASURE = "nDCG@10"
RIDGE = 1.0  # of the router's fit


def merged(vectors: Vectors, above: float) -> Vectors:
    return merge(torch.from_numpy(vectors)[None], above)[0]


def covered(vectors: Vectors, above: float) -> Vectors:
    return cover(torch.from_numpy(vectors)[None], above)[0]


def pooled(vectors: Vectors, count: float) -> Vectors:
    """The normalised sums of as many clusters (colbert/modeling/checkpoint.py, pool_embeddings_hierarchical)."""
    if len(vectors) <= count:
        return vectors
    cluster = fcluster(linkage(vectors, "ward"), int(count), "maxclust")
    sums = np.stack([vectors[cluster == number].sum(axis=0) for number in np.unique(cluster)])
    result: Vectors = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
    return result


def agreed(vectors: Vectors, above: float) -> Vectors:
    """A group's sum keeps its weight: MaxSim is the same where one passage vector is the nearest of all of the group."""
    left, sums = np.arange(len(vectors)), []
    while len(left):
        near = (vectors[left] @ vectors[left[0]] > above) | (left == left[0])
        sums.append(vectors[left[near]].sum(axis=0))
        left = left[~near]
    return np.stack(sums)


def spanned(vectors: Vectors, share: float) -> Vectors:
    """Gram-Schmidt: the first j whose span leaves less than this share of all vectors' energy."""
    left = vectors.astype(np.float64)
    for j in range(1, len(vectors)):
        length = np.linalg.norm(left[j - 1])
        if length > 1e-6:
            direction = left[j - 1] / length
            left = left - np.outer(left @ direction, direction)
        if float((left[j:] ** 2).sum()) < share * len(vectors):
            return vectors[:j]
    return vectors


def meaningful(vectors: Vectors, predicted: Sequence[str]) -> Vectors:
    """The positions that predict a content word; the first, if none does."""
    kept = [place for place, word in enumerate(predicted) if is_content(word)]
    return vectors[kept or [0]]


def is_content(word: str) -> bool:
    found = words(word.removeprefix("##"))
    return bool(found) and not word.startswith("[") and not STOP_WORDS.issuperset(found)


def routed(first: Vectors, counts: Sequence[int]) -> list[int]:
    """Each passage's n: ridge regression from its first vector, fitted on the passages of the other parity."""
    inputs, targets = np.c_[first, np.ones(len(first))], np.array(counts, float)
    predicted = np.empty(len(first))
    for parity in (0, 1):
        own, other = np.arange(len(first)) % 2 == parity, np.arange(len(first)) % 2 != parity
        gram = inputs[other].T @ inputs[other] + RIDGE * np.eye(inputs.shape[1])
        predicted[own] = inputs[own] @ np.linalg.solve(gram, inputs[other].T @ targets[other])
    return [max(1, round(count)) for count in predicted.tolist()]


AGREE = "agree"  # the only rule for queries: measured exactly, and in no plot of passages' bytes
Simple = Callable[[Vectors, float], Vectors]
SIMPLE: Mapping[str, Simple] = {"merge": merged, "cover": covered, "pool": pooled, "span": spanned}
SETTINGS: Mapping[str, Sequence[float]] = {
    "prefix": (4, 6, 8, 10, 12, 16),
    "merge": (0.9, 0.85, 0.8, 0.75, 0.7),
    "cover": (0.98, 0.96, 0.94, 0.92, 0.9),
    "pool": (4, 6, 8, 10, 12),
    "span": (0.02, 0.05, 0.1, 0.15, 0.2),
    "words": (1,),
    "router": (0.98, 0.96, 0.94, 0.92, 0.9),
    AGREE: (0.95, 0.9, 0.85, 0.8, 0.7),
}


@dataclass(frozen=True)
class Kept(Cell):
    rule: str
    setting: float


class Whole:
    """A collection as the checkpoint encodes it, nothing merged; `keep` applies a rule to its passages."""

    def __init__(self, source: str, benchmark: Benchmark) -> None:
        note(f"{benchmark.name}: encoding {len(benchmark.documents):,} passages")
        self.model = DiffusionCheckpoint(source, verbose=0)
        own = self.model.encoder
        plain = Encoder(own.backbone, replace(self.model.config, merge_above=None, cover_above=None), own.projection)
        self.texts = list(benchmark.texts)
        self.queries = dict(
            zip(benchmark.queries.values(), self.model.encode_query([*benchmark.queries.values()]), strict=True)
        )
        self.passages = list(plain.encode(self.texts, "passage"))

    def keep(self, cell: Kept) -> list[Vectors]:
        if cell.rule == AGREE:
            return self.passages
        if cell.rule == "prefix":
            return [own[: int(cell.setting)] for own in self.passages]
        if cell.rule == "words":
            predicted = self.model.predict_words(self.texts, top=1)
            return [meaningful(own, [word for [word] in said]) for own, said in zip(self.passages, predicted, strict=True)]
        if cell.rule == "router":
            counts = [len(covered(own, cell.setting)) for own in self.passages]
            chosen = routed(np.stack([own[0] for own in self.passages]), counts)
            return [own[:n] for own, n in zip(self.passages, chosen, strict=True)]
        return [SIMPLE[cell.rule](own, cell.setting) for own in self.passages]


class Served:
    """Vectors that are there, as an encoder of a collection's texts in their order."""

    def __init__(self, queries: Mapping[str, Vectors], texts: Sequence[str], passages: Sequence[Vectors]) -> None:
        self._queries, self._passages = queries, dict(zip(texts, passages, strict=True))

    def encode_query(self, queries: Sequence[str]) -> list[Vectors]:
        return [self._queries[text] for text in queries]

    def encode_document(self, documents: Sequence[str]) -> list[Vectors]:
        return [self._passages[text] for text in documents]

    def iter_document(self, documents: Sequence[str], progress: Progress | None = None) -> Iterator[Vectors]:
        return iter(self.encode_document(documents))

    def cut_documents(self) -> None:
        """Not told here."""


def measure_cell(whole: Whole, benchmark: Benchmark, cell: Kept, nbits: int, made_by: CheckpointIdentity, work: Path) -> Row:
    """A row; `per_query` are the exact values, for the oracle."""
    passages, queries = whole.keep(cell), whole.queries
    if cell.rule == AGREE:
        queries = {text: agreed(own, cell.setting) for text, own in queries.items()}
    served = Served(queries, whole.texts, passages)
    runs = {"exact": exact_run(served, benchmark, depth=100)}
    row: Row = {"collection": benchmark.name, **cell.as_row(), "nbits": nbits, "vectors": vectors_per_text(passages)}
    row["query_vectors"] = vectors_per_text(list(queries.values()))
    row["bytes"] = row["vectors"] * (4 + made_by.config.dim * (nbits or 16) / 8)
    if nbits:
        encode_to(work / "vectors", made_by, lambda: served, benchmark.texts)
        with only_our_output(work / "colbert.log"):
            index = build_index(str(work / "vectors"), benchmark, work / "index", nbits)
            runs["plaid"] = plaid_run(index, benchmark, depth=100)
        row["bytes"] = packed_bytes(index) / len(benchmark.documents)
    report = evaluate(benchmark, runs, MEASURE)
    per_query = report.per_query["exact"][MEASURE]
    return row | {name: means[MEASURE] for name, means in report.means.items()} | {"per_query": list(per_query.values())}


def oracle(rows: Sequence[Row]) -> float:
    """The mean over queries of the best of their values."""
    return float(np.max([row["per_query"] for row in rows], axis=0).mean())


def draw(rows: Sequence[Row], out: Path) -> None:
    """A panel for each collection, a line with markers of its own for each rule; readable in grey."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["collection"] for row in rows))
    figure = Figure(figsize=(1 + 5 * len(names), 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        group = [row for row in rows if row["collection"] == name]
        for marker, rule in zip("os^Dv*P", (rule for rule in SETTINGS if rule != AGREE), strict=True):
            line = sorted((row["bytes"], row.get("plaid", row["exact"])) for row in group if row["rule"] == rule)
            if line:
                axes.plot(*zip(*line, strict=True), marker=marker, color="black", alpha=0.7, linewidth=0.8, label=rule)
        axes.set(title=name, xlabel="bytes per passage", ylabel=MEASURE)
        axes.legend(loc="best", fontsize="small", ncols=2)
    for kind in ("png", "svg"):
        with written_aside(out / f"kept.{kind}") as aside:
            figure.savefig(aside, format=kind)


def show(rows: Sequence[Row]) -> None:
    def cells() -> Iterator[Sequence[Any]]:
        for row in rows:
            values = (f"{row[name]:.3f}" if name in row else "-" for name in ("exact", "plaid"))
            queries = f"{row['query_vectors']:.1f}"
            size = (f"{row['setting']:g}", queries, f"{row['vectors']:.1f}", f"{row['bytes']:.0f}")
            yield (row["collection"], row["rule"], *size, *values)
        for name in dict.fromkeys(row["collection"] for row in rows):
            prefixes = [row for row in rows if row["collection"] == name and row["rule"] == "prefix"]
            if prefixes:
                yield (name, "oracle", "by query", "-", "-", "-", f"{oracle(prefixes):.3f}", "-")

    columns = ("collection", "rule", "setting", "query vectors", "vectors", "bytes", "exact", "PLAID")
    print_table(columns, cells())


def measure(source: str, collections: Sequence[str], rules: Sequence[str], nbits: int, out: Path) -> list[Row]:
    """The rows asked for; those that OUT/kept.json has are not measured again."""
    made_by, asked = identify(source), list[Row]()
    for benchmark in map(read_benchmark, collections):
        kept = KeptRows(out / benchmark.name / "kept.json", checkpoint=made_by.fingerprint, texts=of_texts(benchmark.texts))
        if (kept.content["checkpoint"], kept.content["texts"]) != (made_by.fingerprint, of_texts(benchmark.texts)):
            raise UserError(f"{kept.path} is of another checkpoint or other documents; choose another --out or delete it")
        whole: Whole | None = None
        most = made_by.config.k_passage
        for cell in (Kept(rule, setting) for rule in rules for setting in SETTINGS[rule]):
            if cell.rule in ("prefix", "pool") and cell.setting > most:
                continue
            bits = 0 if cell.rule == AGREE else nbits
            row = kept.find(collection=benchmark.name, **cell.as_row(), nbits=bits)
            if row is None:
                whole = whole or Whole(source, benchmark)
                row = measure_cell(whole, benchmark, cell, bits, made_by, out / benchmark.name / f"{cell.name}-{bits}")
                kept.add(row)
            asked.append(row)
    return asked


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("collections", nargs="+", help="BEIR folders and so on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rules", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--nbits", type=int, default=0, help="of an index; default: exact alone")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.rules) - set(SETTINGS)):
        raise UserError(f"{', '.join(unknown)}: no such rule; choose from {', '.join(SETTINGS)}")
    rows = measure(given.checkpoint, given.collections, given.rules, given.nbits, given.out)
    draw(rows, given.out)
    show(rows)


if __name__ == "__main__":
    main()
