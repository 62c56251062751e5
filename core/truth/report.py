"""The truth benchmark for people: its tables, and its figure of some counterfactuals beside the true ones, and of
quality against cost.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, ScalarFormatter

from dime.core.metrics.report import Report
from dime.core.table import cell, listed, markdown_table
from dime.core.truth.benchmark import INPUT
from dime.core.truth.cases import Case
from dime.core.truth.rows import EVALUATIONS

COLUMN_INCHES, COST_INCHES = 1.15, 3.6


def markdown(report: Report, tables: Mapping[str, Sequence[str]]) -> str:
    """One table under each title, a column for each experiment that has any of its rows; then what limits the numbers.

    tables: title -> rows. A cell holds value [95 % interval], and (images) where they are not as many as the first row
    of the table says.
    """
    lines: list[str] = []
    for title, rows in tables.items():
        columns = {name: found for name, found in report.measurements.items() if any(row in found for row in rows)}
        images = {name: max(found[row].n for row in rows if row in found) for name, found in columns.items()}
        table = [["images", *images.values()]]
        for row in rows:
            found = {name: measured.get(row) for name, measured in columns.items()}
            cells = [m and cell(m.value, m.interval, m.n, _number, images[name]) for name, m in found.items()]
            table += [[row, *cells]] if any(cells) else []
        lines += [f"**{title}**", "", markdown_table(["", *columns], table)] if columns else []
    lines.append("Cells: value [95 % bootstrap interval over images] (images, where not all).")
    lines += listed("Not computed:", report.missing) + listed("Left out:", report.caveats)
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Two decimals, fewer for large numbers; no minus before a zero."""
    text = f"{value:.{2 if abs(value) < 10 else 1}f}"
    return text.lstrip("-") if not float(text) else text


def truth_plot(examples: Mapping[str, Sequence[Case | None]], report: Report, against_cost: Sequence[str]) -> Figure:
    """The figure.

    examples: experiment -> the same images, None where it does not have one; the first one's has them all.
    against_cost: rows to draw over the evaluations that they cost, where these are known.
    """
    costs = against_cost if any(EVALUATIONS in found for found in report.measurements.values()) else []
    heights = [COLUMN_INCHES * (3 + len(examples)) + 0.4, *[COST_INCHES] * bool(costs)]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    _draw_examples(parts[0], examples)
    for axes, row in zip(parts[-1].subplots(1, len(costs)) if costs else (), costs, strict=True):
        _draw_cost(axes, row, report)
    return figure


def _draw_examples(part: SubFigure, examples: Mapping[str, Sequence[Case | None]]) -> None:
    """One column for each image; rows: input, true counterfactual, region, then the experiments."""
    first = [case for case in next(iter(examples.values())) if case]
    rows = {
        "input": [case.x for case in first],
        "true\ncounterfactual": [case.truth for case in first],
        "where it\nmay change": [np.where(case.region[..., None], case.truth, 255) for case in first],
        **{name: [case and case.cf for case in cases] for name, cases in examples.items()},
    }
    grid = part.subplots(len(rows), len(first), squeeze=False)
    for (title, pictures), line in zip(rows.items(), grid, strict=True):
        for picture, axes in zip(pictures, line, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if picture is not None:
                axes.imshow(picture)
        line[0].set_ylabel(title.replace("/", "/\n"), rotation=0, ha="right", va="center", fontsize=8)


def _draw_cost(axes: Axes, row: str, report: Report) -> None:
    """A row over the evaluations that it cost, a dot for each experiment; a line for the input itself."""
    for number, (column, found) in enumerate(report.measurements.items()):
        if EVALUATIONS in found and row in found:
            point = found[EVALUATIONS].value, found[row].value
            axes.plot(*point, "o", color=f"C{number}", ms=4)
            axes.annotate(column, point, xytext=(4, 3), textcoords="offset points", fontsize=7)
    if row in report.measurements[INPUT]:
        axes.axhline(report.measurements[INPUT][row].value, color="black", linewidth=0.5)
    axes.set(xscale="log", xlabel=f"U-Net {EVALUATIONS}; line: the input", ylabel=row)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.margins(x=0.15, y=0.15)
