"""The command that measures."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..common.errors import UserError
from .app import Checkpoint, Json, app, quiet


@app.command()
def evaluate(
    ctx: typer.Context,
    collections: Annotated[list[str], typer.Argument(help="BEIR or MS MARCO folders, or ir_datasets:ID.", show_default=False)],
    checkpoint: Checkpoint = None,
    index: Annotated[Path | None, typer.Option(help="Search this index; default: build one.")] = None,
    plaid: Annotated[bool, typer.Option("--plaid", help="ColBERT's PLAID; what runs when no system is named.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Exact MaxSim over every passage.")] = False,
    bm25: Annotated[bool, typer.Option("--bm25", help="BM25, stemmed.")] = False,
    run: Annotated[list[Path] | None, typer.Option(help="A TREC run of another system; may be repeated.")] = None,
    k_passage: Annotated[str | None, typer.Option(help="Exact with the first k vectors of a passage, e.g. 1,4,16.")] = None,
    dim: Annotated[str | None, typer.Option(help="Exact with the first dimensions, e.g. 32,64; a row per combination.")] = None,
    measures: Annotated[str, typer.Option(help="ir_measures' names.")] = "nDCG@10 RR@10 R@100 R@1000",
    depth: Annotated[int, typer.Option(help="Passages per query.")] = 1000,
    split: Annotated[str | None, typer.Option(help="Which judgements; default: test, else dev.small, else dev.")] = None,
    nbits: Annotated[int | None, typer.Option(help="Bits per dimension of an index that is built.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for runs, measures.json and the index.")] = None,
    as_json: Json = False,
) -> None:
    """Measure on benchmarks: nDCG, recall, ..., and each system's difference to the first, with its 95 % interval."""
    from dataclasses import asdict

    from ..common.progress import note
    from ..evaluation import read_benchmark
    from ..evaluation.systems import Systems, measure_systems

    systems = Systems(
        checkpoint, index, plaid, exact, bm25, tuple(run or ()), _numbers(k_passage), _numbers(dim), depth, nbits, measures
    )
    if len(collections) > 1 and (index or run):
        raise UserError(f"--index and --run belong to one collection, there are {len(collections)}; evaluate them one by one")
    seen: set[str] = set()
    for collection in collections:
        benchmark = read_benchmark(collection, split)
        if benchmark.left_out:
            note(f"{benchmark.name}: {benchmark.left_out} queries without a positive judgement are left out")
        if benchmark.missing:
            note(f"{benchmark.name}: {benchmark.missing} judged passages are not in the collection and count as not found")
        if benchmark.own:
            note(
                f"{benchmark.name}: {len(benchmark.own)} queries are documents too, left out of their own results as BEIR does"
            )
        folder = out / benchmark.name if out and len(collections) > 1 else out
        if benchmark.name in seen:
            raise UserError(f"two collections are named {benchmark.name}; evaluate them one by one, each with its own --out")
        seen.add(benchmark.name)
        with quiet(ctx):
            report, about = measure_systems(benchmark, systems, folder)
        if as_json:
            comparisons = [asdict(comparison) for comparison in report.comparisons]
            print(json.dumps({**about, "means": report.means, "comparisons": comparisons}, ensure_ascii=False))
        else:
            from .tables import print_measures

            print_measures(f"{benchmark.name}: {len(benchmark.documents)} passages, {len(benchmark.queries)} queries", report)


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(f"{text!r:.40}: expected whole numbers separated by commas, e.g. 1,4,16") from error
