"""The truth benchmark: are counterfactuals right, on images whose true counterfactuals are known?

Measured are the images that the classifier judges correctly: for them the counterfactual asked for is the image with
the attribute turned over. Images that did not flip are measured as well; a method does not win by giving up.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, ScalarFormatter

from dime.core.errors import InputError
from dime.core.metrics.features import Machine, batches
from dime.core.metrics.metric import Measurement, bootstrap_interval, select_pairs
from dime.core.metrics.report import Report
from dime.core.results import Pair, ResultTree
from dime.core.table import cell, listed, markdown_table
from dime.core.truth.cases import Case, Cases, Oracle
from dime.core.truth.rows import EVALUATIONS, FLIPS, ROWS, Row
from dime.core.truth.world import World

COLUMN_INCHES, COST_INCHES = 1.15, 3.6
TRUTH, INPUT = "(true cf)", "(input)"
"""The columns to compare with: the true counterfactuals, and the inputs themselves, measured as if explained."""


@dataclass
class Experiment:
    """A column of the table: the runs of one setting, which differ in their seeds.

    rows: those that it has on top of everybody's. missing: lines that say why others are not there.
    """

    name: str
    trees: Sequence[ResultTree]
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The images of all runs."""
        return [pair for tree in self.trees for pair in select_pairs(tree, flipped_only=False)]

    @property
    def ids(self) -> list[int]:
        """What the runs call the images, each once, in order."""
        return sorted({pair.id for pair in self.pairs})

    def add(self, what: str, rows: Callable[["Experiment"], Iterable[Row]]) -> None:
        """Rows of this experiment alone; if they cannot be measured (InputError), a line of `missing` instead."""
        try:
            self.rows += rows(self)
        except InputError as error:
            self.missing.append(f"{what} of {self.name}: {error}")


@dataclass(frozen=True)
class Measured:
    """What was measured on N images: ids (N,), each once for every seed; which of them count for which rows, masks
    (N,); and row -> values (N, …).
    """

    ids: np.ndarray
    masks: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    def measurement(self, row: Row) -> Measurement | None:
        """The row's number over the images that count and have a value; None without any. Seeds of an image are
        resampled together.
        """
        values = self.values[row.name].astype(float)
        chosen = self.masks[row.among] & np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        ids, values = self.ids[chosen], values[chosen]
        if not len(values) or not np.isfinite(row.combine(values)):
            return None
        images = [np.flatnonzero(ids == id) for id in np.unique(ids)]

        def resampled(rows: np.ndarray) -> float:
            return row.combine(values[np.concatenate([images[image] for image in rows])])

        interval = bootstrap_interval(resampled, len(images)) if row.interval else None
        return Measurement(row.name, float(row.combine(values)), len(images), interval)


def measure(
    pairs: Sequence[Pair], rows: Sequence[Row], truth: World, oracle: Oracle, machine: Machine, written: str = "cf"
) -> Measured:
    """What rows say of pairs. written: which picture of a case is taken for its counterfactual."""
    parts, query = [], truth.names.index(truth.query)
    for each in batches(pairs, truth.case, machine):
        c = Cases([replace(case, cf=getattr(case, written)) for case in each], oracle, query)
        masks = {"all": c.ids >= 0, "flipped": c.flipped, "correct": c.correct, "true": c.correct & c.shows}
        parts.append(({"ids": c.ids}, masks, {row.name: row.per_image(c) for row in rows}))
    ids, masks, values = (
        {name: np.concatenate([part[name] for part in column]) for name in column[0]}
        for column in zip(*parts, strict=True)
    )
    return Measured(ids["ids"], masks, values)


def benchmark(
    experiments: Sequence[Experiment], truth: World, oracle: Oracle, machine: Machine, rows: Sequence[Row] = ROWS
) -> Report:
    """The table of experiments that explain the same attribute of the same images.

    rows: those that every column has, the columns of reference included. Raises InputError where an experiment has no
    image with a true counterfactual.
    """
    for id in (id for each in experiments for id in each.ids):
        truth.name_of(id)  # an unknown id shows before the work
    report = Report.empty(each.name for each in experiments)

    def fill(name: str, pairs: Sequence[Pair], own: Sequence[Row], written: str = "cf") -> Measured:
        measured = measure(pairs, own, truth, oracle, machine, written)
        report.measurements[name] = {row.name: found for row in own if (found := measured.measurement(row))}
        return measured

    for each in experiments:
        measured = fill(each.name, each.pairs, (FLIPS, *rows, *each.rows))
        report.caveats[each.name] = left_out(each.name, measured, truth.query)
        told = [row.name for row in each.rows if row.among == "flipped" and not measured.masks["flipped"].any()]
        line = f"{', '.join(told)}: no counterfactual of {each.name} reached its target"
        report.missing[each.name] = [*each.missing, *([line] if told else [])]
    pairs = max((each.pairs for each in experiments), key=len)
    fill(TRUTH, pairs, rows, "truth")
    fill(INPUT, pairs, rows, "x")
    return report


def examples(experiments: Sequence[Experiment], truth: World, count: int) -> dict[str, list[Case | None]]:
    """The first images of the first experiment that have a true counterfactual, in all experiments (None: not there),
    of their first seed.
    """
    first = [pair.id for pair in experiments[0].pairs if pair.correct and truth.known(pair.id).region.any()]
    ids = list(dict.fromkeys(first))[:count]
    pairs = {each.name: {pair.id: pair for pair in reversed(each.pairs)} for each in experiments}
    return {name: [truth.case(by_id[id]) if id in by_id else None for id in ids] for name, by_id in pairs.items()}


def left_out(name: str, measured: Measured, query: str) -> list[str]:
    """Lines that say which images have no part in the truth. Raises InputError if that leaves none."""
    correct, true = measured.masks["correct"], measured.masks["true"]
    misjudged, hidden = (len(set(measured.ids[mask])) for mask in (~correct, correct & ~true))
    if not true.any():
        raise InputError(
            f"{name}: none of its {len(set(measured.ids))} images has a true counterfactual "
            f"({misjudged} misjudged by the classifier, in {hidden} {query} does not show)"
        )
    lines = {
        f"{name}: {misjudged} images that its classifier misjudges have no true counterfactual": misjudged,
        f"{name}: in {hidden} images {query} does not show, so that nothing would have to change": hidden,
    }
    return [line for line, count in lines.items() if count]


# For people


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
