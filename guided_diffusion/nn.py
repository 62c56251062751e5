"""Small pieces that network, losses and training share, and the names that scripts import beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

linear, SiLU = nn.Linear, nn.SiLU
"""Torch's own, under the names that scripts import from here."""

NORM_GROUPS = 32


class GroupNorm32(nn.GroupNorm):
    """Group normalisation with the statistics and arithmetic of its parameters (float32), whatever the input's type."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Normalise x (N, C, ...), the result in the type of x; then times 1 + scale plus shift, where they are given.

        scale, shift: (N, C), or (1, C) for all images: then they join the norm's own parameters and cost nothing.
        """
        weight, bias = self.weight, self.bias
        if scale is not None and len(scale) == 1:
            weight, bias = weight * (1 + scale[0]), torch.addcmul(shift[0], bias, 1 + scale[0])
            scale = None
        on_cpu, dtype = x.device.type == "cpu", x.dtype
        if not on_cpu and not torch.is_grad_enabled():
            weight, bias = weight.to(dtype), bias.to(dtype)  # the kernel computes in float32 inside
        elif not on_cpu or x.shape[2:].numel() < 1024:
            x = x.to(weight.dtype)
        # else the CPU's kernel takes half-precision features and float32 parameters; it pays from 1024 pixels: on
        # fewer, channels-last, it is five times slower than casts (torch 2.15)
        y = F.group_norm(x, self.num_groups, weight, bias, self.eps).to(dtype)
        if scale is None:
            return y
        scale, shift = (values.to(dtype)[..., None, None] for values in (scale, shift))
        return torch.addcmul(shift, y, 1 + scale)


class SiLUInPlace(nn.SiLU):
    """SiLU of an intermediate result: where no gradient is needed, it takes that result's memory."""

    def forward(self, x: Tensor) -> Tensor:
        """x · sigmoid(x), of any shape."""
        return F.silu(x, inplace=not torch.is_grad_enabled())


def own_precision(x: Tensor) -> torch.autocast:
    """A context in which layers compute in the type of their weights, whatever torch.autocast says around it.

    For linear layers and head, float32 in half precision too: the head's gradient times 2^20 is no float16.
    """
    return torch.autocast(x.device.type, enabled=False)


def normalization(channels: int, groups: int = NORM_GROUPS, eps: float = 1e-5) -> GroupNorm32:
    """The group normalisation of the U-Net."""
    return GroupNorm32(groups, channels, eps=eps)


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution over signals (dims 1), images (2) or volumes (3)."""
    return {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Average pooling over signals (dims 1), images (2) or volumes (3)."""
    return {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](*args, **kwargs)


def zero_module(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@torch.no_grad()
def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """Multiply a module's parameters by a number and return it."""
    for parameter in module.parameters():
        parameter.mul_(scale)
    return module


@torch.no_grad()
def update_ema(target_params: Iterable[Tensor], source_params: Iterable[Tensor], rate: float = 0.99) -> None:
    """Move averaged parameters towards current ones: target = rate · target + (1 - rate) · source."""
    torch._foreach_lerp_(list(target_params), list(source_params), 1 - rate)


def checkpoint(
    func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[Tensor] = (), flag: bool = True
) -> Any:
    """func(*inputs); with flag, its activations are recomputed in the backward pass instead of kept.

    params: accepted as published; the parameters that func uses get their gradients without being listed.
    """
    if flag and torch.is_grad_enabled():
        return recomputed(func, *inputs, use_reentrant=False)
    return func(*inputs)


def timestep_embedding(
    timesteps: Tensor, dim: int, max_period: float = 10000, *, sin_first: bool = False, freq_shift: float = 0.0
) -> Tensor:
    """Sinusoidal embedding cat(cos, sin)(t · max_period^(-k/half)), k = 0 … half-1, half = dim // 2.

    Args:
        timesteps: (N,) integers or reals.
        sin_first: cat(sin, cos) instead. freq_shift: the exponent is -k / (half - freq_shift).

    Returns (N, dim) in float32; an odd dim ends in a column of zeros (Vaswani et al. 2017, section 3.5).
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) / (half - freq_shift) * k)
    halves = (angles.sin(), angles.cos()) if sin_first else (angles.cos(), angles.sin())
    embedding = torch.cat(halves, dim=-1)
    return F.pad(embedding, (0, 1)) if dim % 2 else embedding


def mean_flat(tensor: Tensor) -> Tensor:
    """Mean over all but the first dimension: (N, ...) -> (N,)."""
    return tensor.flatten(1).mean(dim=1)
