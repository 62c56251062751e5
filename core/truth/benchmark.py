"""The truth benchmark: are counterfactuals right, on drawn faces, whose true counterfactuals are known?

Measured are the images that the classifier judges correctly: for them the counterfactual asked for is the face with the
attribute turned over. Images that did not flip are measured as well; a method does not win by giving up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from dime.core.drawn_faces import DRAWN
from dime.core.errors import InputError
from dime.core.metrics.features import Machine, batches
from dime.core.metrics.flip_rate import FLIP_RATE
from dime.core.metrics.measurement import Measurement, bootstrap_interval, mean
from dime.core.metrics.metric import select_pairs
from dime.core.metrics.report import Report
from dime.core.results import Pair, ResultTree
from dime.core.truth import metrics
from dime.core.truth.faces import Case, DrawnFaces
from dime.core.truth.oracle import AttributeOracle

TRUTH, INPUT = "(true cf)", "(input)"
"""The columns to compare with: the true counterfactuals, and the inputs themselves, measured as if explained."""

TURNED = "attribute turned over"
OTHERS = "other attributes changed"
INSIDE = "change inside the region"
OUTSIDE = "change outside the region"
SHARE_OUTSIDE = "share of change outside"
LOCALISATION = "localisation"
ALIGNMENT = "alignment"
DISTANCE = "distance to the truth"
RECOVERED = "recovered"
RECOVERED_INSIDE = "recovered inside the region"
ROWS = (
    *(FLIP_RATE, TURNED, OTHERS, INSIDE, OUTSIDE, SHARE_OUTSIDE),
    *(LOCALISATION, ALIGNMENT, DISTANCE, RECOVERED, RECOVERED_INSIDE),
)
"""The rows of the table; docs/truth.md says what they mean."""


@dataclass(frozen=True)
class Figures:
    """What was measured on N images, one value each.

    flipped, correct: of the classifier, from the tree. target: the label asked for, 0 or 1. shows: whether the region
    holds a pixel. seen, cf_seen: (N, A) the oracle's decisions. The others: see ROWS and core.truth.metrics; start is
    the input's own distance to the truth.
    """

    flipped: np.ndarray
    correct: np.ndarray
    target: np.ndarray
    shows: np.ndarray
    seen: np.ndarray
    cf_seen: np.ndarray
    others: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    share_outside: np.ndarray
    localisation: np.ndarray
    alignment: np.ndarray
    distance: np.ndarray
    distance_inside: np.ndarray
    start: np.ndarray
    start_inside: np.ndarray

    @property
    def true(self) -> np.ndarray:
        """The images (N,) bool that have a true counterfactual, and one that can be seen."""
        return self.correct & self.shows

    def rows(self, chosen: np.ndarray) -> Figures:
        """Those of some images."""
        return Figures(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Figures]) -> Figures:
        """Those of all parts, in a row."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        return cls(**{name: np.concatenate(column) for name, column in columns.items()})


