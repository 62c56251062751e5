"""The table of an evaluation: Markdown for people and the terminal, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from dime.core.evaluation.protocol import METRIC_NAMES, Report
from dime.core.evaluation.published import PUBLISHED


def markdown(report: Report, papers: Sequence[str] = ()) -> str:
    """A table with one column per experiment and per paper, then what is missing and what does not compare.

    A cell holds value [95 % interval] (images).
    """
    header = ["metric", *report.measurements, *(f"{paper} (paper)" for paper in papers)]
    rows = [[name, *_cells(report, name, papers)] for name in METRIC_NAMES]
    rows = [row for row in rows if any(row[1 : 1 + len(report.measurements)])]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [table_line(header, widths), table_line(["-" * width for width in widths], widths)]
    lines += [table_line(row, widths) for row in rows]
    lines += ["", "Cells: value [95 % bootstrap interval over images] (images)."]
    lines += listed("Not computed:", report.missing) + listed("Compare with care:", report.caveats)
    return "\n".join(lines) + "\n"


def _cells(report: Report, name: str, papers: Sequence[str]) -> list[str]:
    cells = []
    for measured in report.measurements.values():
        measurement = measured.get(name)
        if measurement is None:
            cells.append("")
            continue
        interval = "[{:.4g}, {:.4g}] ".format(*measurement.interval) if measurement.interval else ""
        cells.append(f"{measurement.value:.4g} {interval}({measurement.n})")
    return cells + [f"{PUBLISHED[paper][name]:.4g}" if name in PUBLISHED[paper] else "" for paper in papers]


def table_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a Markdown table, its columns aligned."""
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def listed(title: str, notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of Markdown: what was noted of the experiments, each remark once; none where nothing was."""
    remarks = dict.fromkeys(line for lines in notes.values() for line in lines)
    return ["", title, "", *(f"- {line}" for line in remarks)] if remarks else []


def as_csv(report: Report) -> str:
    """One row per experiment and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["experiment", "metric", "value", "low", "high", "n"])
    for experiment, measured in report.measurements.items():
        for m in measured.values():
            writer.writerow([experiment, m.name, m.value, *(m.interval or ("", "")), m.n])
    return buffer.getvalue()


def as_json(report: Report) -> str:
    """The whole report: measurements by experiment and metric, then the lines below the table."""
    return json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
