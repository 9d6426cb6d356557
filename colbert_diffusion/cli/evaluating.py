"""The command that measures."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.errors import UserError
from .app import Checkpoint, Json, Moved, MovedTexts, RayAddress, RayCpus, RayGpus, app, parse_fusion, quiet, ray_cluster

if TYPE_CHECKING:
    from ..evaluation import Benchmark


@app.command()
def evaluate(
    ctx: typer.Context,
    collections: Annotated[list[str], typer.Argument(help="BEIR or MS MARCO folders, or ir_datasets:ID.", show_default=False)],
    checkpoint: Checkpoint = None,
    index: Annotated[Path | None, typer.Option(help="Search this index; default: build one.")] = None,
    plaid: Annotated[bool, typer.Option("--plaid", help="ColBERT's PLAID; what runs when no system is named.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Exact MaxSim over every passage.")] = False,
    bm25: Annotated[bool, typer.Option("--bm25", help="BM25, stemmed.")] = False,
    lexical: Annotated[str | None, typer.Option(help="An index's words alone: bm25, or predicted by the model.")] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Vectors and words, as the index recommends.")] = False,
    fusion: Annotated[list[str] | None, typer.Option(help="Vectors and words by RULE=WEIGHT; may be repeated.")] = None,
    run: Annotated[list[Path] | None, typer.Option(help="A TREC run of another system; may be repeated.")] = None,
    k_passage: Annotated[str | None, typer.Option(help="Exact with the first k vectors of a passage, e.g. 1,4,16.")] = None,
    dim: Annotated[str | None, typer.Option(help="Exact with the first dimensions, e.g. 32,64; a row per combination.")] = None,
    measures: Annotated[str, typer.Option(help="ir_measures' names.")] = "nDCG@10 RR@10 R@100 R@1000",
    depth: Annotated[int, typer.Option(help="Passages per query.")] = 1000,
    split: Annotated[str | None, typer.Option(help="Which judgements; default: test, else dev.small, else dev.")] = None,
    nbits: Annotated[int | None, typer.Option(help="Bits per dimension of an index that is built.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for runs, measures.json and the index.")] = None,
    ray: RayAddress = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = 0,
    as_json: Json = False,
) -> None:
    """Measure on benchmarks: nDCG, recall, ..., and each system's difference to the first, with its 95 % interval."""
    from dataclasses import asdict

    from ..evaluation import read_benchmark
    from ..evaluation.systems import Systems, measure_systems

    words: Any = (lexical, hybrid, tuple(map(parse_fusion, fusion or ())))
    cells = (_numbers(k_passage), _numbers(dim))
    systems = Systems(checkpoint, index, plaid, exact, bm25, tuple(run or ()), *cells, depth, nbits, measures, *words)
    if len(collections) > 1 and (index or run):
        raise UserError(f"--index and --run belong to one collection, there are {len(collections)}; evaluate them one by one")
    seen: set[str] = set()
    for collection in collections:
        benchmark = read_benchmark(collection, split)
        _tell(benchmark)
        folder = out / benchmark.name if out and len(collections) > 1 else out
        if benchmark.name in seen:
            raise UserError(f"two collections are named {benchmark.name}; evaluate them one by one, each with its own --out")
        seen.add(benchmark.name)
        with quiet(ctx), ray_cluster(ray, ray_cpus, ray_gpus) as cluster:
            report, about = measure_systems(benchmark, systems, folder, cluster)
        if as_json:
            comparisons = [asdict(comparison) for comparison in report.comparisons]
            print(json.dumps({**about, "means": report.means, "comparisons": comparisons}, ensure_ascii=False))
        else:
            from .tables import print_measures

            print_measures(f"{benchmark.name}: {len(benchmark.documents)} passages, {len(benchmark.queries)} queries", report)


@app.command()
def compare(
    ctx: typer.Context,
    collections: Annotated[list[str], typer.Argument(help="BEIR or MS MARCO folders, or ir_datasets:ID.", show_default=False)],
    systems: Annotated[Path, typer.Option(help="A folder of checkpoints, or a JSON file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; what it has is kept.", show_default=False)],
    baseline: Annotated[str, typer.Option(help="The row that others are compared with.")] = "BM25",
    measures: Annotated[str, typer.Option(help="ir_measures' names.")] = "nDCG@10 RR@10 R@100 R@1000",
    depth: Annotated[int, typer.Option(help="Passages per query.")] = 1000,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how long it takes.")] = False,
) -> None:
    """Systems side by side on collections: quality with significance, bytes, times; tables and plots in OUT.

    The JSON has a checkpoint for each system's name, or an object: {"NAME": {"checkpoint": "FOLDER", "words": "bm25" or
    "predicted", "nbits": 2, "exact": true, "random": true}}; all but the checkpoint may be left out. Each checkpoint encodes a
    collection once for all its rows; interrupted, the same command goes on with the next cell.
    """
    from ..evaluation import read_benchmark
    from ..evaluation.comparing import compare_systems, plan_lines, read_systems
    from ..evaluation.measuring import parse_measures
    from ..evaluation.reporting import require_plotting, write_comparison

    names = [str(measure) for measure in parse_measures(measures)]
    require_plotting()
    benchmarks = [read_benchmark(collection) for collection in collections]
    if len({benchmark.name for benchmark in benchmarks}) < len(benchmarks):
        raise UserError("two collections have the same name; compare them apart, each with its own --out")
    for benchmark in benchmarks:
        _tell(benchmark)
    with quiet(ctx):
        chosen = read_systems(systems)
        if plan:
            text = "\n".join(plan_lines(benchmarks, chosen, out))
        else:
            found = [compare_systems(one, chosen, out, measures=measures, depth=depth, baseline=baseline) for one in benchmarks]
            text = write_comparison(found, names, out)
    print(text)


