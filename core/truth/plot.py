"""The figure of the truth benchmark: some counterfactuals beside the true ones, and the table's rows as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from dime.core.metrics.measurement import Measurement
from dime.core.metrics.plots import png
from dime.core.metrics.report import Report
from dime.core.truth.benchmark import INPUT, TRUTH
from dime.core.truth.faces import Case

EXAMPLES = 8
"""How many faces the figure shows."""
COLUMN_INCHES = 1.15
REFERENCE_MARKERS = {TRUTH: "D", INPUT: "X"}


@dataclass(frozen=True)
class Panel:
    """Rows of the table that share an axis: their names, what the axis says, and its limits (None: as they fall)."""

    rows: Sequence[str]
    label: str
    limits: tuple[float, float] | None = None


def truth_plot(examples: Mapping[str, Sequence[Case | None]], report: Report, panels: Sequence[Panel]) -> bytes:
    """The figure, as a PNG file.

    examples: experiment -> the same faces, None where it does not have one; the first one's has them all.
    """
    panels = [panel for panel in panels if _present(panel, report)]
    row_height = 0.1 + 0.06 * len(report.measurements)
    panel_height = 0.9 + row_height * max(len(_present(panel, report)) for panel in panels)
    lines = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    heights = [COLUMN_INCHES * (3 + len(examples)) + 0.4, *[panel_height] * len(lines)]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), height_ratios=heights)
    _draw_examples(parts[0], examples)
    for part, line in zip(parts[1:], lines, strict=True):
        for axes, panel in zip(part.subplots(1, len(line), squeeze=False)[0], line, strict=True):
            _draw_panel(axes, panel, report)
    handles = parts[1].axes[0].get_legend_handles_labels()
    parts[-1].legend(*handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return png(figure)


def _present(panel: Panel, report: Report) -> list[str]:
    return [row for row in panel.rows if any(row in found for found in report.measurements.values())]


def _draw_examples(part: SubFigure, examples: Mapping[str, Sequence[Case | None]]) -> None:
    """One column for each face; rows: input, true counterfactual, region, then the experiments."""
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


def _draw_panel(axes: Axes, panel: Panel, report: Report) -> None:
    """Dots with their intervals; the experiments of a row stand below each other, references are hollow."""
    rows = _present(panel, report)
    columns = list(report.measurements)
    for number, column in enumerate(columns):
        found = report.measurements[column]
        reference = column in REFERENCE_MARKERS
        at = {row: len(rows) - 1 - i for i, row in enumerate(rows) if row in found}
        shift = (len(columns) / 2 - 0.5 - number) * 0.7 / len(columns)
        colour = "black" if reference else f"C{number}"
        marker = {"marker": REFERENCE_MARKERS.get(column, "o"), "mfc": "white" if reference else colour, "ms": 4}
        values = [found[row].value for row in at]
        places = [place + shift for place in at.values()]
        errors = np.array([_spread(found[row]) for row in at]).reshape(-1, 2).T
        axes.errorbar(values, places, xerr=errors, ls="none", color=colour, elinewidth=1, label=column, **marker)
    axes.set_yticks(range(len(rows)), rows[::-1], fontsize=8)
    axes.set_xlabel(panel.label, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    if panel.limits:
        axes.set_xlim(*panel.limits)


def _spread(measurement: Measurement) -> tuple[float, float]:
    """How far the interval reaches below and above the value."""
    low, high = measurement.interval or (measurement.value, measurement.value)
    return max(measurement.value - low, 0), max(high - measurement.value, 0)
