"""Small stand-ins whose behaviour is known: a counting model, gradients in closed form, a short process."""

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
