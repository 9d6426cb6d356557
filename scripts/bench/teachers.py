"""How good a teacher would be: its scores over whole collections, as a retriever's, before a student learns them.

A teacher's scores are the first checkpoint's mean MaxSim, plus a weight times the second's, plus a weight times BM25's over
the query's best (`Recipe`: teacher, second_teacher, second_weight, teacher_words). Printed is nDCG@10 for each pair of weights.

Usage: teachers.py TEACHER BEIR_FOLDER [BEIR_FOLDER ...] [--second TEACHER] [--second-weight 0,0.25,0.5,1] [--words 0,0.1,0.2]
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from common import errors_in_a_line, make_parser, print_table

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.common.progress import note
from colbert_diffusion.encoding.scoring import maxsim
from colbert_diffusion.evaluation import Benchmark, evaluate, read_benchmark
from colbert_diffusion.evaluation.runs import best, without_own
from colbert_diffusion.training.teacher import WordTeacher

MEASURE, DEPTH = "nDCG@10", 10

Scores = npt.NDArray[np.float32]  # (queries, documents)


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teacher")
    parser.add_argument("collections", nargs="+", metavar="BEIR_FOLDER")
    parser.add_argument("--second")
    parser.add_argument("--second-weight", type=weights, default="0,0.25,0.5,1", help="where there is a second")
    parser.add_argument("--words", type=weights, default="0,0.05,0.1,0.2,0.3")
    given = parser.parse_args(arguments)
    benchmarks = [read_benchmark(folder) for folder in given.collections]
    checkpoints = [DiffusionCheckpoint(path) for path in (given.teacher, given.second) if path is not None]
    columns = ["second weight", "words", *(benchmark.name for benchmark in benchmarks)]
    print_table(columns, rows(benchmarks, checkpoints, given))


def weights(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def rows(
    benchmarks: Sequence[Benchmark], checkpoints: Sequence[DiffusionCheckpoint], given: argparse.Namespace
) -> Iterator[list[str]]:
    parts = [[*(dense(checkpoint, each) for checkpoint in checkpoints), words(each)] for each in benchmarks]
    for second_weight in given.second_weight if given.second is not None else [0.0]:
        for words_weight in given.words:
            by = [1.0, second_weight, words_weight] if given.second is not None else [1.0, words_weight]
            values = [
                quality(sum((weight * part for weight, part in zip(by, own, strict=True)), start=np.float32(0)), benchmark)
                for own, benchmark in zip(parts, benchmarks, strict=True)
            ]
            yield [f"{second_weight:g}", f"{words_weight:g}", *(f"{value:.4f}" for value in values)]


def dense(checkpoint: DiffusionCheckpoint, benchmark: Benchmark) -> Scores:
    """The mean over a query's vectors of the largest cosine with one of the document's."""
    note(f"{benchmark.name}: encoding {len(benchmark.texts):,} passages and {len(benchmark.queries):,} queries")
    queries = checkpoint.encode_query(list(benchmark.queries.values()))
    sums = maxsim(queries, checkpoint.encode_document(list(benchmark.texts)))
    means: Scores = sums / np.array([len(vectors) for vectors in queries], np.float32)[:, None]
    return means


def words(benchmark: Benchmark) -> Scores:
    """BM25's scores over each query's best."""
    scores: Scores = WordTeacher().scores(list(benchmark.queries.values()), benchmark.texts).numpy()
    return scores


def quality(scores: Any, benchmark: Benchmark) -> float:
    found = {qid: best(row, benchmark.document_ids, DEPTH + 1) for qid, row in zip(benchmark.queries, scores, strict=True)}
    run = without_own(found, benchmark.own, DEPTH)
    return evaluate(benchmark, {"teacher": run}, MEASURE).means["teacher"][MEASURE]


if __name__ == "__main__":
    main()
