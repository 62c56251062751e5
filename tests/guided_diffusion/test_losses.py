"""Divergence and likelihood of the variational bound, against exact distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from guided_diffusion.losses import approx_standard_normal_cdf, discretized_gaussian_log_likelihood, normal_kl
from tests.helpers import rnd

LEVELS = torch.arange(256).double() / 127.5 - 1
"""The 8-bit grey levels on the scale [-1, 1]."""


def test_normal_kl_is_the_exact_one():
    mean1, logvar1, mean2, logvar2 = (rnd(seed, 4, 5).double() for seed in range(4))
    expected = kl_divergence(Normal(mean1, (0.5 * logvar1).exp()), Normal(mean2, (0.5 * logvar2).exp()))
    torch.testing.assert_close(normal_kl(mean1, logvar1, mean2, logvar2), expected)
    torch.testing.assert_close(normal_kl(mean1, 0.0, 0.0, 0.0), 0.5 * mean1**2)
    with pytest.raises(TypeError, match="at least one"):
        normal_kl(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (-0.99, 0.05), (0.7, 1.0)])
def test_grey_levels_have_probability_one_together(mean, std):
    means, log_scales = torch.full_like(LEVELS, mean), torch.full_like(LEVELS, std).log()
    likelihood = discretized_gaussian_log_likelihood(LEVELS, means=means, log_scales=log_scales).exp()
    assert likelihood.sum().item() == pytest.approx(1, abs=1e-6)
    exact = Normal(means, std)
    inner = (exact.cdf(LEVELS + 1 / 255) - exact.cdf(LEVELS - 1 / 255))[1:-1]
    torch.testing.assert_close(likelihood[1:-1], inner, atol=5e-4, rtol=0)  # the approximation's error
    x = torch.linspace(-5, 5, 101).double()
    torch.testing.assert_close(approx_standard_normal_cdf(x), Normal(0.0, 1.0).cdf(x), atol=3e-4, rtol=0)  # likewise


def test_impossible_levels_have_a_finite_likelihood():
    x = torch.tensor([0.9])
    likelihood = discretized_gaussian_log_likelihood(x, means=-x, log_scales=torch.tensor([-8.0]))
    torch.testing.assert_close(likelihood, torch.tensor([1e-12]).log())
