"""Which timesteps to train on: importance sampling of t, with weights that keep the loss unbiased.

Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021), section 3.3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from guided_diffusion import dist_util


def create_named_schedule_sampler(name: str, diffusion: Any) -> ScheduleSampler:
    """The sampler over `diffusion.num_timesteps`: 'uniform' or 'loss-second-moment'. Raises ValueError otherwise."""
    samplers = {"uniform": UniformSampler, "loss-second-moment": LossSecondMomentResampler}
    if name not in samplers:
        raise ValueError(f"schedule_sampler {name!r}: expected one of {', '.join(samplers)}")
    return samplers[name](diffusion)


class ScheduleSampler(ABC):
    """A distribution over timesteps. Draws come from numpy's global generator, as published."""

    def __init__(self, diffusion: Any) -> None:
        self.num_timesteps: int = diffusion.num_timesteps

    @abstractmethod
    def weights(self) -> np.ndarray:
        """One positive weight for each timestep, (T,); they need not add up to 1."""

    def sample(self, batch_size: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw t (batch_size,) int64 and the importance weights 1 / (T p(t)) (batch_size,) float32."""
        weights = self.weights()
        p = weights / np.sum(weights)
        t = np.random.choice(len(p), size=(batch_size,), p=p)
        importance = 1 / (len(p) * p[t])
        return torch.from_numpy(t).long().to(device), torch.from_numpy(importance).float().to(device)


class UniformSampler(ScheduleSampler):
    """Every timestep alike."""

    def weights(self) -> np.ndarray:
        return np.ones(self.num_timesteps)


class LossAwareSampler(ScheduleSampler):
    """A sampler that follows the losses; the training loop reports them."""

    @abstractmethod
    def update_with_local_losses(self, local_t: torch.Tensor, local_losses: torch.Tensor) -> None:
        """Learn from this process's unweighted losses (N,) at timesteps (N,). Every process calls it at once."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """What the sampler has learnt."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state_dict` gave."""


class LossSecondMomentResampler(LossAwareSampler):
    """p(t) ∝ sqrt(E[L_t²]) over the last losses at each t; uniform until every t has a full history (eq. 18)."""

    def __init__(self, diffusion: Any, history_per_term: int = 10, uniform_prob: float = 0.001) -> None:
        super().__init__(diffusion)
        self.history_per_term = history_per_term
        self.uniform_prob = uniform_prob
        self._history = np.zeros((self.num_timesteps, history_per_term))  # the newest last
        self._counts = np.zeros(self.num_timesteps, dtype=np.int64)

    def weights(self) -> np.ndarray:
        if (self._counts < self.history_per_term).any():
            return np.ones(self.num_timesteps)
        weights = np.sqrt(np.mean(self._history**2, axis=-1))
        weights /= np.sum(weights)
        return weights * (1 - self.uniform_prob) + self.uniform_prob / self.num_timesteps

    def update_with_local_losses(self, local_t: torch.Tensor, local_losses: torch.Tensor) -> None:
        for t, losses in dist_util.gather((local_t.tolist(), local_losses.tolist())):
            self.update_with_all_losses(t, losses)

    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        """Append one loss for each timestep named; the oldest goes once the history is full."""
        for t, loss in zip(ts, losses, strict=True):
            if self._counts[t] == self.history_per_term:
                self._history[t, :-1] = self._history[t, 1:]
                self._history[t, -1] = loss
            else:
                self._history[t, self._counts[t]] = loss
                self._counts[t] += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"history": torch.from_numpy(self._history), "counts": torch.from_numpy(self._counts)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take up a history. Raises ValueError when it belongs to another number of timesteps."""
        history, counts = state["history"].numpy(), state["counts"].numpy()
        if history.shape != self._history.shape:
            raise ValueError(f"schedule sampler: history of shape {history.shape}, expected {self._history.shape}")
        self._history, self._counts = history.copy(), counts.copy()
