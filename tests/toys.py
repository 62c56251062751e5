"""Small stand-ins whose behaviour is known: a counting model, a short process, the plain loop of the paper."""

from __future__ import annotations

import torch
from torch import nn

from guided_diffusion.respace import SpacedDiffusion
from guided_diffusion.script_util import create_gaussian_diffusion


class CountingModel(nn.Module):
    """A pixelwise "U-Net" with learned sigma that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluations = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.evaluations += 1
        level = t.float().view(-1, 1, 1, 1) / 500
        return torch.cat([torch.sin(2 * x + level), torch.cos(x - level)], dim=1)


class ToyPull:
    """Gradients in closed form: towards grey at the clean estimate, a constant step at the noisy image."""

    def class_gradient(self, x_t: torch.Tensor, wrt: torch.Tensor | None = None) -> torch.Tensor:
        return x_t - 0.3

    def perceptual_gradient(self, x_t: torch.Tensor) -> float:
        return 0.0

    def distance_gradient(self, z_t: torch.Tensor) -> torch.Tensor:
        return 0.1 * z_t.sign()


def toy_diffusion(timesteps: int) -> SpacedDiffusion:
    """A process of this many respaced timesteps, of 500."""
    return create_gaussian_diffusion(steps=500, learn_sigma=True, timestep_respacing=str(timesteps))


def plain_loop(
    model: nn.Module,
    diffusion: SpacedDiffusion,
    x: torch.Tensor,
    tau: int,
    pull: ToyPull,
    seed: int,
    clip: bool = True,
    stochastic: bool = True,
    guided_iterations: int = 9_999_999,
) -> torch.Tensor:
    """Section 1 of the paper's algorithm as it is written down, every evaluation made, on torch's global generator."""

    def at(i: int) -> torch.Tensor:
        return torch.full((len(x),), i)

    torch.manual_seed(seed)
    z, x_t = diffusion.q_sample(x, at(tau), noise=torch.randn_like(x)), x
    for step, i in enumerate(reversed(range(tau))):
        p = diffusion.p_mean_variance(model, z, at(i), clip_denoised=clip)
        mean, eps = p["mean"], torch.randn_like(z)
        if step < guided_iterations:
            root = float(diffusion.sqrt_alphas_cumprod[i])
            g_dist = pull.distance_gradient(z) + pull.perceptual_gradient(x_t) / root
            mean = mean - p["variance"] * (pull.class_gradient(x_t) / root + g_dist)
        z = mean + (0.5 * p["log_variance"]).exp() * eps if i > 0 else mean
        if i > 0 and step < guided_iterations:
            x_t = z
            for j in reversed(range(i)):
                if stochastic:
                    x_t = diffusion.p_sample(model, x_t, at(j))["sample"]
                else:
                    x_t = diffusion.p_mean_variance(model, x_t, at(j))["mean"]
    return z
