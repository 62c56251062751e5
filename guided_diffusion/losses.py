"""Divergences and likelihoods of the variational bound."""

import math

import torch
from torch import Tensor

BIN_HALF_WIDTH = 1 / 255
"""Half of one of the 256 grey levels on the scale [-1, 1]."""


def normal_kl(mean1: Tensor | float, logvar1: Tensor | float, mean2: Tensor | float, logvar2: Tensor | float) -> Tensor:
    """KL(N(mean1, exp logvar1) || N(mean2, exp logvar2)) element by element, in nats; arguments broadcast.

    Raises TypeError when none of the arguments is a tensor.
    """
    like = next((v for v in (mean1, logvar1, mean2, logvar2) if isinstance(v, Tensor)), None)
    if like is None:
        raise TypeError("normal_kl: at least one argument must be a tensor")
    logvar1, logvar2 = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (logvar1, logvar2))
    squared_distance = (mean1 - mean2) ** 2
    return 0.5 * (logvar2 - logvar1 - 1 + torch.exp(logvar1 - logvar2) + squared_distance * torch.exp(-logvar2))


def approx_standard_normal_cdf(x: Tensor) -> Tensor:
    """The standard normal distribution function, by its tanh approximation."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, *, means: Tensor, log_scales: Tensor) -> Tensor:
    """Log-probability, in nats, of 8-bit images x in [-1, 1] under a Gaussian integrated over each grey level.

    The first and the last level reach to infinity (Ho et al. 2020, equation 13). log_scales: logarithm of the
    standard deviations. All have the same shape, any.
    """
    centred = x - means
    inverse_std = torch.exp(-log_scales)
    cdf_above = approx_standard_normal_cdf(inverse_std * (centred + BIN_HALF_WIDTH))
    cdf_below = approx_standard_normal_cdf(inverse_std * (centred - BIN_HALF_WIDTH))
    upper = torch.where(x > 0.999, 1.0, cdf_above)
    lower = torch.where(x < -0.999, 0.0, cdf_below)
    return torch.log((upper - lower).clamp(min=1e-12))
