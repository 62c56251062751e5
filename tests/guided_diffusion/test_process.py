"""Schedules, noising and its posterior, and a step back: published figures, closed forms, how gradients shift it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import (
    LossType,
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    get_named_beta_schedule,
)
from tests.helpers import golden, rnd
from tests.toys import Counted, process, wave

X, T = rnd(0, 2, 3, 4, 4), torch.tensor([5, 30])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [500, 1000])
def test_betas_are_the_published_ones(schedule, steps):
    expected = golden("diffusion")[f"betas_{schedule}_{steps}"]
    np.testing.assert_allclose(get_named_beta_schedule(schedule, steps), expected, rtol=1e-12)


def test_alpha_bar_is_followed_up_to_the_largest_beta():
    betas = betas_for_alpha_bar(10, lambda u: (1 - u) ** 2, max_beta=0.7)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:8], [(1 - i / 10) ** 2 for i in range(1, 9)])
    assert betas[-1] == 0.7


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
    mean, variance, log_variance = diffusion.q_mean_variance(X, T)
    assert torch.equal(mean, diffusion.q_sample(X, T, torch.zeros_like(X)))
    torch.testing.assert_close(variance[:, 0, 0, 0].double(), torch.from_numpy(1 - diffusion.alphas_cumprod[T]))
    torch.testing.assert_close(log_variance, variance.log())


def test_interpreting_an_output_is_p_mean_variance_and_draws_nothing():
    diffusion = process(variance=ModelVarType.LEARNED_RANGE)
    model = Counted(wave, wave)
    state = torch.get_rng_state()
    output = diffusion.model_output(model, X, T)
    clipped, free = (diffusion.interpret_output(output, X, T, clip_denoised=clip) for clip in (True, False))
    assert model.evaluations == 1
    assert clipped["pred_xstart"].abs().max() == 1 < free["pred_xstart"].abs().max()
    for clip, interpreted in ((True, clipped), (False, free)):
        expected = diffusion.p_mean_variance(model, X, T, clip_denoised=clip)
        assert expected.keys() == {"mean", "variance", "log_variance", "pred_xstart"}
        assert all(torch.equal(interpreted[name], expected[name]) for name in expected)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_every_kind_of_prediction_means_the_same_step(mean_type):
    x_start, eps, t = X.clamp(-1, 1), rnd(1, 2, 3, 4, 4), torch.tensor([1, 30])
    diffusion = process(mean=mean_type)
    x_t = diffusion.q_sample(x_start, t, noise=eps)
    mean, variance, log_variance = diffusion.q_posterior_mean_variance(x_start, x_t, t)
    x_share, eps_share = (
        diffusion.at(name, t, x_t) for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    )
    output = {
        ModelMeanType.START_X: x_start,
        ModelMeanType.EPSILON: eps,
        ModelMeanType.PREVIOUS_X: mean,
        ModelMeanType.V: x_share * eps - eps_share * x_start,  # Salimans and Ho 2022, appendix D
    }[mean_type]
    p = diffusion.interpret_output(output, x_t, t)
    torch.testing.assert_close(p["pred_xstart"], x_start, rtol=1e-4, atol=1e-4)  # float32, divided by sqrt(ᾱ)
    torch.testing.assert_close(p["mean"], mean, rtol=1e-4, atol=1e-4)
    assert torch.equal(p["variance"], variance) and torch.equal(p["log_variance"], log_variance)
    # A perfect prediction has no loss, and the bound's terms vanish as well: the step back is the posterior.
    losses = diffusion.training_losses(lambda x, t: output, x_start, t, noise=eps)
    assert losses.keys() == {"loss", "mse"} and losses["loss"].abs().max() == 0
    bound = process(mean_type, loss=LossType.KL).training_losses(lambda x, t: output, x_start, t, noise=eps)
    assert bound.keys() == {"loss"} and bound["loss"].abs().max() < 1e-4


def test_learned_variance_lies_between_the_fixed_ones():
    x, t = rnd(0, 1, 1, 2, 2), torch.tensor([9])
    for v, kind in ((-1.0, ModelVarType.FIXED_SMALL), (1.0, ModelVarType.FIXED_LARGE)):
        output = torch.cat([x, torch.full_like(x, v)], dim=1)
        learned = process(variance=ModelVarType.LEARNED_RANGE).interpret_output(output, x, t)
        fixed = process(variance=kind).interpret_output(x, x, t)
        torch.testing.assert_close(learned, fixed)
    learned = process(variance=ModelVarType.LEARNED).interpret_output(output, x, t)
    assert torch.equal(learned["log_variance"], torch.ones_like(x))
    torch.testing.assert_close(learned["variance"], torch.full_like(x, math.e))


@pytest.mark.parametrize(("clip", "expected"), [(True, 1.0), (False, 2.0)])
def test_denoised_fn_comes_before_clipping(clip, expected):
    x = torch.full((1, 3, 2, 2), 0.4)
    p = process(mean=ModelMeanType.START_X).p_mean_variance(
        lambda x, t: x, x, torch.tensor([9]), clip_denoised=clip, denoised_fn=lambda x_start: 5 * x_start
    )
    torch.testing.assert_close(p["pred_xstart"], torch.full_like(x, expected))


def test_an_output_of_the_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 6, 4, 4\) where \(2, 3, 4, 4\) .* learn_sigma False"):
        process().p_mean_variance(Counted(wave, wave), X, T)
    with pytest.raises(ValueError, match="learn_sigma True"):
        process(variance=ModelVarType.LEARNED_RANGE).training_losses(Counted(wave), X, T)


def test_a_gradient_is_added_to_the_mean_and_shifts_the_noise():
    diffusion = process()
    p = diffusion.p_mean_variance(wave, X, T, clip_denoised=False)
    torch.testing.assert_close(diffusion.condition_mean(wave, p, X, T), p["mean"] + p["variance"] * wave(X, T))
    samples = []
    for cond_fn in (None, wave):
        torch.manual_seed(0)
        samples.append(diffusion.p_sample(wave, X, T, cond_fn=cond_fn)["sample"])
    # differences of float32 numbers near 1
    torch.testing.assert_close(samples[1] - samples[0], p["variance"] * wave(X, T), rtol=1e-4, atol=1e-6)

    shifted = diffusion.condition_score(wave, p, X, T)
    sigma = torch.tensor(np.sqrt(1 - diffusion.alphas_cumprod[T])).float().view(-1, 1, 1, 1)
    eps = wave(X, T) - sigma * wave(X, T)
    torch.testing.assert_close(shifted["pred_xstart"], diffusion.xstart_from_eps(X, T, eps), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shifted["mean"], diffusion.posterior_mean(shifted["pred_xstart"], X, T))
    sample = diffusion.ddim_sample(wave, X, T, clip_denoised=False, cond_fn=wave)
    assert torch.equal(sample["pred_xstart"], shifted["pred_xstart"])
