"""How much of a checkpoint's own states survives a projection: PCA, random orthogonal, or the first coordinates alone.

The checkpoint's projection, if it has one, is set aside: its backbone's states are the yardstick ("none" at the full
size). Kept order is the share of the yardstick's ten best passages, by exact MaxSim, that are among the ten best after
the projection, as the mean over queries; nDCG@10 is by exact MaxSim too. Each text is encoded once. The PCA is
`convert`'s, fitted on the collection's own passages, as a user fits it; the random projection's figures are means over
three draws.

Usage: projections.py CHECKPOINT BEIR_FOLDER [BEIR_FOLDER ...] [--dim 64,128,256]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from common import errors_in_a_line, make_parser, numbers, print_table

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.progress import note
from colbert_diffusion.encoding.encoder import Encoder
from colbert_diffusion.encoding.projection import Projection, fit_pca
from colbert_diffusion.encoding.scoring import Vectors
from colbert_diffusion.evaluation import Benchmark, Run, evaluate, exact_run, read_benchmark

DRAWS = 3  # random projections
MEASURE, DEPTH = "nDCG@10", 10


class States:
    """A collection's unprojected vectors, float32 (k, hidden) by text; with a projection, what exact search asks for."""

    def __init__(self, encoder: Encoder, benchmark: Benchmark) -> None:
        note(f"{benchmark.name}: encoding {len(benchmark.texts):,} passages and {len(benchmark.queries):,} queries")
        queries = list(benchmark.queries.values())
        self.queries = dict(zip(queries, encoder.encode(queries, "query"), strict=True))
        self.passages = dict(zip(benchmark.texts, encoder.encode(benchmark.texts, "passage"), strict=True))

    def pca(self, dim: int) -> Projection:
        return fit_pca(map(torch.from_numpy, self.passages.values()), dim)


@dataclass(frozen=True)
class Projected:
    """What `exact_run` needs of a checkpoint."""

    states: States
    projection: Projection

    def encode_query(self, queries: list[str], /) -> list[Vectors]:
        return [self._project(self.states.queries[text]) for text in queries]

    def encode_document(self, documents: list[str], /) -> list[Vectors]:
        return [self._project(self.states.passages[text]) for text in documents]

    def _project(self, vectors: Vectors) -> Vectors:
        projected: Vectors = self.projection(torch.from_numpy(vectors)).numpy()
        return projected


def random_orthogonal(dim: int, hidden: int, seed: int) -> Projection:
    """Rows orthonormal, drawn without preference: a QR decomposition of normal numbers."""
    normal = torch.randn(hidden, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Projection(torch.linalg.qr(normal).Q.T.float().contiguous())


def first_coordinates(dim: int, hidden: int) -> Projection:
    return Projection(torch.eye(dim, hidden))


def kept_order(run: Run, yardstick: Run) -> float:
    """Of each query's passages in the yardstick the share that is in the run, as a mean."""
    found = {qid: {document for document, _ in ranking} for qid, ranking in run.items()}
    return fmean(fmean(document in found[qid] for document, _ in ranking) for qid, ranking in yardstick.items())


def unprojected(checkpoint: DiffusionCheckpoint) -> Encoder:
    """The checkpoint's encoder without its projection, and without merging."""
    backbone = checkpoint.encoder.backbone
    config = replace(checkpoint.config, dim=backbone.hidden_size, projection="none", merge_above=None, cover_above=None)
    return Encoder(backbone, config, Projection())


def measure(encoder: Encoder, benchmark: Benchmark, dims: Sequence[int]) -> Iterator[tuple[str, int, float, float]]:
    """(projection, dim, kept order, nDCG@10), the yardstick first."""
    hidden, states = encoder.backbone.hidden_size, States(encoder, benchmark)

    def run(projection: Projection) -> Run:
        return exact_run(Projected(states, projection), benchmark, DEPTH)

    def quality(found: Run) -> float:
        return evaluate(benchmark, {"run": found}, MEASURE).means["run"][MEASURE]

    yardstick = run(Projection())
    yield "none", hidden, 1.0, quality(yardstick)
    for dim in dims:
        tried = {
            "PCA": [states.pca(dim)],
            "random orthogonal": [random_orthogonal(dim, hidden, seed) for seed in range(DRAWS)],
            "none, first coordinates": [first_coordinates(dim, hidden)],
        }
        for name, projections in tried.items():
            runs = [run(projection) for projection in projections]
            yield name, dim, fmean(kept_order(found, yardstick) for found in runs), fmean(map(quality, runs))


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", help="folder or hub id")
    parser.add_argument("collections", nargs="+", help="BEIR folders and so on")
    parser.add_argument("--dim", type=numbers, default=[64, 128, 256])
    given = parser.parse_args(arguments)
    benchmarks = [read_benchmark(collection) for collection in given.collections]
    encoder = unprojected(DiffusionCheckpoint(given.checkpoint))
    if bad := [dim for dim in given.dim if not 1 <= dim <= encoder.backbone.hidden_size]:
        raise UserError(f"--dim {bad[0]}: the backbone has {encoder.backbone.hidden_size} dimensions; choose 1 to that many")
    print_table(
        ("collection", "projection", "dim", f"kept order of the top {DEPTH}", MEASURE),
        (
            (benchmark.name, name, dim, f"{kept:.3f}", f"{quality:.4f}")
            for benchmark in benchmarks
            for name, dim, kept, quality in measure(encoder, benchmark, given.dim)
        ),
    )


if __name__ == "__main__":
    main()
