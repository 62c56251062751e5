"""What the truth benchmark measures: explained images beside their truth, wherever that comes from.

Pictures are 8-bit, (H, W, 3) in grey levels 0 to 255, and have passed through all that the run's pictures pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dime.core.results import Pair

Oracle = Callable[[np.ndarray], np.ndarray]
"""Pictures (N, H, W, 3) -> decisions (N, A), 0 or 1, on the attributes that a truth names."""


@dataclass(frozen=True)
class Case:
    """An explained image with its truth; pictures (H, W, 3).

    x, cf: the tree's input and counterfactual. truth: the true counterfactual. region: (H, W) bool, the pixels that it
    may change; empty where the attribute does not show (bangs below a hat). has, expected: (A,) bool, which attributes
    the input has, and which the true counterfactual changes: more than one where attributes exclude each other.
    """

    pair: Pair
    x: np.ndarray
    cf: np.ndarray
    truth: np.ndarray
    region: np.ndarray
    has: np.ndarray
    expected: np.ndarray


class Truth(Protocol):
    """Where the truth about a run's images comes from: a data set that can show each of them with one attribute
    turned over (core.truth.faces). Everything raises InputError for an id that the data set does not have.

    names: the A attributes that a picture may show. query: the one that was explained.
    """

    names: Sequence[str]
    query: str

    def has(self, id: int) -> np.ndarray:
        """Which attributes the image has, (A,) bool."""

    def case(self, pair: Pair) -> Case:
        """A pair of files with its truth. Raises InputError when the tree's input is not the image it should be."""

    def picture(self, id: int, turned: str = "") -> np.ndarray:
        """The image as a network sees it; with one attribute turned over, if one is named."""

    def labels(self) -> np.ndarray:
        """Labels (M, A), 0 or 1, of the whole data set."""


def change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| (N, H, W) of pictures (N, H, W, 3), mean over channels, in grey levels."""
    return np.abs(a.astype(float) - b.astype(float)).mean(axis=-1)


class Cases:
    """N cases as arrays, and what an oracle sees in them.

    each: the cases. x, cf, truth: (N, H, W, 3). region: (N, H, W). changed, missed, needed: (N, H, W), the differences
    of input and counterfactual, of counterfactual and truth, and of input and truth. expected, seen, cf_seen: (N, A),
    the last two the oracle's decisions. query: the column of A that was explained. ids: (N,). correct, flipped: (N,)
    bool, of the explained classifier. target: (N,) the label asked for, 0 or 1: the opposite of what it said.
    """

    def __init__(self, each: Sequence[Case], oracle: Oracle, query: int) -> None:
        self.each, self.query = each, query
        self.x, self.cf, self.truth, self.region, has, self.expected = (
            np.stack([getattr(case, name) for case in each])
            for name in ("x", "cf", "truth", "region", "has", "expected")
        )
        self.ids, self.correct, self.flipped = (
            np.array([getattr(case.pair, name) for case in each]) for name in ("id", "correct", "flipped")
        )
        self.changed, self.missed = change(self.x, self.cf), change(self.cf, self.truth)
        self.needed = change(self.x, self.truth)
        self.seen, self.cf_seen = oracle(self.x), oracle(self.cf)
        self.target = (has[:, query] != self.correct).astype(int)
        self.shows = self.region.any(axis=(1, 2))