@app.command()
def tune(
    ctx: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.", show_default=False)],
    collection: Annotated[Path, typer.Option(help="A .tsv, a .jsonl or a BEIR folder.", show_default=False)],
    queries: Annotated[Path, typer.Option(help="A .tsv, a .jsonl or a BEIR folder.", show_default=False)],
    qrels: Annotated[Path, typer.Option(help="TREC's or BEIR's judgements of them.", show_default=False)],
    k: Annotated[str, typer.Option(help="Vectors to try, on both sides.")] = "1,2,4,8,16",
    measure: Annotated[str, typer.Option(help="One of ir_measures' names.")] = "nDCG@10",
    tolerance: Annotated[float, typer.Option(help="How much worse than the best a cheaper pair may be.")] = 0.005,
    transfer: Annotated[list[str] | None, typer.Option(help="Measure the choice here too; may be repeated.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Heat maps, .png or .svg.")] = None,
    lexical: Annotated[str | None, typer.Option(help="Find the weight of these words too: bm25 or predicted.")] = None,
    write: Annotated[Path | None, typer.Option(help="Folder for a checkpoint of the chosen k, and weight.")] = None,
    as_json: Json = False,
) -> None:
    """Choose how many vectors queries and passages get: the cheapest pair that is as good as the best, by exact MaxSim.

    It is chosen on one half of the queries and measured on the other, ten times. With --lexical so is the weight of words
    beside the vectors, through an index of the chosen k; of an index that is there: tune-fusion.
    """
    from ..encoding.identity import identify
    from ..evaluation import read_benchmark
    from ..evaluation.benchmarks import read_judged
    from ..evaluation.grid import as_json as facts
    from ..evaluation.grid import choose_k, draw_grid
    from ..texts.collection import read_documents

    judged = read_judged(collection.resolve().name, queries, qrels, read_documents(collection))
    _tell(judged)
    others = [read_benchmark(other) for other in transfer or ()]
    if write is not None and write.exists():
        raise UserError(f"{write} exists; choose another folder or delete it")
    if (write or lexical) and not identify(checkpoint).config.nested:
        raise UserError(
            f"{checkpoint} is not nested: leave --write and --lexical out; `convert` makes one of the chosen k of its backbone"
        )
    if lexical not in (None, "bm25", "predicted"):
        raise UserError(f"--lexical {lexical!r:.40}: expected bm25 or predicted")
    tuned = None
    with quiet(ctx), tempfile.TemporaryDirectory() as temporary:
        chosen = choose_k(checkpoint, judged, ks=_numbers(k), measure=measure, tolerance=tolerance, transfer=others)
        if plot is not None:
            draw_grid(chosen, plot)
        if write or lexical:
            from ..encoding.conversion import convert

            folder = write or Path(temporary, "chosen")
            convert(checkpoint, folder, k_query=chosen.chosen.k_query, k_passage=chosen.chosen.k_passage)
            if lexical:
                from ..evaluation.tuning import tune_words

                tuned = tune_words(folder, collection, queries, qrels, lexical, measure=measure, write=bool(write))  # type: ignore[arg-type]
    if as_json:
        found = facts(chosen) | ({"fusion": asdict(tuned)} if tuned else {})
        print(json.dumps(found, ensure_ascii=False))
    else:
        from .tables import choice_lines, tuning_lines

        print("\n".join([*choice_lines(chosen), *(tuning_lines(tuned) if tuned else ())]))


@app.command("tune-fusion")
def tune_fusion(
    ctx: typer.Context,
    index: Annotated[Path, typer.Argument(help="An index with words.", show_default=False)],
    queries: Annotated[Path, typer.Option(help="A .tsv, a .jsonl or a BEIR folder.", show_default=False)],
    qrels: Annotated[Path, typer.Option(help="TREC's or BEIR's judgements of them.", show_default=False)],
    measure: Annotated[str, typer.Option(help="One of ir_measures' names.")] = "nDCG@10",
    depth: Annotated[int, typer.Option(help="Passages of each side.")] = 100,
    write: Annotated[bool, typer.Option(help="Keep the weight in the index where it helps.")] = True,
    checkpoint: Moved = None,
    collection: MovedTexts = None,
    as_json: Json = False,
) -> None:
    """Find the weight of an index's words beside its vectors; where that helps, its searches are hybrid from then on.

    It must help on queries that did not choose it: the weight is chosen on one half and measured on the other, ten times.
    """
    from ..evaluation.tuning import tune_fusion as tune

    with quiet(ctx):
        tuned = tune(
            index, queries, qrels, measure=measure, depth=depth, write=write, checkpoint=checkpoint, collection=collection
        )
    if as_json:
        print(json.dumps(asdict(tuned), ensure_ascii=False))
    else:
        from .tables import tuning_lines

        print("\n".join(tuning_lines(tuned)))


def _tell(benchmark: "Benchmark") -> None:
    """What a reader of the measures should know."""
    from ..common.progress import note

    if benchmark.left_out:
        note(f"{benchmark.name}: {benchmark.left_out} queries without a positive judgement are left out")
    if benchmark.missing:
        note(f"{benchmark.name}: {benchmark.missing} judged passages are not in the collection and count as not found")
    if benchmark.own:
        note(f"{benchmark.name}: {len(benchmark.own)} queries are documents too, left out of their own results as BEIR does")


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(f"{text!r:.40}: expected whole numbers separated by commas, e.g. 1,4,16") from error
