"""Schedules, the noising process and its posterior, against published figures and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import betas_for_alpha_bar, get_named_beta_schedule
from tests.helpers import golden, rnd
from tests.processes import process


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [500, 1000])
def test_betas_are_the_published_ones(schedule, steps):
    expected = golden("diffusion")[f"betas_{schedule}_{steps}"]
    np.testing.assert_allclose(get_named_beta_schedule(schedule, steps), expected, rtol=1e-12)


def test_alpha_bar_is_followed_up_to_the_largest_beta():
    betas = betas_for_alpha_bar(10, lambda u: (1 - u) ** 2, max_beta=0.7)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:8], [(1 - i / 10) ** 2 for i in range(1, 9)])
    assert betas[-1] == 0.7


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        ("sigmoid", 100, "--noise_schedule 'sigmoid' is unknown: expected linear or cosine"),
        ("linear", 10, "--diffusion_steps 10: the linear schedule needs at least 21"),
        ("cosine", 0, "--diffusion_steps 0: expected at least 1"),
    ],
)
def test_impossible_schedules_are_refused(schedule, steps, message):
    with pytest.raises(ValueError, match=message):
        get_named_beta_schedule(schedule, steps)


@pytest.mark.parametrize("betas", [[], [0.1, 0.0], [1.1], [[0.1]], [math.nan]])
def test_betas_out_of_range_are_refused(betas):
    with pytest.raises(ValueError, match="betas"):
        process(betas=np.array(betas))


def test_schedule_arrays_are_float64_and_their_entries_rounded_once():
    diffusion = process()
    arrays = {name: array for name, array in vars(diffusion).items() if isinstance(array, np.ndarray)}
    published = """betas alphas_cumprod alphas_cumprod_prev alphas_cumprod_next sqrt_alphas_cumprod
    sqrt_one_minus_alphas_cumprod log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod
    posterior_variance posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2"""
    assert set(published.split()) <= arrays.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float64 and array.shape == (50,)
        entries = diffusion.at(name, torch.arange(50), like=torch.empty(50, 3, 4, 4))
        assert entries.shape == (50, 1, 1, 1) and entries.dtype == torch.float32
        assert torch.equal(entries.flatten(), torch.from_numpy(array).float())
    assert diffusion.posterior_variance[0] == 0
    assert diffusion.posterior_log_variance_clipped[0] == diffusion.posterior_log_variance_clipped[1]


def test_q_sample_has_the_moments_of_q():
    diffusion = process()
    x_start, t = torch.full((20_000, 1), 0.5), torch.full((20_000,), 20)
    torch.manual_seed(0)
    sample = diffusion.q_sample(x_start, t)
    mean, variance, log_variance = (value[0].item() for value in diffusion.q_mean_variance(x_start, t))
    assert mean == pytest.approx(0.5 * math.sqrt(diffusion.alphas_cumprod[20]))
    assert variance == pytest.approx(1 - diffusion.alphas_cumprod[20])
    assert log_variance == pytest.approx(math.log(variance), rel=1e-5)
    assert sample.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / 20_000))
    assert sample.var().item() == pytest.approx(variance, rel=0.05)  # standard error: 1 %


@pytest.mark.parametrize("i", [1, 17, 49])
def test_q_posterior_is_bayes_rule(i):
    diffusion = process()
    x_start, x_t = rnd(0, 1, 3, 4, 4).double(), rnd(1, 1, 3, 4, 4).double()
    mean, variance, log_variance = diffusion.q_posterior_mean_variance(x_start, x_t, torch.tensor([i]))
    # q(x_t | x_{t-1}) times q(x_{t-1} | x_0): precisions add, means are weighted by them.
    beta, alpha_bar_prev = diffusion.betas[i], diffusion.alphas_cumprod[i - 1]
    precision = (1 - beta) / beta + 1 / (1 - alpha_bar_prev)
    weighted = math.sqrt(1 - beta) / beta * x_t + math.sqrt(alpha_bar_prev) / (1 - alpha_bar_prev) * x_start
    torch.testing.assert_close(mean, weighted / precision, rtol=1e-5, atol=1e-6)  # float32 coefficients
    torch.testing.assert_close(variance, torch.full_like(variance, 1 / precision))
    torch.testing.assert_close(log_variance, torch.full_like(variance, -math.log(precision)))


def test_noise_and_clean_image_determine_each_other():
    diffusion = process()
    x_start, eps, t = rnd(0, 3, 3, 4, 4), rnd(1, 3, 3, 4, 4), torch.tensor([0, 20, 49])
    x_t = diffusion.q_sample(x_start, t, noise=eps)
    # At index 0 the noise is a hundredth of the image, at 49 the other way round: two digits are lost.
    torch.testing.assert_close(diffusion.xstart_from_eps(x_t, t, eps), x_start, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(diffusion.eps_from_xstart(x_t, t, x_start), eps, rtol=1e-4, atol=1e-4)
