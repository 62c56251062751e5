"""The whole evaluation: every metric that can be computed, over several experiments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

from dime.core.errors import InputError, UndefinedError
from dime.core.metrics.cd import CD
from dime.core.metrics.cout import COUT
from dime.core.metrics.faces import FACES, face_verification
from dime.core.metrics.fid import FID
from dime.core.metrics.flip_rate import FLIPS
from dime.core.metrics.mad import MAD
from dime.core.metrics.measurement import Measurement
from dime.core.metrics.metric import Context, Features, Metric, select_pairs
from dime.core.metrics.mnac import MNAC, changed_attributes
from dime.core.metrics.published import caveats
from dime.core.metrics.report import Report
from dime.core.metrics.sigma_l import SIGMA_L
from dime.core.results import ResultTree

METRICS: tuple[Metric, ...] = (FLIPS, FACES, MNAC, CD, MAD, COUT, FID, SIGMA_L)
"""The protocol, in the order of its table. A metric of your own is a file beside these, and an entry here."""

METRIC_NAMES = tuple(name for metric in METRICS for name in metric.rows)
"""The rows of the table."""


def evaluate(
    context: Context,
    trees: Sequence[ResultTree],
    asked: Collection[str] = (),
    metrics: Sequence[Metric] = METRICS,
) -> Report:
    """Compute every metric that can be computed. Raises InputError for damaged images and experiments.

    asked: the flags that were given for metrics which are computed only then (Metric.asked_by).
    """
    metrics = [metric for metric in metrics if not metric.asked_by or metric.asked_by in asked]
    names = [name for metric in metrics for name in metric.rows]
    report = Report.empty([tree.exp_name for tree in trees], names)
    for tree in trees:
        select_pairs(tree, flipped_only=False)  # what is wrong with a tree shows before the hours of work
    for metric in metrics:
        for tree in trees:
            try:
                needed = metric.needs(context, tree)
            except InputError as error:
                report.missing[tree.exp_name].append(f"{', '.join(metric.names_in(context))}: {error}")
                continue
            found = metric.on(context, tree, needed)
            report.measurements[tree.exp_name] |= {m.name: m for m in found}
            report.missing[tree.exp_name] += undefined_lines(found, tree)
            report.caveats[tree.exp_name] += noted(found, tree)
    for tree in trees:
        report.caveats[tree.exp_name] += caveats(tree)
    return report


def undefined_lines(found: Sequence[Measurement], tree: ResultTree) -> list[str]:
    """A line for each reason why measurements have no value."""
    undefined = [m for m in found if m.value is None]
    return [
        f"{', '.join(m.name for m in group)} of {tree.exp_name}: undefined: {reason}"
        for reason, group in groupby(undefined, key=lambda m: m.reason)
    ]


def noted(found: Sequence[Measurement], tree: ResultTree) -> list[str]:
    """A line for each note of measurements."""
    return [f"{m.name} of {tree.exp_name}: {note}" for m in found for note in m.notes]


def summary_figures(tree: ResultTree, faces: Features, oracle: Features) -> dict[str, float]:
    """The FVA and MNAC of a summary, 0 where no counterfactual reached its target.

    faces: VGGFace2 features. oracle: its logits. Raises UndefinedError where an image has no figure.
    """
    if not any(pair.flipped for pair in tree.pairs()):
        return {"FVA": 0, "MNAC": 0}
    pairs = select_pairs(tree)
    found = [*face_verification(pairs, faces, ["FVA"]), *changed_attributes(pairs, oracle)]
    if lines := undefined_lines(found, tree):
        raise UndefinedError("; ".join(lines))
    return {m.name: m.value for m in found}
