"""What an evaluation found: as a table for people and the terminal, as CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dime.core.metrics.measurement import Measurement
from dime.core.metrics.published import PUBLISHED
from dime.core.table import cell, four_digits, listed, markdown_table


@dataclass
class Report:
    """What came out, by experiment: metric -> measurement, why others are missing, and what does not compare.

    rows: the names that measurements may have, in the table's order.
    """

    measurements: dict[str, dict[str, Measurement]]
    missing: dict[str, list[str]]
    caveats: dict[str, list[str]]
    rows: Sequence[str] = ()

    @classmethod
    def empty(cls, experiments: Iterable[str], rows: Sequence[str] = ()) -> Report:
        """Without a measurement yet."""
        names = list(experiments)
        return cls({name: {} for name in names}, {name: [] for name in names}, {name: [] for name in names}, rows)

    def of(self, experiment: str) -> Report:
        """The same for one of the experiments."""
        parts = ({experiment: part[experiment]} for part in (self.measurements, self.missing, self.caveats))
        return Report(*parts, rows=self.rows)


def markdown(report: Report, papers: Sequence[str] = ()) -> str:
    """A table with one column per experiment and per paper, then what is missing and what does not compare."""
    header = ["metric", *report.measurements, *(f"{paper} (paper)" for paper in papers)]
    rows = []
    for name in report.rows:
        found = [measured.get(name) for measured in report.measurements.values()]
        if any(found):
            figures = [PUBLISHED[paper].get(name) for paper in papers]
            cells = [m and cell(m.value, m.interval, m.n) for m in found]
            rows.append([name, *cells, *(figure and four_digits(figure) for figure in figures)])
    lines = ["", "Cells: value [95 % bootstrap interval over images] (images)."]
    lines += listed("Not computed:", report.missing) + listed("Compare with care:", report.caveats)
    return markdown_table(header, rows) + "\n".join(lines) + "\n"


def as_csv(report: Report) -> str:
    """One row per experiment and metric; no value where it is undefined."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["experiment", "metric", "value", "low", "high", "n"])
    for experiment, measured in report.measurements.items():
        for m in measured.values():
            writer.writerow([experiment, m.name, "" if m.value is None else m.value, *(m.interval or ("", "")), m.n])
    return buffer.getvalue()


def as_json(report: Report) -> str:
    """The whole report: measurements by experiment and metric, then the lines below the table."""
    measurements = {
        experiment: {name: m.as_dict() for name, m in measured.items()}
        for experiment, measured in report.measurements.items()
    }
    content = {"measurements": measurements, "missing": report.missing, "caveats": report.caveats}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
