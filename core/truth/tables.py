"""The tables of the truth benchmark, as Markdown for people and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dime.core.metrics.measurement import Measurement
from dime.core.metrics.report import Report
from dime.core.table import cell, listed, markdown_table

IMAGES = "images"


def markdown(report: Report, tables: Mapping[str, Sequence[str]]) -> str:
    """One table under each title, a column for each experiment that has any of its rows; then what limits the numbers.

    tables: title -> rows. A cell holds value [95 % interval], and (images) where they are not as many as the first row
    of the table says.
    """
    lines: list[str] = []
    for title, rows in tables.items():
        columns = {name: found for name, found in report.measurements.items() if any(row in found for row in rows)}
        lines += [f"**{title}**", "", _table(columns, rows)] if columns else []
    lines.append("Cells: value [95 % bootstrap interval over images] (images, where not all).")
    lines += listed("Not computed:", report.missing) + listed("Left out:", report.caveats)
    return "\n".join(lines) + "\n"


def _table(columns: Mapping[str, Mapping[str, Measurement]], rows: Sequence[str]) -> str:
    images = {name: max(found[row].n for row in rows if row in found) for name, found in columns.items()}
    lines = [[row, *(_cell(found.get(row), images[name]) for name, found in columns.items())] for row in rows]
    return markdown_table(["", *columns], [[IMAGES, *images.values()], *(line for line in lines if any(line[1:]))])


def _cell(measurement: Measurement | None, images: int) -> str:
    if measurement is None:
        return ""
    count = measurement.n if measurement.n != images else None
    return cell(measurement.value, measurement.interval, count, form=_number)


def _number(value: float) -> str:
    """Two decimals, fewer for large numbers; no minus before a zero."""
    text = f"{value:.{2 if abs(value) < 10 else 1}f}"
    return text.lstrip("-") if not float(text) else text
