"""What an evaluation found: as a table for people and the terminal, as CSV and JSON for programs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from dime.core.metrics.metric import Measurement
from dime.core.results import ResultTree
from dime.core.table import cell, listed, markdown_table

PUBLISHED: dict[str, dict[str, float]] = {
    "DiME": {
        "flip rate": 0.972,
        "FVA": 0.983,
        "FS": 0.73,
        "MNAC": 3.72,
        "CD": 2.30,
        "COUT": 0.53,
        "FID": 3.17,
        "sFID": 4.89,
        "sigma_L": 0.2139,
    },
    "FastDiME": {"FID": 4.18},
    "FastDiME-2": {"FID": 3.33},
    "FastDiME-2+": {"FID": 3.24, "flip rate": 0.989},
    "ACE-l1": {"FID": 1.27},
    "MaskDiME": {"FID": 0.71, "flip rate": 1.0, "COUT": 0.87, "sigma_L": 0.0395},
}
"""Paper -> metric -> figure for CelebA 128, Smile: full val set, about 20,000 images, as later papers give them."""


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
    def empty(cls, experiments: Iterable[str], rows: Sequence[str] = ()) -> "Report":
        """Without a measurement yet."""
        names = list(experiments)
        return cls({name: {} for name in names}, {name: [] for name in names}, {name: [] for name in names}, rows)

    def add(self, experiment: str, found: Sequence[Measurement]) -> None:
        """Measurements of an experiment, with a line for each reason why there is no value, and for each note."""
        self.measurements[experiment] |= {m.name: m for m in found}
        for reason, group in groupby((m for m in found if m.value is None), key=lambda m: m.reason):
            names = ", ".join(m.name for m in group)
            self.missing[experiment].append(f"{names} of {experiment}: undefined: {reason}")
        self.caveats[experiment] += [f"{m.name} of {experiment}: {note}" for m in found for note in m.notes]

    def of(self, experiment: str) -> "Report":
        """The same for one of the experiments."""
        parts = ({experiment: part[experiment]} for part in (self.measurements, self.missing, self.caveats))
        return Report(*parts, rows=self.rows)


def caveats(tree: ResultTree) -> list[str]:
    """Lines that say why figures of an experiment, whatever the metric, do not compare with the papers'."""
    lines = []
    if any(pair.counterfactual.suffix == ".jpg" for pair in tree.pairs()):
        lines.append(
            "the images are JPEG files, as DiME's own (quality 75): figures of papers that saved without loss differ"
        )
    if "CelebAMV" in tree.recorded("dataset"):
        lines.append("the mini-validation set of 1000 images was explained: the papers' figures are of the whole one")
    return lines


def markdown(report: Report, papers: Sequence[str] = ()) -> str:
    """A table with one column per experiment and per paper, then what is missing and what does not compare."""
    header = ["metric", *report.measurements, *(f"{paper} (paper)" for paper in papers)]
    rows = []
    for name in report.rows:
        found = [measured.get(name) for measured in report.measurements.values()]
        if any(found):
            figures = [PUBLISHED[paper].get(name) for paper in papers]
            cells = [m and cell(m.value, m.interval, m.n) for m in found]
            rows.append([name, *cells, *(figure and cell(figure) for figure in figures)])
    lines = ["", "Cells: value [95 % bootstrap interval over images] (images)."]
    lines += listed("Not computed:", report.missing) + listed("Compare with care:", report.caveats)
    return markdown_table(header, rows) + "\n".join(lines) + "\n"


def as_csv(report: Report) -> str:
    """One row per experiment and metric; no value where it is undefined."""
    found = [(experiment, m) for experiment, measured in report.measurements.items() for m in measured.values()]
    rows = [(experiment, m.name, m.value, *(m.interval or (None, None)), m.n) for experiment, m in found]
    columns = ["experiment", "metric", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n")


def as_json(report: Report) -> str:
    """The whole report: measurements by experiment and metric, then the lines below the table."""
    measurements = {
        experiment: {name: m.as_dict() for name, m in measured.items()}
        for experiment, measured in report.measurements.items()
    }
    content = {"measurements": measurements, "missing": report.missing, "caveats": report.caveats}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
