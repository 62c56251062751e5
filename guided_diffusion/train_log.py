"""What a training measures between two lines of its log, kept on the device until it is read."""

from __future__ import annotations

import math
import time

import torch

from guided_diffusion import dist_util

_QUARTILES = 4
_NEVER = 2**62


class LossMeter:
    """Means of each loss term since the last reading: over all timesteps, and by quartile of t (`loss_q0` … `_q3`).

    Adding waits for no GPU. Every process takes part in a reading.
    """

    def __init__(self, num_timesteps: int) -> None:
        self._num_timesteps = num_timesteps
        self._names: list[str] = []
        self._sums = torch.zeros(0)  # (terms, quartiles)
        self._counts = torch.zeros(0)  # (quartiles,)
        self._first_bad = torch.tensor(_NEVER)
        self._grad_norms: list[torch.Tensor] = []

    def add(self, step: int, t: torch.Tensor, losses: dict[str, torch.Tensor]) -> None:
        """Note the losses (N,) of each term at timesteps t (N,)."""
        if not self._names:
            self._names = sorted(losses)
            self._clear(t.device)
        values = torch.stack([losses[name].detach().double() for name in self._names])
        quartile = _QUARTILES * t // self._num_timesteps
        self._sums.index_add_(1, quartile, values)
        self._counts.index_add_(0, quartile, torch.ones_like(t, dtype=torch.float64))
        bad_step = torch.where(values.isfinite().all(), _NEVER, step)
        self._first_bad = torch.minimum(self._first_bad, bad_step)

    def add_grad_norm(self, value: torch.Tensor) -> None:
        """Note the length of an update's gradient."""
        self._grad_norms.append(value.detach())

    def check(self) -> None:
        """Raise FloatingPointError, which names the step, if a loss of this process was not a finite number."""
        if (step := int(self._first_bad)) != _NEVER:
            raise FloatingPointError(f"step {step}: the loss is not a finite number")

    def read(self) -> dict[str, float]:
        """The means over all processes, then start anew. Raises FloatingPointError as `check`."""
        if not self._names:
            return {}
        self.check()
        sums = dist_util.sum_over_ranks(self._sums).cpu()
        counts = dist_util.sum_over_ranks(self._counts).cpu()
        means = {"grad_norm": float(torch.stack(self._grad_norms).mean())} if self._grad_norms else {}
        self._clear(self._sums.device)
        for name, by_quartile in zip(self._names, sums, strict=True):
            means[name] = float(by_quartile.sum() / counts.sum())
            means |= {f"{name}_q{q}": float(by_quartile[q] / counts[q]) for q in range(_QUARTILES) if counts[q]}
        return means

    def _clear(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(self._names), _QUARTILES, dtype=torch.float64, device=device)
        self._counts = torch.zeros(_QUARTILES, dtype=torch.float64, device=device)
        self._first_bad = torch.tensor(_NEVER, device=device)
        self._grad_norms = []


class Speed:
    """Images per second since the last reading."""

    def __init__(self) -> None:
        self._images, self._since = 0, time.monotonic()

    def add(self, images: int) -> None:
        """Count images."""
        self._images += images

    def read(self) -> float:
        """The rate, then start anew."""
        now = time.monotonic()
        rate = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        return rate


@torch.no_grad()
def norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean length of all of them together, as a scalar tensor."""
    return torch.stack(torch._foreach_norm(tensors)).norm() if tensors else torch.tensor(math.nan)
