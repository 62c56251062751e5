"""Which timesteps to train on: importance sampling of t, with weights that keep the loss unbiased.

Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021), section 3.3.
"""

from typing import Any

import numpy as np
import torch

from guided_diffusion import dist_util


def create_named_schedule_sampler(name: str, diffusion: Any) -> "ScheduleSampler":
    """The sampler over `diffusion.num_timesteps` of this name, one of SAMPLERS. Raises ValueError otherwise."""
    if name not in SAMPLERS:
        raise ValueError(f"schedule_sampler {name!r}: expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name](diffusion)


class ScheduleSampler:
    """A distribution over timesteps, here of all alike. Draws come from numpy's global generator, as published."""

    def __init__(self, diffusion: Any) -> None:
        self.num_timesteps: int = diffusion.num_timesteps

    def weights(self) -> np.ndarray:
        """One positive weight for each timestep, (T,); they need not add up to 1."""
        return np.ones(self.num_timesteps)

    def sample(self, batch_size: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw t (batch_size,) int64 and the importance weights 1 / (T p(t)) (batch_size,) float32."""
        weights = self.weights()
        p = weights / np.sum(weights)
        t = np.random.choice(len(p), size=(batch_size,), p=p)
        importance = 1 / (len(p) * p[t])
        return torch.from_numpy(t).long().to(device), torch.from_numpy(importance).float().to(device)


class UniformSampler(ScheduleSampler):
    """Every timestep alike."""


class LossAwareSampler(ScheduleSampler):
    """A sampler that follows the last losses at each timestep, of all processes; the training reports them."""

    def __init__(self, diffusion: Any, history_per_term: int = 10) -> None:
        super().__init__(diffusion)
        self.history_per_term = history_per_term
        self._history = np.zeros((self.num_timesteps, history_per_term))  # the newest last
        self._counts = np.zeros(self.num_timesteps, dtype=np.int64)

    @property
    def warmed_up(self) -> bool:
        """Whether every timestep has a full history."""
        return bool((self._counts == self.history_per_term).all())

    def update_with_local_losses(self, local_ts: torch.Tensor, local_losses: torch.Tensor) -> None:
        """Learn from this process's unweighted losses (N,) at timesteps (N,). Every process calls it at once."""
        for ts, losses in dist_util.gather((local_ts.tolist(), local_losses.tolist())):
            self.update_with_all_losses(ts, losses)

    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        """Append one loss for each timestep named; the oldest goes once the history is full."""
        for t, loss in zip(ts, losses, strict=True):
            if self._counts[t] == self.history_per_term:
                self._history[t, :-1] = self._history[t, 1:]
            else:
                self._counts[t] += 1
            self._history[t, self._counts[t] - 1] = loss

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The history, and how many losses it holds at each timestep."""
        return {"history": torch.from_numpy(self._history), "counts": torch.from_numpy(self._counts)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore a history. Raises ValueError when it belongs to another number of timesteps."""
        history, counts = state["history"].numpy(), state["counts"].numpy()
        if history.shape != self._history.shape:
            raise ValueError(f"schedule sampler: history of shape {history.shape}, expected {self._history.shape}")
        self._history, self._counts = history.copy(), counts.copy()


class LossSecondMomentResampler(LossAwareSampler):
    """p(t) ∝ sqrt(E[L_t²]) over the last losses at each t; uniform until every t has a full history (eq. 18)."""

    def __init__(self, diffusion: Any, history_per_term: int = 10, uniform_prob: float = 0.001) -> None:
        super().__init__(diffusion, history_per_term)
        self.uniform_prob = uniform_prob

    def weights(self) -> np.ndarray:
        """See the class, (T,)."""
        if not self.warmed_up:
            return super().weights()
        weights = np.sqrt(np.mean(self._history**2, axis=-1))
        weights /= np.sum(weights)
        return weights * (1 - self.uniform_prob) + self.uniform_prob / self.num_timesteps


class LossBalancingSampler(LossAwareSampler):
    """Every timestep alike, and every timestep's share of the loss too: its weight is the inverse of its mean loss.

    Not unbiased, and not meant to be: at large t the loss of ε is small whatever the network does, and what is wrong
    there is learnt last although sampling settles it first (docs/training.md). The balance is that of the learnt
    uncertainties of Karras et al. 2024 (Analyzing and Improving the Training Dynamics of Diffusion Models), with the
    last losses in place of a network.
    """

    def sample(self, batch_size: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw t (batch_size,) int64 uniformly, and weights (batch_size,) float32 with mean 1 over all t."""
        t, weights = super().sample(batch_size, device)
        if self.warmed_up:
            inverse = 1 / np.mean(self._history, axis=-1)
            weights *= torch.from_numpy(inverse / inverse.mean()).float().to(device)[t]
        return t, weights


SAMPLERS = {
    "uniform": UniformSampler,
    "loss-second-moment": LossSecondMomentResampler,
    "loss-balancing": LossBalancingSampler,
}
