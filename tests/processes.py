"""Diffusion processes, and models whose behaviour in them is known."""

from __future__ import annotations

import numpy as np
import torch

from guided_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
)


def process(
    mean: ModelMeanType = ModelMeanType.EPSILON,
    variance: ModelVarType = ModelVarType.FIXED_SMALL,
    loss: LossType = LossType.MSE,
    betas: np.ndarray | None = None,
) -> GaussianDiffusion:
    betas = get_named_beta_schedule("linear", 50) if betas is None else betas
    return GaussianDiffusion(betas=betas, model_mean_type=mean, model_var_type=variance, loss_type=loss)


class Counted:
    """A model of one or two functions of (x, t), its outputs side by side, that counts its evaluations."""

    def __init__(self, *outputs) -> None:
        self.outputs, self.evaluations = outputs, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.evaluations += 1
        return torch.cat([output(x, t) for output in self.outputs], dim=1)


def wave(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x + t.view(-1, 1, 1, 1))


def gaussian_eps(diffusion: GaussianDiffusion, std: float):
    """The exact noise prediction for images drawn from N(0, std²): linear in x."""

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha_bar = torch.from_numpy(diffusion.alphas_cumprod).float()[t].view(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() * x / (alpha_bar * std**2 + 1 - alpha_bar)

    return eps
