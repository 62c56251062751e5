"""What a metric gives: a number with what stands behind it, or the reason why there is none."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Measurement:
    """One number about one experiment.

    value: None where it is undefined, which NaN and infinity become too; `reason` says why. n: the images behind it.
    interval: 95 % bootstrap interval over images, where it means something. notes: lines that limit what the number
    says. detail: what the metric's figure is drawn from.
    """

    name: str
    value: float | None
    n: int
    interval: tuple[float, float] | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    detail: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)
            object.__setattr__(self, "reason", self.reason or f"no finite number comes out of its {self.n} images")
        if self.value is None or not np.isfinite(self.interval or ()).all():
            object.__setattr__(self, "interval", None)

    def as_dict(self) -> dict[str, Any]:
        """What a program reads; `reason` is there where the value is null."""
        found = {"name": self.name, "value": self.value, "n": self.n, "interval": self.interval}
        return found | ({"reason": self.reason} if self.value is None else {})


def mean(name: str, values: np.ndarray) -> Measurement:
    """The mean of a value per image (N,), with its interval; undefined where an image has none, or none is there."""
    n, lacking = len(values), int((~np.isfinite(values)).sum())
    if lacking or not n:
        return Measurement(name, None, n, reason=f"{lacking} of its {n} images have no value")
    return Measurement(
        name, float(values.mean()), n, bootstrap_interval(lambda rows: float(values[rows].mean()), len(values))
    )


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of a statistic of n images, given as a function of the indices (n,) of a resample.

    One image says nothing about others: None.
    """
    if n < 2:
        return None
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
