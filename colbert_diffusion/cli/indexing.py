"""The commands around an index: encode, index, plan, search, serve, verify, doctor."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.errors import UserError
from .app import (
    Checkpoint,
    Json,
    Moved,
    MovedTexts,
    RayAddress,
    RayCpus,
    RayGpus,
    Texts,
    app,
    parse_fusion,
    quiet,
    ray_cluster,
    report,
)


@app.command()
def encode(
    ctx: typer.Context,
    texts: Texts,
    out: Path,
    checkpoint: Checkpoint = None,
    lexical: Annotated[
        bool, typer.Option("--lexical", help="Keep the predicted words, for `index --lexical predicted`.")
    ] = False,
    ray: RayAddress = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = 0,
    as_json: Json = False,
) -> None:
    """Encode passages into vector files, to index many times. Interrupted, it goes on where it stopped."""
    from ..encoding.checkpoint import DiffusionCheckpoint, default_checkpoint
    from ..encoding.identity import identify
    from ..encoding.vectors import encode_to
    from ..texts.collection import read_collection

    passages = read_collection(texts)
    started = time.monotonic()
    identity = identify(checkpoint or default_checkpoint())
    load = partial(DiffusionCheckpoint, identity.path)
    with ray_cluster(ray, ray_cpus, ray_gpus) as cluster:
        encode_to(out, identity, load, passages, lexical=lexical, cluster=cluster, show_progress_bar=True)
    report(as_json, {"vectors": str(out), "passages": len(passages), "seconds": round(time.monotonic() - started, 1)})


@app.command()
def index(
    ctx: typer.Context,
    texts: Texts,
    index: Annotated[Path, typer.Argument(help="Folder to build the index in.", show_default=False)],
    checkpoint: Checkpoint = None,
    vectors: Annotated[Path | None, typer.Option(help="Vector files made by `encode` from the same texts.")] = None,
    nbits: Annotated[int | None, typer.Option(help="Bits per dimension: 1, 2, 4 or 8; default: the checkpoint's.")] = None,
    lexical: Annotated[str | None, typer.Option(help="Words beside the vectors: bm25, or predicted by the model.")] = None,
    k1: Annotated[float | None, typer.Option(help="BM25's k1; default .4.")] = None,
    b: Annotated[float | None, typer.Option(help="BM25's b; default .6.")] = None,
    ranks: Annotated[int, typer.Option(help="Processes that share the work; with GPUs, one each.", min=1)] = 1,
    ray: RayAddress = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an index that is there, once the new one is complete.")] = False,
    skip_bad: Annotated[bool, typer.Option(help="Leave malformed lines out and write them to TEXTS.skipped.")] = False,
    as_json: Json = False,
) -> None:
    """Build an index with ColBERT's own indexer. Interrupted, the same command goes on where it stopped."""
    if checkpoint is not None and vectors is not None:
        raise UserError("--checkpoint and --vectors exclude each other: vector files name the checkpoint that made them")
    words = _lexical(lexical, k1, b)
    started = time.monotonic()
    collection = _read_skipping(texts) if skip_bad else str(texts)
    with quiet(ctx), ray_cluster(ray, ray_cpus, ray_gpus) as cluster:
        from ..index.by_path import build_index

        made_by = vectors or checkpoint
        path = build_index(
            index, collection, made_by, nbits=nbits, lexical=words, overwrite=overwrite, nranks=ranks, cluster=cluster
        )
    from ..index.layout import stored_bytes

    about = json.loads((path / "metadata.json").read_text())
    passages = round(about["num_embeddings"] / about["avg_doclen"])
    stored, worded = stored_bytes(path)
    report(
        as_json,
        {
            "index": str(path),
            "passages": passages,
            "vectors": about["num_embeddings"],
            "partitions": about["num_partitions"],
            "nbits": about["config"]["nbits"],
            "bytes_per_passage": round(stored / passages),
            **({"bytes_of_words_per_passage": round(worded / passages)} if worded else {}),
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
    lexical: Annotated[str | None, typer.Option(help="Words that it will have: bm25 or predicted.")] = None,
    as_json: Json = False,
) -> None:
    """Say what an index will take: disk, memory, hours on this machine, the limits it hits. Exit code 1 when it cannot be."""
    with quiet(ctx):
        from ..index.planning import make_plan

        planned = make_plan(passages, k, dim, nbits, checkpoint, gpus, index, lexical)  # type: ignore[arg-type]
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
    mode: Annotated[str | None, typer.Option(help="dense, lexical or hybrid; default: hybrid if a weight was tuned.")] = None,
    fusion: Annotated[str | None, typer.Option(help="scaled, minmax or rrf, with =WEIGHT of the words: scaled=0.3.")] = None,
    checkpoint: Moved = None,
    collection: MovedTexts = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of the index first.")] = False,
    ray: RayAddress = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = 0,
    as_json: Json = False,
) -> None:
    """Search an index with ColBERT's own searcher; many queries by its replicas on the machines of a cluster."""
    from ..texts.collection import read_queries

    asked = dict(enumerate(queries)) if queries else (read_queries(queries_file) if queries_file else {})
    if not asked:
        raise UserError('nothing to search for: colbert-diffusion search INDEX "a question", or --queries FILE')
    with quiet(ctx), ray_cluster(ray, ray_cpus, ray_gpus) as cluster:
        from ..index.by_path import open_index

        rule = None if fusion is None else parse_fusion(fusion)
        searcher = open_index(index, checkpoint=checkpoint, collection=collection, verify=verify, verbose=1)
        if cluster is None:
            search_one = partial(searcher.search, k=k, mode=mode, fusion=rule)
            found = {qid: list(zip(*search_one(query), strict=True)) for qid, query in asked.items()}
        else:
            found = searcher.search_all(asked, k, mode=mode, fusion=rule, cluster=cluster).todict()
    for qid, query in asked.items():
        identifiers = searcher.ids([pid for pid, _, _ in found[qid]])
        topk = [
            {"rank": rank, "score": score, "pid": pid, "id": identifier, "text": searcher.collection[pid]}
            for (pid, rank, score), identifier in zip(found[qid], identifiers, strict=True)
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
    ray: RayAddress = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = 0,
    replicas: Annotated[str, typer.Option(help="With --ray, how many: 2, or 2-8 as the requests want it.")] = "1",
    parts: Annotated[int, typer.Option(help="With --ray, divide the vectors among so many machines; 0: each has all.")] = 0,
) -> None:
    """Serve indexes over HTTP: /api/search for ColBERT's and DSPy's clients, a search page at /, the API at /docs.

    With --ray on a cluster that runs, this returns when its replicas serve. The same command again, after an index was built
    anew, has them take it over.
    """
    how: dict[str, Any] = {
        "cache": cache,
        "cors": tuple(cors or ()),
        "max_k": max_k,
        "checkpoint": checkpoint,
        "collection": collection,
    }
    how |= {"token_file": token_file, "hosts": (host, *(allow_host or ()))}
    if ray is not None:
        if allow_reload:
            raise UserError("--allow-reload would reach one replica of several: leave it out and run the same command again")
        size = (_replicas(replicas), ray_cpus, ray_gpus, parts)
        _serve_on(ray, indexes, how, size, host, port)
        return
    if replicas != "1" or parts:
        raise UserError("--replicas and --parts belong to --ray")
    with quiet(ctx):
        from ..serving.server import open_app, run

        opened = open_app(indexes, allow_reload=allow_reload, **how)
    run(opened, host, port)


