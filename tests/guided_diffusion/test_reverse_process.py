"""A step back: what a network's output means, and how gradients shift it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import ModelMeanType, ModelVarType
from tests.helpers import rnd
from tests.processes import Counted, process, wave


def test_interpreting_an_output_is_p_mean_variance_and_draws_nothing():
    diffusion = process(variance=ModelVarType.LEARNED_RANGE)
    model = Counted(wave, wave)
    x, t = rnd(0, 2, 3, 4, 4), torch.tensor([0, 30])
    state = torch.get_rng_state()
    output = diffusion.model_output(model, x, t)
    shared = [diffusion.interpret_output(output, x, t, clip_denoised=clip) for clip in (True, False)]
    assert model.evaluations == 1
    for clip, interpreted in zip((True, False), shared, strict=True):
        expected = diffusion.p_mean_variance(model, x, t, clip_denoised=clip)
        assert expected.keys() == {"mean", "variance", "log_variance", "pred_xstart"}
        assert all(torch.equal(interpreted[name], expected[name]) for name in expected)
    assert shared[0]["pred_xstart"].abs().max() == 1 < shared[1]["pred_xstart"].abs().max()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_every_kind_of_prediction_means_the_same_step(mean_type):
    x_start, eps, t = rnd(0, 2, 3, 4, 4).clamp(-1, 1), rnd(1, 2, 3, 4, 4), torch.tensor([1, 30])
    diffusion = process(mean=mean_type)
    x_t = diffusion.q_sample(x_start, t, noise=eps)
    mean, variance, log_variance = diffusion.q_posterior_mean_variance(x_start, x_t, t)
    alpha_bar = torch.from_numpy(diffusion.alphas_cumprod).float()[t].view(-1, 1, 1, 1)
    output = {
        ModelMeanType.START_X: x_start,
        ModelMeanType.EPSILON: eps,
        ModelMeanType.PREVIOUS_X: mean,
        ModelMeanType.V: alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_start,  # Salimans and Ho 2022, appendix D
    }[mean_type]
    p = diffusion.interpret_output(output, x_t, t)
    torch.testing.assert_close(p["pred_xstart"], x_start, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p["mean"], mean, rtol=1e-4, atol=1e-4)
    assert torch.equal(p["variance"], variance) and torch.equal(p["log_variance"], log_variance)


def test_learned_variance_lies_between_the_fixed_ones():
    x, t = rnd(0, 1, 1, 2, 2), torch.tensor([9])
    for v, kind in ((-1.0, ModelVarType.FIXED_SMALL), (1.0, ModelVarType.FIXED_LARGE)):
        output = torch.cat([x, torch.full_like(x, v)], dim=1)
        learned = process(variance=ModelVarType.LEARNED_RANGE).interpret_output(output, x, t)
        fixed = process(variance=kind).interpret_output(x, x, t)
        torch.testing.assert_close(learned["log_variance"], fixed["log_variance"])
        torch.testing.assert_close(learned["variance"], fixed["variance"])
    learned = process(variance=ModelVarType.LEARNED).interpret_output(output, x, t)
    assert torch.equal(learned["log_variance"], torch.ones_like(x))
    torch.testing.assert_close(learned["variance"], torch.full_like(x, math.e))


def test_denoised_fn_comes_before_clipping():
    diffusion = process(mean=ModelMeanType.START_X)
    x, t = torch.full((1, 3, 2, 2), 0.4), torch.tensor([9])
    p = diffusion.p_mean_variance(lambda x, t: x, x, t, denoised_fn=lambda x_start: 5 * x_start)
    assert torch.equal(p["pred_xstart"], torch.ones_like(x))
    p = diffusion.p_mean_variance(lambda x, t: x, x, t, clip_denoised=False, denoised_fn=lambda x_start: 5 * x_start)
    torch.testing.assert_close(p["pred_xstart"], torch.full_like(x, 2.0))


def test_an_output_of_the_wrong_width_is_refused():
    x, t = rnd(0, 1, 3, 4, 4), torch.tensor([1])
    with pytest.raises(ValueError, match=r"\(1, 6, 4, 4\) where \(1, 3, 4, 4\) .* learn_sigma False"):
        process().p_mean_variance(Counted(wave, wave), x, t)
    with pytest.raises(ValueError, match="learn_sigma True"):
        process(variance=ModelVarType.LEARNED_RANGE).training_losses(Counted(wave), x, t)


def test_condition_mean_adds_the_gradient():
    diffusion = process()
    x, t = rnd(0, 2, 3, 4, 4), torch.tensor([5, 30])
    p = diffusion.p_mean_variance(wave, x, t)
    torch.testing.assert_close(diffusion.condition_mean(wave, p, x, t), p["mean"] + p["variance"] * wave(x, t))
    torch.manual_seed(0)
    free = diffusion.p_sample(wave, x, t)["sample"]
    torch.manual_seed(0)
    guided = diffusion.p_sample(wave, x, t, cond_fn=wave)["sample"]
    torch.testing.assert_close(guided - free, p["variance"] * wave(x, t), rtol=1e-4, atol=1e-6)


def test_condition_score_shifts_the_noise():
    diffusion = process()
    x, t = rnd(0, 2, 3, 4, 4), torch.tensor([5, 30])
    p = diffusion.p_mean_variance(wave, x, t, clip_denoised=False)
    shifted = diffusion.condition_score(wave, p, x, t)
    sigma = torch.tensor(np.sqrt(1 - diffusion.alphas_cumprod[[5, 30]])).float().view(-1, 1, 1, 1)
    eps = wave(x, t) - sigma * wave(x, t)
    torch.testing.assert_close(shifted["pred_xstart"], diffusion.xstart_from_eps(x, t, eps), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shifted["mean"], diffusion.posterior_mean(shifted["pred_xstart"], x, t))
    sample = diffusion.ddim_sample(wave, x, t, clip_denoised=False, cond_fn=wave)
    assert torch.equal(sample["pred_xstart"], shifted["pred_xstart"])
