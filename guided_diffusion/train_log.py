"""What a training measures between two lines of its log, kept on the device until it is read."""

from __future__ import annotations

import math
import time
from collections import defaultdict

import torch

from guided_diffusion import dist_util

_MOST_KEPT = 1000


class Meter:
    """Means of named numbers since the last reading, and images per second. Adding waits for no GPU."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, dict[str, torch.Tensor], torch.Tensor | None]] = []
        self._clear()

    def add(self, step: int, values: dict[str, torch.Tensor], quartile: torch.Tensor | None = None) -> None:
        """Note numbers (n,) of each name; `quartile` (n,), 0 to 3: they go into means `name_q0` … `_q3` as well."""
        self._kept.append((step, {name: value.detach() for name, value in values.items()}, quartile))
        if len(self._kept) >= _MOST_KEPT:
            self.check()

    def add_images(self, count: int) -> None:
        """Count images, of all processes."""
        self._images += count

    def check(self) -> None:
        """Raise FloatingPointError, which names the step, if a number of this process was not finite."""
        for step, values, quartile in self._kept:
            quartiles = [] if quartile is None else quartile.tolist()
            for name, value in values.items():
                numbers = value.tolist()
                if not all(map(math.isfinite, numbers)):
                    what = "the loss" if quartile is not None or name == "loss" else name
                    raise FloatingPointError(f"step {step}: {what} is not a finite number")
                self._add(name, sum(numbers), len(numbers))
                for q, number in zip(quartiles, numbers, strict=False):
                    self._add(f"{name}_q{q}", number, 1)
        self._kept.clear()

    def read(self) -> dict[str, float]:
        """The means over all processes, then start anew. Every process calls it. Raises as `check`."""
        self.check()
        parts = dist_util.gather(dict(self._totals))
        speed = self._images / max(time.monotonic() - self._since, 1e-9)
        self._clear()
        for totals in parts:
            for name, (total, count) in totals.items():
                self._add(name, total, count)
        means = {name: total / count for name, (total, count) in self._totals.items()}
        self._totals.clear()
        return {**means, "images_per_second": speed}

    def _add(self, name: str, total: float, count: int) -> None:
        old_total, old_count = self._totals[name]
        self._totals[name] = (old_total + total, old_count + count)

    def _clear(self) -> None:
        self._totals: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        self._images, self._since = 0, time.monotonic()


@torch.no_grad()
def norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean length of all of them together, as a scalar tensor."""
    return torch.stack(torch._foreach_norm(tensors)).norm() if tensors else torch.tensor(math.nan)
