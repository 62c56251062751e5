"""Flip rate: how many counterfactuals reached their target?"""

from collections.abc import Sequence

import numpy as np

from dime.core.metrics.metric import Measurement, Metric, mean
from dime.core.results import Pair

FLIP_RATE = "flip rate"


def flip_rate(pairs: Sequence[Pair]) -> list[Measurement]:
    """The share of pairs in CCF, of all pairs."""
    return [mean(FLIP_RATE, np.array([pair.flipped for pair in pairs], dtype=float))]


FLIPS = Metric(rows=(FLIP_RATE,), measure=flip_rate, flipped_only=False)
