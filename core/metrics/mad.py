"""MAD: by how much does the classifier's probability change?"""

from collections.abc import Sequence

import torch

from dime.core.errors import UndefinedError
from dime.core.guidance import Decision, MultiClass
from dime.core.metrics.features import ImageFeatures
from dime.core.metrics.metric import Context, Features, Measurement, Metric, counterfactuals, mean, originals
from dime.core.results import Pair, ResultTree


def decision_change(pairs: Sequence[Pair], logits: Features, decision: Decision) -> list[Measurement]:
    """Mean change of a probability between input and counterfactual; logits: the explained classifier's.

    It is that of the attribute, or, among exclusive classes, of the target.
    """
    targets = [target_of(pair) if isinstance(decision, MultiClass) else 1 for pair in pairs]
    before, after = (
        decision.probability(logits(paths), torch.tensor(targets)).double()
        for paths in (originals(pairs), counterfactuals(pairs))
    )
    return [mean("MAD", (before - after).abs().numpy())]


def target_of(pair: Pair) -> int:
    """The target that the image's Info file names. Raises UndefinedError where there is none."""
    try:
        lines = dict(line.partition(": ")[::2] for line in pair.info.read_text(encoding="utf-8").splitlines())
        return int(lines["target"])
    except (OSError, ValueError, KeyError):
        raise UndefinedError(f"{pair.info}: names no target, which the change is measured for") from None


def needs(context: Context, tree: ResultTree) -> tuple[Features, Decision]:
    """The logits of the explained classifier, and its decision."""
    classifier, decision = context.explained(tree)
    return context.once(ImageFeatures, classifier, context.machine), decision


MAD = Metric(
    rows=("MAD",),
    measure=decision_change,
    needs=needs,
    flags=("--classifier-path", "--trust-classifier", "--query-label"),
    flipped_only=False,
)
