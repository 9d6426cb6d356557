"""The commands that make checkpoints: convert, train."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..common.errors import UserError
from .app import app


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Backbone, released DiffRetriever or nested checkpoint: hub id or folder.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write.", show_default=False)],
    dim: Annotated[int | None, typer.Option(help="Size of the vectors; default 128, or a nested checkpoint's own.")] = None,
    fit_on: Annotated[Path | None, typer.Option(help="Passages to fit the projection on: .tsv, .jsonl or BEIR folder.")] = None,
    projection_of: Annotated[str | None, typer.Option(help="Take this checkpoint's projection instead of fitting one.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Where a release's base is, if not where its adapter says.")] = None,
    family: Annotated[str | None, typer.Option(help="Backbone family, where its model_type does not tell.")] = None,
    readout: Annotated[str, typer.Option(help="masked, mean, last, tokens or generated (bare backbones).")] = "masked",
    k_query: Annotated[int | None, typer.Option(help="Vectors per query (backbones: 4; nested checkpoints).")] = None,
    k_passage: Annotated[int | None, typer.Option(help="Vectors per passage (backbones: 16; nested checkpoints).")] = None,
    mask_position: Annotated[int | None, typer.Option(help="Position of the first mask, whatever the text's length.")] = None,
    merge_above: Annotated[float | None, typer.Option(help="Merge passage vectors closer than this cosine.")] = None,
    cover_above: Annotated[float | None, typer.Option(help="Keep the fewest that all have this mean cosine with.")] = None,
    nbits: Annotated[int | None, typer.Option(help="Bits per dimension of its indexes, unless they say otherwise.")] = None,
    word_weight: Annotated[float | None, typer.Option(help="Words' weight in its indexes, searched by both then.")] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Rotate the vectors: an index keeps them better.")] = False,
    query_max_length: Annotated[int | None, typer.Option(help="Tokens of a query with its prompt (bare backbones).")] = None,
    passage_max_length: Annotated[int | None, typer.Option(help="Tokens of a passage with its prompt.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSON with prefix, suffix, tail for query and passage.")] = None,
) -> None:
    """Make a checkpoint that ColBERT can index: of a backbone, a released DiffRetriever one, or a nested one's prefix."""
    from ..common.files import read_json
    from ..encoding.conversion import convert as run
    from ..texts.collection import read_collection

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
        cover_above=cover_above,
        nbits=nbits,
        word_weight=word_weight,
        rotate=rotate,
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
    from ..training.recipe import read_recipe

    chosen = read_recipe(preset, recipe, dict(_setting(text) for text in settings or []))

    from ..training.trainer import Data
    from ..training.trainer import train as run

    data = Data(examples, queries, collection)
    if mine:
        data = data.mined(start, chosen, out.with_name(out.name + ".mining"))
    command = " ".join(["colbert-diffusion", *sys.argv[1:]])
    run(start, data, out, chosen, dev=dev or (), command=command, show_progress_bar=True)
    typer.echo(f"{out}\nnext: colbert-diffusion evaluate COLLECTION --checkpoint {out}")


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected FIELD=VALUE, for example --set steps=500")
    return name, value
