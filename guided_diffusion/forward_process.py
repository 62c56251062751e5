"""The noising half of a diffusion process: what the schedule alone fixes, without a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> np.ndarray:
    """β of a named schedule, (num_diffusion_timesteps,) in float64.

    "linear" is that of Ho et al. 2020, its limits scaled to the number of steps; "cosine" is Nichol and Dhariwal
    2021, equation 17. Raises ValueError for another name and for too few steps.
    """
    if num_diffusion_timesteps < 1:
        raise ValueError(f"--diffusion_steps {num_diffusion_timesteps}: expected at least 1")
    if schedule_name == "linear":
        scale = 1000 / num_diffusion_timesteps
        if scale * 0.02 >= 1:
            raise ValueError(f"--diffusion_steps {num_diffusion_timesteps}: the linear schedule needs at least 21")
        return np.linspace(scale * 1e-4, scale * 0.02, num_diffusion_timesteps, dtype=np.float64)
    if schedule_name == "cosine":
        return betas_for_alpha_bar(num_diffusion_timesteps, lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2)
    raise ValueError(f"--noise_schedule {schedule_name!r} is unknown: expected linear or cosine")


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> np.ndarray:
    """β whose cumulated product of 1 - β follows alpha_bar, a function of time from 0 to 1.

    max_beta keeps the last steps from being singular. Returns (num_diffusion_timesteps,) in float64.
    """
    times = [i / num_diffusion_timesteps for i in range(num_diffusion_timesteps + 1)]
    betas = [1 - alpha_bar(end) / alpha_bar(start) for start, end in pairwise(times)]
    return np.minimum(betas, max_beta)


class ForwardProcess:
    """q(x_t | x_0) of a schedule, its posterior, and the ways between x_0, ε and x_t (Ho et al. 2020, section 2).

    Images are float tensors (N, ...); t is (N,), integer indices 0 … num_timesteps - 1, on the same device. The
    schedule's arrays are public: float64, of length num_timesteps.

    Args:
        betas: β, (num_timesteps,), in (0, 1].
    """

    def __init__(self, betas: np.ndarray) -> None:
        self.betas = betas = np.array(betas, dtype=np.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError("betas: expected a list of numbers above 0 and up to 1")
        self.num_timesteps = len(betas)
        alphas = 1.0 - betas
        self.alphas_cumprod = np.cumprod(alphas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.alphas_cumprod_next = np.append(self.alphas_cumprod[1:], 0.0)

        self.one_minus_alphas_cumprod = 1.0 - self.alphas_cumprod
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(self.one_minus_alphas_cumprod)
        self.log_one_minus_alphas_cumprod = np.log(self.one_minus_alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1)

        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / self.one_minus_alphas_cumprod
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / self.one_minus_alphas_cumprod
        self.posterior_mean_coef2 = (1.0 - self.alphas_cumprod_prev) * np.sqrt(alphas) / self.one_minus_alphas_cumprod
        # The first posterior variance is 0, which has no logarithm: the second stands in (β where it is alone).
        first = self.posterior_variance[1] if self.num_timesteps > 1 else betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(first, self.posterior_variance[1:]))
        self.log_betas = np.log(betas)
        self.fixed_large_variance = np.append(first, betas[1:])
        self.fixed_large_log_variance = np.log(self.fixed_large_variance)
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Entries t of the schedule array `name` in float32, (N, 1, ...), to broadcast against `like`."""
        key = (name, t.device)
        if key not in self._tables:  # once per device: sampling loops copy nothing between host and device
            self._tables[key] = torch.from_numpy(getattr(self, name)).float().to(t.device)
        return self._tables[key][t].view(-1, *[1] * (like.dim() - 1))

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_t | x_0), each shaped like x_start."""
        return (
            self.at("sqrt_alphas_cumprod", t, x_start) * x_start,
            self.at("one_minus_alphas_cumprod", t, x_start).expand_as(x_start),
            self.at("log_one_minus_alphas_cumprod", t, x_start).expand_as(x_start),
        )

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """A draw from q(x_t | x_0): sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε, with ε = noise or fresh."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return (
            self.at("sqrt_alphas_cumprod", t, x_start) * x_start
            + self.at("sqrt_one_minus_alphas_cumprod", t, x_start) * noise
        )

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0), each shaped like x_t (equation 6)."""
        return (
            self.posterior_mean(x_start, x_t, t),
            self.at("posterior_variance", t, x_t).expand_as(x_t),
            self.at("posterior_log_variance_clipped", t, x_t).expand_as(x_t),
        )

    def posterior_mean(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0) (equation 7)."""
        return self.at("posterior_mean_coef1", t, x_t) * x_start + self.at("posterior_mean_coef2", t, x_t) * x_t

    def xstart_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The x_0 that noise ε turned into x_t."""
        return self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - self.at("sqrt_recipm1_alphas_cumprod", t, x_t) * eps

    def eps_from_xstart(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """The noise ε that turned x_0 into x_t."""
        return (self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - x_start) / self.at(
            "sqrt_recipm1_alphas_cumprod", t, x_t
        )