@dataclass
class Benchmark:
    """The experiments to measure, and with what. All explain the same attribute of the same faces."""

    trees: Sequence[ResultTree]
    faces: DrawnFaces
    oracle: AttributeOracle
    machine: Machine

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """The images of every experiment."""
        return {tree.exp_name: select_pairs(tree, flipped_only=False) for tree in self.trees}

    @cached_property
    def figures(self) -> dict[str, Figures]:
        """Everything measured on every experiment."""
        self.oracle.require(self.faces.query)
        for pairs in self.pairs.values():
            for pair in pairs:
                self.faces.face(pair.id)  # an unknown id shows before the work
        return {name: self._measure(pairs) for name, pairs in self.pairs.items()}

    @cached_property
    def references(self) -> dict[str, Figures]:
        """The same, on the images of the largest experiment, had it written the truth, or its inputs."""
        pairs = max(self.pairs.values(), key=len)
        return {TRUTH: self._measure(pairs, TRUTH), INPUT: self._measure(pairs, INPUT)}

    def _measure(self, pairs: Sequence[Pair], instead: str = "") -> Figures:
        return Figures.joined(
            [self._measure_batch(cases, instead) for cases in batches(pairs, self.faces.case, self.machine)]
        )

    def _measure_batch(self, cases: Sequence[Case], instead: str) -> Figures:
        x, cf, truth, region, expected = (
            np.stack([getattr(case, name) for case in cases]) for name in ("x", "cf", "truth", "region", "expected")
        )
        cf = {TRUTH: truth, INPUT: x}.get(instead, cf)
        changed, distance, start = metrics.change(x, cf), metrics.change(cf, truth), metrics.change(x, truth)
        seen, cf_seen = self.oracle(x), self.oracle(cf)
        has_it = np.array([self.faces.query in self.faces.face(case.pair.id).has for case in cases])
        correct = np.array([case.pair.correct for case in cases])
        return Figures(
            flipped=np.array([case.pair.flipped for case in cases]),
            correct=correct,
            target=(has_it != correct).astype(int),
            shows=region.any(axis=(1, 2)),
            seen=seen,
            cf_seen=cf_seen,
            others=((seen != cf_seen) & ~expected).sum(axis=1),
            inside=metrics.mean_within(changed, region),
            outside=metrics.mean_within(changed, ~region),
            share_outside=metrics.share_outside(changed, region),
            localisation=metrics.localisation(changed, region),
            alignment=metrics.alignment(x, cf, truth),
            distance=distance.mean(axis=(1, 2)),
            distance_inside=metrics.mean_within(distance, region),
            start=start.mean(axis=(1, 2)),
            start_inside=metrics.mean_within(start, region),
        )

    def report(self) -> Report:
        """The table. Raises InputError where an experiment has no image with a true counterfactual."""
        report = Report.empty(self.figures)
        query = DRAWN.index(self.faces.query)
        for name, figures in self.figures.items():
            report.measurements[name] = {
                FLIP_RATE: mean(FLIP_RATE, figures.flipped.astype(float)),
                **measurements(figures.rows(figures.true), query),
            }
            report.caveats[name] = left_out(name, figures, self.faces.query)
        for name, figures in self.references.items():
            report.measurements[name] = measurements(figures.rows(figures.true), query)
        return report


def measurements(figures: Figures, query: int) -> dict[str, Measurement]:
    """The rows of the table, but for the flip rate. query: the attribute's column in DRAWN."""
    per_image = {
        TURNED: figures.cf_seen[:, query] == figures.target,
        OTHERS: figures.others,
        INSIDE: figures.inside,
        OUTSIDE: figures.outside,
        SHARE_OUTSIDE: figures.share_outside,
        LOCALISATION: figures.localisation,
        ALIGNMENT: figures.alignment,
        DISTANCE: figures.distance,
    }
    found = {name: _mean(name, values) for name, values in per_image.items()}
    found[RECOVERED] = _recovered(RECOVERED, figures.distance, figures.start)
    found[RECOVERED_INSIDE] = _recovered(RECOVERED_INSIDE, figures.distance_inside, figures.start_inside)
    return {name: measurement for name, measurement in found.items() if measurement}


def _mean(name: str, values: np.ndarray) -> Measurement | None:
    """The mean over the images that have a value, if there are any."""
    values = values[np.isfinite(values)].astype(float)
    return mean(name, values) if len(values) else None


def _recovered(name: str, distance: np.ndarray, start: np.ndarray) -> Measurement | None:
    if not start.sum():
        return None
    interval = bootstrap_interval(lambda rows: metrics.recovered(distance[rows], start[rows]), len(distance))
    return Measurement(name, metrics.recovered(distance, start), len(distance), interval)


def left_out(name: str, figures: Figures, query: str) -> list[str]:
    """Lines that say which images have no part in the truth. Raises InputError if that leaves none."""
    misjudged, hidden = int((~figures.correct).sum()), int((figures.correct & ~figures.shows).sum())
    if not figures.true.any():
        raise InputError(
            f"{name}: none of its {len(figures.correct)} images has a true counterfactual "
            f"({misjudged} misjudged by the classifier, in {hidden} {query} does not show)"
        )
    lines = []
    if misjudged:
        lines.append(f"{name}: {misjudged} images that its classifier misjudges have no true counterfactual")
    if hidden:
        lines.append(f"{name}: in {hidden} images {query} does not show, so that nothing would have to change")
    return lines