def _serve_on(address: str, indexes: list[Path], how: dict[str, Any], size: tuple[Any, ...], host: str, port: int) -> None:
    from ..common.progress import note
    from ..distributed.deploying import Size, deploy, stay
    from ..distributed.replicas import Served
    from ..index.opening import index_metadata, index_state

    folders = tuple(path.absolute() for path in indexes)
    for folder in folders:
        index_metadata(folder)  # says when there is no index
    served = Served(folders, tuple(map(index_state, folders)), how, threads=size[1])
    with ray_cluster(address, size[1], size[2]):
        note(f"serving on {deploy(served, Size(*size), host, port)}")
        if address == "local":
            stay()


def _replicas(text: str) -> tuple[int, int]:
    least, dash, most = text.partition("-")
    try:
        return int(least), int(most if dash else least)
    except ValueError as error:
        raise UserError(f"--replicas {text!r:.40}: expected a number, or two as in 2-8") from error


@app.command()
def verify(
    index: Annotated[Path, typer.Argument(help="Index folder.", show_default=False)],
    collection: MovedTexts = None,
    as_json: Json = False,
) -> None:
    """Hash every file of an index against its manifest; exit code 1 when one differs."""
    from ..index.opening import verify as differences

    found = differences(index, collection)
    if as_json:
        print(json.dumps({"index": str(index), "differences": found}))
    else:
        print("\n".join(found) if found else f"{index}: every file is as it was written")
    if found:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: packages, GPU, compiler, ColBERT unedited, disk. Exit code 1 when a check fails."""
    from dataclasses import asdict

    from ..doctor import diagnose

    findings = diagnose()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for found in findings:
            print(f"{found.status:4}  {found.name:12}  {found.detail}" + (f" -> {found.remedy}" if found.remedy else ""))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _lexical(source: str | None, k1: float | None, b: float | None) -> Any:
    """What `Indexer.index(lexical=)` takes."""
    from ..index.lexical import BM25

    settings = {name: value for name, value in (("k1", k1), ("b", b)) if value is not None}
    if settings and source != "bm25":
        raise UserError(f"--{' and --'.join(settings)} belong to --lexical bm25")
    return BM25(**settings) if settings else source


def _read_skipping(texts: Path) -> Sequence[str]:
    """The readable passages; the other lines go to a file, each behind its number and the reason."""
    from ..common.files import written_aside
    from ..texts.collection import Skipped, read_collection

    skipped: list[Skipped] = []
    passages = read_collection(texts, skipped)
    if skipped:
        out = texts.with_name(texts.name + ".skipped")
        with written_aside(out) as aside, aside.open("wb") as file:
            for line, reason, raw in skipped:
                file.write(f"{line}\t{reason}\t".encode() + raw.rstrip(b"\n") + b"\n")
        typer.echo(f"{len(skipped)} lines left out, see {out}; pids count the {len(passages)} that are left", err=True)
    return passages
