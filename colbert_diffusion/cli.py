"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CutTextWarning, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Diffusion language models as retrievers, in ColBERT's own index.",
)

Texts = Annotated[Path, typer.Argument(help="A .tsv (pid, text), a .jsonl, or a BEIR folder.", show_default=False)]
Checkpoint = Annotated[str | None, typer.Option(help="Checkpoint folder or hub id; without it the small default checkpoint.")]
Moved = Annotated[str | None, typer.Option("--checkpoint", help="Where the index's checkpoint is now, if it moved.")]
MovedTexts = Annotated[Path | None, typer.Option("--collection", help="Where the index's texts are now, if they moved.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option(help="Show tracebacks and ColBERT's own output.")] = False) -> None:
    """Diffusion language models as retrievers, in ColBERT's own index."""


@app.command()
def encode(ctx: typer.Context, texts: Texts, out: Path, checkpoint: Checkpoint = None, as_json: Json = False) -> None:
    """Encode passages into vector files, to index many times. Interrupted, it goes on where it stopped."""
    from .checkpoint import DiffusionCheckpoint, default_checkpoint
    from .collection import read_collection
    from .identity import identify
    from .vectors import encode_to

    passages = read_collection(texts)
    started = time.monotonic()
    identity = identify(checkpoint or default_checkpoint())
    encode_to(out, identity, lambda: DiffusionCheckpoint(identity.path), passages, show_progress_bar=True)
    _report(as_json, {"vectors": str(out), "passages": len(passages), "seconds": round(time.monotonic() - started, 1)})


@app.command()
def index(
    ctx: typer.Context,
    texts: Texts,
    index: Annotated[Path, typer.Argument(help="Folder to build the index in.", show_default=False)],
    checkpoint: Checkpoint = None,
    vectors: Annotated[Path | None, typer.Option(help="Vector files made by `encode` from the same texts.")] = None,
    nbits: Annotated[int | None, typer.Option(help="Bits per dimension: 1, 2, 4 or 8; default: the checkpoint's.")] = None,
    ranks: Annotated[int, typer.Option(help="Processes that share the work; with GPUs, one each.", min=1)] = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace an index that is there, once the new one is complete.")] = False,
    skip_bad: Annotated[bool, typer.Option(help="Leave malformed lines out and write them to TEXTS.skipped.")] = False,
    as_json: Json = False,
) -> None:
    """Build an index with ColBERT's own indexer. Interrupted, the same command goes on where it stopped."""
    if checkpoint is not None and vectors is not None:
        raise UserError("--checkpoint and --vectors exclude each other: vector files name the checkpoint that made them")
    started = time.monotonic()
    collection = _read_skipping(texts) if skip_bad else str(texts)
    with _quiet(ctx):
        from .seam.by_path import build_index

        path = build_index(index, collection, vectors or checkpoint, nbits=nbits, overwrite=overwrite, nranks=ranks)
    about = json.loads((path / "metadata.json").read_text())
    passages = round(about["num_embeddings"] / about["avg_doclen"])
    stored = sum(file.stat().st_size for pattern in ("*.codes.pt", "*.residuals.pt") for file in path.glob(pattern))
    _report(
        as_json,
        {
            "index": str(path),
            "passages": passages,
            "vectors": about["num_embeddings"],
            "partitions": about["num_partitions"],
            "nbits": about["config"]["nbits"],
            "bytes_per_passage": round(stored / passages),
            "seconds": round(time.monotonic() - started, 1),
        },
    )


@app.command()
def plan(
    ctx: typer.Context,
    passages: Annotated[int, typer.Option(help="How many there are; MS MARCO: 8841823.", min=1, show_default=False)],
    k: Annotated[int | None, typer.Option(help="Vectors per passage; default: the checkpoint's, or 16.", min=1)] = None,
    dim: Annotated[int | None, typer.Option(help="Size of a vector; default: the checkpoint's, or 128.", min=1)] = None,
    nbits: Annotated[int | None, typer.Option(help="Bits per dimension; default: the checkpoint's, or 2.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint to time the encoding with.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs, one process each; default: those here.", min=0)] = None,
    index: Annotated[Path, typer.Option(help="Where the index will be: is there room?")] = Path(),
    as_json: Json = False,
) -> None:
    """Say what an index will take: disk, memory, hours on this machine, the limits it hits. Exit code 1 when it cannot be."""
    with _quiet(ctx):
        from .planning import make_plan

        planned = make_plan(passages, k, dim, nbits, checkpoint, gpus, index)
    print(json.dumps(planned.as_json()) if as_json else "\n".join(planned.lines()))
    if planned.refused:
        raise typer.Exit(1)


@app.command()
def search(
    ctx: typer.Context,
    index: Annotated[Path, typer.Argument(help="Index folder.", show_default=False)],
    queries: Annotated[list[str] | None, typer.Argument(help="Questions.", show_default=False)] = None,
    queries_file: Annotated[Path | None, typer.Option("--queries", help="A .tsv, a .jsonl or a BEIR folder.")] = None,
    k: Annotated[int, typer.Option("-k", help="Passages per query.")] = 10,
    checkpoint: Moved = None,
    collection: MovedTexts = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of the index first.")] = False,
    as_json: Json = False,
) -> None:
    """Search an index with ColBERT's own searcher."""
    from .collection import read_queries

    asked = dict(enumerate(queries)) if queries else (read_queries(queries_file) if queries_file else {})
    if not asked:
        raise UserError('nothing to search for: colbert-diffusion search INDEX "a question", or --queries FILE')
    with _quiet(ctx):
        from .seam.by_path import open_index

        searcher = open_index(index, checkpoint=checkpoint, collection=collection, verify=verify, verbose=1)
        found = [(query, *searcher.search(query, k=k)) for query in asked.values()]
    for query, pids, ranks, scores in found:
        topk = [
            {"rank": rank, "score": score, "pid": pid, "id": identifier, "text": searcher.collection[pid]}
            for pid, identifier, rank, score in zip(pids, searcher.ids(pids), ranks, scores, strict=True)
        ]
        if as_json:
            print(json.dumps({"query": query, "topk": topk}, ensure_ascii=False))
        else:
            from .tables import print_ranking

            print_ranking(query, topk)


@app.command()
def serve(
    ctx: typer.Context,
    indexes: Annotated[list[Path], typer.Argument(help="Index folders; their names name them.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for a free one.", min=0, max=65535)] = 8893,
    token_file: Annotated[Path | None, typer.Option(help="File with a bearer token that requests must carry.")] = None,
    cache: Annotated[int, typer.Option(help="Answers to keep for repeated queries.")] = 0,
    cors: Annotated[list[str] | None, typer.Option(help="Origin whose pages may call the API; may be repeated.")] = None,
    allow_reload: Annotated[bool, typer.Option("--allow-reload", help="POST /api/reload opens an index anew.")] = False,
    max_k: Annotated[int, typer.Option(help="Largest k that is answered.")] = 1000,
    checkpoint: Moved = None,
    collection: MovedTexts = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Name that browsers may call it by; may be repeated.")] = None,
) -> None:
    """Serve indexes over HTTP: /api/search for ColBERT's and DSPy's clients, a search page at /, the API at /docs."""
    with _quiet(ctx):
        from .serving.server import open_app, run

        opened = open_app(
            indexes,
            token_file=token_file,
            cache=cache,
            cors=cors or (),
            allow_reload=allow_reload,
            max_k=max_k,
            checkpoint=checkpoint,
            collection=collection,
            hosts=(host, *(allow_host or ())),
        )
    run(opened, host, port)


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

    from .evaluation import read_benchmark
    from .evaluation.systems import Systems, measure_systems
    from .progress import note

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
        with _quiet(ctx):
            report, about = measure_systems(benchmark, systems, folder)
        if as_json:
            comparisons = [asdict(comparison) for comparison in report.comparisons]
            print(json.dumps({**about, "means": report.means, "comparisons": comparisons}, ensure_ascii=False))
        else:
            from .tables import print_measures

            print_measures(f"{benchmark.name}: {len(benchmark.documents)} passages, {len(benchmark.queries)} queries", report)


@app.command()
def verify(
    index: Annotated[Path, typer.Argument(help="Index folder.", show_default=False)],
    collection: MovedTexts = None,
    as_json: Json = False,
) -> None:
    """Hash every file of an index against its manifest; exit code 1 when one differs."""
    from .seam.opening import verify as differences

    found = differences(index, collection)
    if as_json:
        print(json.dumps({"index": str(index), "differences": found}))
    else:
        print("\n".join(found) if found else f"{index}: every file is as it was written")
    if found:
        raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Backbone, released DiffRetriever or nested checkpoint: hub id or folder.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write.", show_default=False)],
    dim: Annotated[int | None, typer.Option(help="Size of the vectors; default 128, or a nested checkpoint's own.")] = None,
    fit_on: Annotated[Path | None, typer.Option(help="Passages to fit the projection on: .tsv, .jsonl or BEIR folder.")] = None,
    projection_of: Annotated[str | None, typer.Option(help="Take this checkpoint's projection instead of fitting one.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Where a release's base is, if not where its adapter says.")] = None,
    family: Annotated[str | None, typer.Option(help="Backbone family, where its model_type does not tell.")] = None,
    readout: Annotated[str, typer.Option(help="masked, mean, last or tokens (bare backbones).")] = "masked",
    k_query: Annotated[int | None, typer.Option(help="Vectors per query (backbones: 4; nested checkpoints).")] = None,
    k_passage: Annotated[int | None, typer.Option(help="Vectors per passage (backbones: 16; nested checkpoints).")] = None,
    mask_position: Annotated[int | None, typer.Option(help="Position of the first mask, whatever the text's length.")] = None,
    merge_above: Annotated[float | None, typer.Option(help="Merge passage vectors closer than this cosine.")] = None,
    nbits: Annotated[int | None, typer.Option(help="Bits per dimension of its indexes, unless they say otherwise.")] = None,
    query_max_length: Annotated[int | None, typer.Option(help="Tokens of a query with its prompt (bare backbones).")] = None,
    passage_max_length: Annotated[int | None, typer.Option(help="Tokens of a passage with its prompt.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSON with prefix, suffix, tail for query and passage.")] = None,
) -> None:
    """Make a checkpoint that ColBERT can index: of a backbone, a released DiffRetriever one, or a nested one's prefix."""
    from .collection import read_collection
    from .conversion import convert as run
    from .files import read_json

    checkpoint = run(
        source,
        out,
        dim=dim,
        fit_on=read_collection(fit_on) if fit_on else (),
        projection_of=projection_of,
        backbone=backbone,
        family=family,
        readout=readout,
        k_query=k_query,
        k_passage=k_passage,
        mask_position=mask_position,
        merge_above=merge_above,
        nbits=nbits,
        query_max_length=query_max_length,
        passage_max_length=passage_max_length,
        prompts=read_json(prompts) if prompts else None,
        show_progress_bar=True,
    )
    typer.echo(f"{checkpoint}\nnext: colbert-diffusion index TEXTS INDEX --checkpoint {out}")


@app.command()
def train(
    start: Annotated[str, typer.Argument(help="Checkpoint to begin from; `convert` makes one of a backbone.")],
    examples: Annotated[list[Path], typer.Argument(help="Pairs, Tevatron JSONL or ColBERT triples; .gz too.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write; the run lives in OUT.training.")],
    preset: Annotated[str, typer.Option(help="small, or paper: DiffRetriever's recipe.")] = "small",
    recipe: Annotated[Path | None, typer.Option(help="JSON file of recipe fields, over the preset's.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the recipe, over both.")] = None,
    dev: Annotated[list[str] | None, typer.Option(help="Collection to evaluate on; the best weights are kept.")] = None,
    queries: Annotated[Path | None, typer.Option(help="TSV of queries, where the examples hold ids.")] = None,
    collection: Annotated[Path | None, typer.Option(help="TSV of passages, where the examples hold ids.")] = None,
    mine: Annotated[bool, typer.Option(help="First mine the recipe's hard negatives with the start checkpoint.")] = False,
) -> None:
    """Train a checkpoint. Interrupted, the same command goes on from its last saved step. torchrun starts several processes."""
    from .training.recipe import read_recipe

    chosen = read_recipe(preset, recipe, dict(_setting(text) for text in settings or []))

    from .training.trainer import Data
    from .training.trainer import train as run

    data = Data(examples, queries, collection)
    if mine:
        data = data.mined(start, chosen, out.with_name(out.name + ".mining"))
    command = " ".join(["colbert-diffusion", *sys.argv[1:]])
    run(start, data, out, chosen, dev=dev or (), command=command, show_progress_bar=True)
    typer.echo(f"{out}\nnext: colbert-diffusion evaluate COLLECTION --checkpoint {out}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: packages, GPU, compiler, ColBERT unedited, disk. Exit code 1 when a check fails."""
    from dataclasses import asdict

    from .doctor import diagnose

    findings = diagnose()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for found in findings:
            print(f"{found.status:4}  {found.name:12}  {found.detail}" + (f" -> {found.remedy}" if found.remedy else ""))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected FIELD=VALUE, for example --set steps=500")
    return name, value


def _read_skipping(texts: Path) -> Sequence[str]:
    """The readable passages; the other lines go to a file, each behind its number and the reason."""
    from .collection import Skipped, read_collection
    from .files import written_aside

    skipped: list[Skipped] = []
    passages = read_collection(texts, skipped)
    if skipped:
        out = texts.with_name(texts.name + ".skipped")
        with written_aside(out) as aside, aside.open("wb") as file:
            for line, reason, raw in skipped:
                file.write(f"{line}\t{reason}\t".encode() + raw.rstrip(b"\n") + b"\n")
        typer.echo(f"{len(skipped)} lines left out, see {out}; pids count the {len(passages)} that are left", err=True)
    return passages


def _report(as_json: bool, facts: dict[str, Any]) -> None:
    print(json.dumps(facts) if as_json else "  ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(f"{text!r:.40}: expected whole numbers separated by commas, e.g. 1,4,16") from error


@contextmanager
def _quiet(ctx: typer.Context) -> Iterator[None]:
    """ColBERT, faiss and the compiler talk a lot; --debug lets them."""
    from .progress import only_our_output

    if ctx.find_root().params.get("debug"):
        yield
        return
    with only_our_output(Path(os.devnull)):
        yield


def _show_warning(otherwise: Callable[..., None], message: Warning, category: type[Warning], *about: Any) -> None:
    """Ours in a line, wherever stderr is meanwhile."""
    from .progress import note

    if issubclass(category, CutTextWarning):
        note(f"warning: {message}")
    else:
        otherwise(message, category, *about)


def main() -> None:
    """Entry point of `colbert-diffusion`: errors are one line and exit code 2, a traceback only with --debug."""
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    try:
        app(prog_name="colbert-diffusion")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        expected = isinstance(error, UserError | OSError)
        text = str(error) if expected else f"unexpected {type(error).__name__}: {error}; --debug shows the traceback"
        typer.echo("error: " + " ".join(text.split()), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
