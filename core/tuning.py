"""Which settings suit a generator and a classifier: the noise level first, then successive halving.

Costs are evaluations of the diffusion model, over all images.
"""

import bisect
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from dime.core.errors import InputError
from dime.core.files import write_atomically

KEEPS = 0.95
"""Share of predictions that noising and denoising, without any pull, must keep."""
FIRST_IMAGES = 4
"""On how many images all candidates are tried; the better half of them on twice as many, and so on."""
GRID: dict[str, Sequence[Any]] = {
    "classifier_scales": [(s, 2 * s, 4 * s) for s in (1.0, 2.0, 4.0, 8.0, 16.0)],
    "l1_loss": (0.0, 0.02, 0.05, 0.1),
    "outer_steps": (6, 10, 15, 0),
}
OF_INVERTED: dict[str, Sequence[Any]] = {"fresh_noise": (0.0, 0.5, 0.9, 1.0), "repaint": (0.0, 0.05, 0.08, 0.12)}
"""What --method inverted has on top."""


@dataclass(frozen=True)
class Trial:
    """What settings came to on the first `images` images: the share that flipped, the mean absolute change on the scale
    from 0 to 1, and evaluations per image.
    """

    flags: Mapping[str, Any]
    images: int
    flip: float
    change: float
    evaluations: float

    @property
    def rank(self) -> tuple[float, ...]:
        """Smaller is better: flips first, then the change, then the cost."""
        return -self.flip, self.change, self.evaluations

    def beats(self, other: "Trial") -> bool:
        """Whether it is nowhere worse, and somewhere better."""
        return self.rank != other.rank and all(a <= b for a, b in zip(self.rank, other.rank, strict=True))


class Record:
    """Results on disk, so that the same search goes on where it was stopped.

    Raises InputError where the file is of another search: `identity` says what it depends on.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, known = path, json.dumps(identity, sort_keys=True, default=str)
        self._lines = path.read_text().splitlines() if path.exists() else [known]
        if self._lines[0] != known:
            raise InputError(f"{path}: is of a search with other flags; give them again, or another --tune_path")
        self._known = dict(map(json.loads, self._lines[1:]))

    def __call__(self, key: Any, compute: Callable[[], Any]) -> Any:
        """What was once computed under this key."""
        name = json.dumps(key, sort_keys=True)
        if name not in self._known:
            self._known[name] = compute()
            self._lines.append(json.dumps([name, self._known[name]]))
            write_atomically(self.path, "\n".join(self._lines) + "\n")
        return self._known[name]


def largest_tau(keeps: Callable[[int], float], highest: int) -> int:
    """The largest noise level up to `highest` that still keeps enough predictions, found by bisection.

    keeps: τ -> the share that it keeps, taken to fall with τ. Raises InputError where even τ = 1 keeps too few.
    """
    low = bisect.bisect_right(range(1, highest + 1), -KEEPS, key=lambda tau: -keeps(tau))
    if not low:
        raise InputError("noised to a single step and denoised, too few images keep their prediction: other networks?")
    return low


def candidates(method: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Different settings, drawn from the grid."""
    grid = GRID | (OF_INVERTED if method == "inverted" else {})
    every = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return random.Random(seed).sample(every, min(count, len(every)))


def successive_halving(
    tried: Sequence[Mapping[str, Any]],
    measure: Callable[[Mapping[str, Any], int], Trial],
    cost: Callable[[Mapping[str, Any]], int],
    images: int,
    budget: float,
) -> list[Trial]:
    """The trials on the largest number of images, the best first.

    measure: (settings, n) -> what they came to on the first n images. cost: evaluations per image at the most. A round
    begins only if the budget pays for all of it. Raises InputError where it does not pay for the first.
    """
    n, last = min(FIRST_IMAGES, images), []
    while tried:
        price = n * sum(map(cost, tried))
        if price > budget:
            break
        last = sorted((measure(flags, n) for flags in tried), key=lambda trial: trial.rank)
        budget -= n * sum(trial.evaluations for trial in last)
        if n == images:
            break
        tried, n = [trial.flags for trial in last[: max(1, len(last) // 2)]], min(2 * n, images)
    if not last:
        raise InputError(f"--budget: {len(tried)} settings on {n} images can cost {price} evaluations; give more")
    return last


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats (the Pareto front)."""
    return [trial for trial in trials if not any(other.beats(trial) for other in trials)]
