"""What the command line prints for people: rankings and measures. Knows nothing about how they were made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..evaluation import Comparison, Report
    from ..evaluation.grid import Chosen, Pair
    from ..evaluation.tuning import Tuned

SHOWN = 12  # points of a curve


def print_ranking(query: str, topk: list[dict[str, Any]]) -> None:
    table = Table(title=literal(query), title_justify="left", title_style="bold", expand=True)
    for name, justify in (("rank", "right"), ("score", "right"), ("id", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("text", ratio=1)
    for row in topk:
        text = row["text"] if len(row["text"]) <= 240 else row["text"][:239] + "…"
        table.add_row(str(row["rank"]), f"{row['score']:.3f}", literal(row["id"]), literal(text))
    Console().print(table)


def literal(text: str) -> Text:
    """As it is: no markup, and control characters shown instead of sent to the terminal."""

    def shown(character: str) -> str:
        if character.isprintable() or character in "\u200c\u200d":  # the two that join and part letters
            return character
        return " " if character.isspace() else character.encode("unicode_escape").decode()

    return Text("".join(map(shown, text)))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1)


def print_measures(title: str, report: "Report") -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("system", no_wrap=True)
    against = {(found.system, found.measure): found for found in report.comparisons}
    for name in next(iter(report.means.values())):
        table.add_column(name, justify="right", no_wrap=True)
    for system, means in report.means.items():
        cells = []
        for name, mean in means.items():
            found = against.get((system, name))
            beside = f" {_signed(found.difference)}\n({_signed(found.low)} {_signed(found.high)})" if found else ""
            cells.append(f"{mean:.4f}{beside}")
        table.add_row(system, *cells)
    if report.comparisons:
        table.caption = f"beside and below: difference to {report.comparisons[0].baseline}, its 95 % interval"
    console = Console()
    if not console.is_terminal:  # a file has room
        console.width = max(console.width, Console(width=1000).measure(table).maximum)
    console.print(table)


def _gain(found: "Comparison") -> str:
    return f"{_signed(found.difference)} ({_signed(found.low)} {_signed(found.high)})"


def choice_lines(chosen: "Chosen") -> list[str]:
    """Grids as tables, k passage from left to right."""
    how = "prefixes of one encoding" if chosen.protocol == "prefixes" else "encoded for each k"
    spread = ", ".join(f"{pair} {count}" for pair, count in chosen.halves)
    lines = [f"{chosen.measure} of {chosen.queries} queries of {chosen.collection}, exact MaxSim, {how}"]
    lines += _grid_lines(chosen.grid, chosen.chosen)
    lines += [
        f"best {chosen.best}; chosen {chosen.chosen}, the cheapest within {chosen.tolerance:g}: {_gain(chosen.loss)}, 95 %",
        f"chosen on one half, measured on the other: {_gain(chosen.regret)} to what is best there; chosen: {spread}",
    ]
    for other in chosen.transfers:
        lines += [f"{other.collection}, {other.queries} queries", *_grid_lines(other.grid, chosen.chosen)]
        lines.append(f"best {other.best}; {chosen.chosen} as chosen on {chosen.collection}: {_gain(other.loss)}")
    return lines


def _grid_lines(grid: Sequence[tuple["Pair", float]], chosen: "Pair") -> list[str]:
    columns = sorted({pair.k_passage for pair, _ in grid})
    rows: dict[int, list[str]] = {}
    for pair, mean in grid:
        rows.setdefault(pair.k_query, []).append(f"{mean:8.4f}{'*' if pair == chosen else ' '}")
    head = "k query / passage" + "".join(f"{k:8d} " for k in columns)
    return [head.rstrip(), *(f"{k:17d}{''.join(cells)}".rstrip() for k, cells in rows.items())]


def tuning_lines(tuned: "Tuned") -> list[str]:
    def span(least: float, most: float) -> str:
        return f"{least:g}" if least == most else f"{least:g} to {most:g}"

    curve = dict(tuned.curve)
    shown = sorted({*list(curve)[:: max(1, len(curve) // (SHOWN - 2))], list(curve)[-1], tuned.weight})
    better = tuned.over_better.baseline
    beside = f", {_gain(tuned.over_better)} to {better}" if better != "dense" else ""
    gaps = [f"{tuned.queries_left_out} queries without a positive judgement left out"] if tuned.queries_left_out else []
    gaps += [f"{tuned.judged_passages_missing} judged passages not in the index"] if tuned.judged_passages_missing else []
    if tuned.written:
        outcome = f"written into {tuned.index}: searched by both from now on, scaled={tuned.weight:g}"
    elif tuned.helps:
        outcome = "not written, as asked"
    else:
        outcome = "not written: on queries that did not choose the weight nothing is gained over dense"
    return [
        f"{tuned.measure} of {tuned.queries} queries, {tuned.depth} passages of each side"
        + "".join(f"; {gap}" for gap in gaps),
        f"dense {tuned.dense:.4f}  lexical {tuned.lexical:.4f}  both, by the weight of the words:",
        *(f"  {weight:<5g} {curve[weight]:.4f}{'  best' if weight == tuned.weight else ''}" for weight in shown),
        f"best weight {tuned.weight:g}: {_gain(tuned.over_dense)} to dense{beside}, with 95 % intervals",
        f"as good within noise: {span(*tuned.plateau)}",
        f"chosen on one half, measured on the other: {_gain(tuned.validated)} to dense; chosen: {span(*tuned.chosen)}",
        outcome,
    ]
