"""A comparison for people and papers: Markdown, LaTeX, JSON, and what systems cost against what they are worth."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

from ..common.files import write_json, written_aside
from ..common.optional import extra, need
from .comparing import Compared, Cost

MARKERS = "osD^vP*Xd<>ph"  # of a system; a mode is a filling: what is told apart needs no colour
FILLINGS = {"dense": "full", "lexical": "none", "hybrid": "left"}
SIGNIFICANT = 0.05


def require_plotting() -> None:
    """Raises MissingPackageError where the plots could not be drawn at the end."""
    need("matplotlib", "drawing a comparison", extra("train"))


def table_of(found: Compared, measures: Sequence[str]) -> list[list[str]]:
    """Head and rows: means, marked where they differ from the baseline's (p below .05, Holm), and costs."""
    baseline = next(iter(found.report.means))
    head = ["", *measures, "bytes", "encode p50 / p95", "search p50 / p95"]
    rows = [head]
    for name, means in found.report.means.items():
        random = name in found.random
        cells = []
        for measure in measures:
            p = found.adjusted.get(name, {}).get(measure, 1.0)
            mark = "" if name == baseline or p >= SIGNIFICANT else "*"
            cells.append("-" if random else f"{means[measure]:.3f}{mark}".removeprefix("0"))
        cost = found.costs.get(name)
        cells += ["-", "-", "-"] if cost is None else _costs(cost)
        rows.append([name, *cells])
    return rows


def _costs(cost: Cost) -> list[str]:
    return [
        f"{cost.bytes:,.0f}",
        f"{cost.encode_p50:.1f} / {cost.encode_p95:.1f} ms",
        f"{cost.search_p50:.1f} / {cost.search_p95:.1f} ms",
    ]


def means_table(found: Sequence[Compared], measure: str) -> list[list[str]]:
    """A column for each collection and their mean, of one measure; rows that are in all of them."""
    everywhere = (row for row in found[0].report.means if all(row in one.report.means for one in found))
    shared = [row for row in everywhere if row not in found[0].random]
    rows = [[measure, *(one.collection for one in found), "mean"]]
    for row in shared:
        values = [one.report.means[row][measure] for one in found]
        rows.append([row, *(f"{value:.3f}".removeprefix("0") for value in (*values, sum(values) / len(values)))])
    return rows


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def as_latex(rows: Sequence[Sequence[str]]) -> str:
    """A tabular for the booktabs package."""
    escaped = [[_tex(cell) for cell in row] for row in rows]
    head, *body = [" & ".join(row) + r" \\" for row in escaped]
    columns = "l" + "r" * (len(rows[0]) - 1)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    )


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "*": r"$^*$", "~": r"\~{}", "^": r"\^{}"} | {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)


def as_object(found: Compared) -> dict[str, Any]:
    content = asdict(found)
    return {**content, "random": sorted(found.random)}


def write_comparison(found: Sequence[Compared], measures: Sequence[str], out: Path) -> str:
    """Write compare.json, .md, .tex and the plots into OUT; the Markdown."""
    tables = [
        (f"{one.collection}: {one.passages:,} passages, {one.queries:,} queries", table_of(one, measures)) for one in found
    ]
    if len(found) > 1:
        tables.append(("all collections", means_table(found, measures[0])))
    baseline = next(iter(found[0].report.means))
    note = f"\\* differs from {baseline}: paired bootstrap, p < {SIGNIFICANT:g} after Holm's correction for the number of rows"
    markdown = "\n\n".join([*(f"## {title}\n\n{as_markdown(rows)}" for title, rows in tables), note]) + "\n"
    latex = "\n\n".join(f"% {title}\n{as_latex(rows)}" for title, rows in tables) + "\n"
    for name, text in (("compare.md", markdown), ("compare.tex", latex)):
        with written_aside(out / name) as aside:
            aside.write_text(text, encoding="utf-8")
    write_json(out / "compare.json", {"collections": [as_object(one) for one in found]})
    draw(found, measures[0], out)
    return markdown


def draw(found: Sequence[Compared], measure: str, out: Path) -> None:
    """latency and bytes, as PNG and SVG: a panel for each collection, a marker for each system, a filling for each mode."""
    from matplotlib.figure import Figure

    for name, label in (("latency", "ms to encode and search for a query, p50"), ("bytes", "bytes a passage")):
        figure, named = Figure(figsize=(3.5 + 5 * len(found), 4.5), layout="constrained"), dict[str, Any]()
        for axes, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            _panel(axes, one, measure, name)
            axes.set(title=one.collection, xlabel=label, ylabel=measure, xscale="log")
            handles, labels = axes.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
        figure.legend(named.values(), named.keys(), loc="outside right center", fontsize="small")  # it would cover points
        for kind in ("png", "svg"):
            with written_aside(out / f"{name}.{kind}") as aside:
                figure.savefig(aside, format=kind)


def _panel(axes: Any, found: Compared, measure: str, name: str) -> None:
    systems = dict(zip(dict.fromkeys(row.rpartition(" ")[0] for row in found.costs), cycle(MARKERS), strict=False))
    for row, cost in found.costs.items():
        system, _, mode = row.rpartition(" ")
        if row in found.random and name == "bytes":
            continue
        x = cost.bytes if name == "bytes" else cost.encode_p50 + cost.search_p50
        y = 0.0 if row in found.random else found.report.means[row][measure]
        style = {"marker": systems[system], "fillstyle": FILLINGS[mode], "color": "black", "linestyle": ""}
        axes.plot([x], [y], label=f"{row} (random weights)" if row in found.random else row, **style)
    if found.report.means and (baseline := next(iter(found.report.means))) not in found.costs:
        axes.axhline(found.report.means[baseline][measure], color="grey", linestyle=":", label=baseline)
