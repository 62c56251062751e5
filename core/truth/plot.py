"""The figure of the truth benchmark: some counterfactuals beside the true ones, the table's rows as dots, and quality
against cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, ScalarFormatter

from dime.core.metrics.plots import png
from dime.core.metrics.report import Report
from dime.core.truth.benchmark import INPUT, TRUTH
from dime.core.truth.cases import Case
from dime.core.truth.cost import EVALUATIONS

COLUMN_INCHES = 1.15
REFERENCE_MARKERS = {TRUTH: "D", INPUT: "X"}


@dataclass(frozen=True)
class Panel:
    """Rows of the table that share an axis: their names, what the axis says, and its limits (None: as they fall)."""

    rows: Sequence[str]
    label: str
    limits: tuple[float, float] | None = None


def truth_plot(
    examples: Mapping[str, Sequence[Case | None]], report: Report, panels: Sequence[Panel], against_cost: Sequence[str]
) -> bytes:
    """The figure, as a PNG file.

    examples: experiment -> the same images, None where it does not have one; the first one's has them all.
    against_cost: rows that are drawn over the evaluations that they cost, where those are known.
    """
    measured = report.measurements
    present = [[row for row in panel.rows if any(row in found for found in measured.values())] for panel in panels]
    drawn = [(panel, rows) for panel, rows in zip(panels, present, strict=True) if rows]
    costs = against_cost if any(EVALUATIONS in found for found in measured.values()) else []
    panel_height = 0.9 + (0.1 + 0.06 * len(measured)) * max(len(rows) for _, rows in drawn)
    lines = [*(drawn[i : i + 2] for i in range(0, len(drawn), 2)), *([costs] if costs else [])]
    heights = [COLUMN_INCHES * (3 + len(examples)) + 0.4, *[panel_height] * len(lines)]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), height_ratios=heights)
    _draw_examples(parts[0], examples)
    for part, line in zip(parts[1:], lines, strict=True):
        for axes, item in zip(part.subplots(1, len(line), squeeze=False)[0], line, strict=True):
            _draw_cost(axes, item, report) if line is costs else _draw_panel(axes, *item, report)
    handles = parts[1].axes[0].get_legend_handles_labels()
    parts[-1].legend(*handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return png(figure)


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


def _draw_panel(axes: Axes, panel: Panel, rows: Sequence[str], report: Report) -> None:
    """Dots with their intervals; the experiments of a row stand below each other, references are hollow."""
    count = len(report.measurements)
    for number, (column, found) in enumerate(report.measurements.items()):
        reference = column in REFERENCE_MARKERS
        shift = (count / 2 - 0.5 - number) * 0.7 / count
        places = [len(rows) - 1 - i + shift for i, row in enumerate(rows) if row in found]
        numbers = [found[row] for row in rows if row in found]
        values = np.array([number.value for number in numbers])
        low, high = np.array([number.interval or (number.value,) * 2 for number in numbers]).reshape(-1, 2).T
        errors = np.maximum([values - low, high - values], 0)
        colour = "black" if reference else f"C{number}"
        marker = {"marker": REFERENCE_MARKERS.get(column, "o"), "mfc": "white" if reference else colour, "ms": 4}
        axes.errorbar(values, places, xerr=errors, ls="none", color=colour, elinewidth=1, label=column, **marker)
    axes.set_yticks(range(len(rows)), rows[::-1], fontsize=8)
    axes.set_xlabel(panel.label, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlim=panel.limits)


def _draw_cost(axes: Axes, row: str, report: Report) -> None:
    """A row over the evaluations that it cost, a dot for each experiment; a line for the input itself."""
    for number, (column, found) in enumerate(report.measurements.items()):
        if EVALUATIONS in found and row in found:
            point = found[EVALUATIONS].value, found[row].value
            axes.plot(*point, "o", color=f"C{number}", ms=4)
            axes.annotate(column, point, xytext=(4, 3), textcoords="offset points", fontsize=7)
    if row in report.measurements[INPUT]:
        axes.axhline(report.measurements[INPUT][row].value, color="black", linewidth=0.5)
    axes.set(xscale="log")
    axes.set_xlabel(f"U-Net {EVALUATIONS}; line: the input", fontsize=8)
    axes.set_ylabel(row, fontsize=8)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.tick_params(labelsize=8)
    axes.margins(x=0.15, y=0.15)
