"""What the command line prints for people: rankings and measures. Knows nothing about how they were made."""

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..evaluation import Report


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


def print_measures(title: str, report: "Report") -> None:
    def signed(value: float) -> str:
        return f"{value:+.3f}".replace("0.", ".", 1)

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("system", no_wrap=True)
    against = {(found.system, found.measure): found for found in report.comparisons}
    for name in next(iter(report.means.values())):
        table.add_column(name, justify="right", no_wrap=True)
    for system, means in report.means.items():
        cells = []
        for name, mean in means.items():
            found = against.get((system, name))
            beside = f" {signed(found.difference)}\n({signed(found.low)} {signed(found.high)})" if found else ""
            cells.append(f"{mean:.4f}{beside}")
        table.add_row(system, *cells)
    if report.comparisons:
        table.caption = f"beside and below: difference to {report.comparisons[0].baseline}, its 95 % interval"
    console = Console()
    if not console.is_terminal:  # a file has room
        console.width = max(console.width, Console(width=1000).measure(table).maximum)
    console.print(table)
