"""Small pieces that network and losses share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

NORM_GROUPS = 32


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in the type of its parameters (float32), whatever the input's type."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x (N, C, ...); the result has the type of x."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def normalization(channels: int) -> GroupNorm32:
    """The group normalisation of the U-Net: 32 groups, eps 1e-5."""
    return GroupNorm32(NORM_GROUPS, channels, eps=1e-5)


def zero_module(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(timesteps: torch.Tensor, dim: int, max_period: float = 10000) -> torch.Tensor:
    """Sinusoidal embedding cat(cos, sin)(t · max_period^(-k/half)), k = 0 … half-1, half = dim // 2.

    Args:
        timesteps: (N,) integers or reals.

    Returns (N, dim) in float32; an odd dim ends in a column of zeros (Vaswani et al. 2017, section 3.5).
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) / half * k)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, 1)) if dim % 2 else embedding


def mean_flat(x: torch.Tensor) -> torch.Tensor:
    """Mean over all but the first dimension: (N, ...) -> (N,)."""
    return x.flatten(1).mean(dim=1)
