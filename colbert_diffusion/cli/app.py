"""What the commands share: the application, their common arguments, quiet, and how errors end. Parses nothing of its own."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.errors import CutTextWarning, UserError

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
RayAddress = Annotated[
    str | None, typer.Option("--ray", help="Work on a Ray cluster: local, auto (the one that runs here) or HOST:PORT.")
]
RayCpus = Annotated[int, typer.Option(help="CPUs, and threads, of a worker.")]
RayGpus = Annotated[float, typer.Option(help="GPUs of a worker.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option(help="Show tracebacks and ColBERT's own output.")] = False) -> None:
    """Diffusion language models as retrievers, in ColBERT's own index."""


def report(as_json: bool, facts: dict[str, Any]) -> None:
    print(json.dumps(facts) if as_json else "  ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))


def parse_fusion(text: str) -> Any:
    """RULE or RULE=WEIGHT."""
    from ..index.fusion import Fusion

    rule, equals, weight = text.partition("=")
    try:
        given = {"weight": float(weight)} if equals else {}
    except ValueError as error:
        raise UserError(f"--fusion {text!r:.40}: expected a rule and a weight, for example scaled=0.3") from error
    return Fusion(rule, **given)  # type: ignore[arg-type]


def ray_cluster(address: str | None, cpus: int, gpus: float) -> AbstractContextManager[Any]:
    """What --ray, --ray-cpus and --ray-gpus ask for; without an address None."""
    if address is None:
        return nullcontext()
    from ..distributed import RayCluster

    return RayCluster(address, cpus=cpus, gpus=gpus)


@contextmanager
def quiet(ctx: typer.Context) -> Iterator[None]:
    """ColBERT, faiss and the compiler talk a lot; --debug lets them."""
    from ..common.progress import only_our_output

    if ctx.find_root().params.get("debug"):
        yield
        return
    with only_our_output(Path(os.devnull)):
        yield


def _show_warning(otherwise: Callable[..., None], message: Warning, category: type[Warning], *about: Any) -> None:
    """Ours in a line, wherever stderr is meanwhile."""
    from ..common.progress import note

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
