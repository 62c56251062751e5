"""The whole evaluation: every metric that can be computed, over several experiments."""

from collections.abc import Sequence

from dime.core.errors import InputError, UndefinedError
from dime.core.metrics.cd import CD
from dime.core.metrics.cout import COUT
from dime.core.metrics.faces import FACES, face_verification
from dime.core.metrics.fid import FID
from dime.core.metrics.flip_rate import FLIPS
from dime.core.metrics.mad import MAD
from dime.core.metrics.metric import Context, Features, Metric, select_pairs
from dime.core.metrics.mnac import MNAC, changed_attributes
from dime.core.metrics.report import Report, caveats
from dime.core.metrics.robust import ROBUST
from dime.core.metrics.sigma_l import SIGMA_L
from dime.core.results import ResultTree

METRICS: tuple[Metric, ...] = (FLIPS, FACES, MNAC, CD, MAD, COUT, FID, SIGMA_L, *ROBUST)
"""The protocol, in the order of its table. A metric of your own is a file beside these, and an entry here."""

METRIC_NAMES = tuple(name for metric in METRICS for name in metric.rows)
"""The rows of the table."""


def evaluate(
    context: Context, trees: Sequence[ResultTree], robust: bool = False, metrics: Sequence[Metric] = METRICS
) -> Report:
    """Compute every metric that can be computed. Raises InputError for damaged images and experiments.

    robust: those as well that are computed only where they are asked for (Metric.robust).
    """
    metrics = [metric for metric in metrics if robust or not metric.robust]
    report = Report.empty([tree.exp_name for tree in trees], [name for metric in metrics for name in metric.rows])
    for tree in trees:
        select_pairs(tree, flipped_only=False)  # what is wrong with a tree shows before the hours of work
    for metric in metrics:
        for tree in trees:
            try:
                needed = metric.needs(context, tree)
            except InputError as error:
                report.missing[tree.exp_name].append(f"{', '.join(metric.names_in(context))}: {error}")
                continue
            report.add(tree.exp_name, metric.on(context, tree, needed))
    for tree in trees:
        report.caveats[tree.exp_name] += caveats(tree)
    return report


def summary_figures(tree: ResultTree, faces: Features, oracle: Features) -> dict[str, float]:
    """The FVA and MNAC of a summary, 0 where no counterfactual reached its target.

    faces: VGGFace2 features. oracle: its logits. Raises UndefinedError where an image has no figure.
    """
    if not any(pair.flipped for pair in tree.pairs()):
        return {"FVA": 0, "MNAC": 0}
    pairs, report = select_pairs(tree), Report.empty([tree.exp_name])
    report.add(tree.exp_name, [*face_verification(pairs, faces, ["FVA"]), *changed_attributes(pairs, oracle)])
    if lines := report.missing[tree.exp_name]:
        raise UndefinedError("; ".join(lines))
    return {name: m.value for name, m in report.measurements[tree.exp_name].items()}
