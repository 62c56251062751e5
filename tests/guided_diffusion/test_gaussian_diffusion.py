"""Diffusion processes: published figures, closed forms, what is drawn and evaluated, gradients, and shorter ones."""

import functools
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
from guided_diffusion.losses import discretized_gaussian_log_likelihood, normal_kl
from guided_diffusion.respace import SpacedDiffusion, space_timesteps
from guided_diffusion.script_util import create_gaussian_diffusion, create_model_and_diffusion
from guided_diffusion.unet import UNetModel
from tests.helpers import BASE, fill_, golden, relative_error, rnd
from tests.toys import Counted, gaussian_eps, process, wave

VARIANTS = {
    "learned": {},
    "fixed": {"learn_sigma": False},
    "xstart": {"predict_xstart": True},
    "kl": {"use_kl": True},
    "rescaled": {"rescale_learned_sigmas": True, "rescale_timesteps": True},
}
"""Flags behind diffusion.npz, where they differ from BASE."""

ROUNDING = 2e-5
"""Float32 sums in another order, relative to the largest value."""


@functools.cache
def unet(learn_sigma: bool) -> UNetModel:
    return fill_(create_model_and_diffusion(**{**BASE, "learn_sigma": learn_sigma})[0]).requires_grad_(False)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_steps_and_losses_are_the_published_ones(variant):
    figures = golden("diffusion")
    flags = {**BASE, **VARIANTS[variant]}
    model = unet(flags["learn_sigma"])
    _, diffusion = create_model_and_diffusion(**flags)
    x, t = rnd(6, 2, 3, 64, 64), torch.tensor([0, 31])
    x_start = x.clamp(-1, 1)

    def agrees(name: str, value: torch.Tensor) -> None:
        assert relative_error(value[:, :, ::8, ::8], figures[f"{variant}_{name}"]) <= ROUNDING, name

    np.testing.assert_allclose(diffusion.alphas_cumprod, figures[f"{variant}_alphas_cumprod"], rtol=1e-12)
    for name, value in diffusion.p_mean_variance(model, x, t).items():
        agrees(f"pmv_{name}", value)
    agrees("q_sample", diffusion.q_sample(x_start, t, noise=rnd(7, 2, 3, 64, 64)))
    torch.manual_seed(11)
    agrees("p_sample", diffusion.p_sample(model, x, t)["sample"])
    torch.manual_seed(12)
    agrees("ddim_sample_eta0.3", diffusion.ddim_sample(model, x, t, eta=0.3)["sample"])

    losses = diffusion.training_losses(model, x_start, t, noise=rnd(8, 2, 3, 64, 64))
    published = {name.split("_loss_")[1] for name in figures if name.startswith(f"{variant}_loss_")}
    assert losses.keys() == published
    for name, value in losses.items():
        # Means over all pixels of values that nearly cancel.
        assert relative_error(value, figures[f"{variant}_loss_{name}"]) <= 1e-4, name


@torch.no_grad()
def test_loops_give_the_published_results():
    figures = golden("diffusion")
    _, diffusion = create_model_and_diffusion(**{**BASE, "timestep_respacing": "10"})
    torch.manual_seed(13)
    bound = diffusion.calc_bpd_loop(unet(True), rnd(9, 2, 3, 64, 64).clamp(-1, 1))
    assert bound.keys() == {"total_bpd", "prior_bpd", "vb", "xstart_mse", "mse"}
    for name, value in bound.items():
        assert relative_error(value, figures[f"bpd_{name}"]) <= 1e-4, name
    # Ten steps amplify the rounding of the first.
    torch.manual_seed(14)
    sample = diffusion.p_sample_loop(unet(True), (1, 3, 64, 64))
    assert relative_error(sample[:, :, ::4, ::4], figures["p_sample_loop"]) <= 1e-3
    torch.manual_seed(15)
    sample = diffusion.ddim_sample_loop(unet(True), (1, 3, 64, 64))
    assert relative_error(sample[:, :, ::4, ::4], figures["ddim_sample_loop"]) <= 1e-3


def test_ddim_and_its_reverse_follow_the_exact_path_of_a_gaussian():
    std = 0.5
    diffusion = process(betas=get_named_beta_schedule("linear", 400))
    model = gaussian_eps(diffusion, std)
    start = x = std * rnd(0, 1, 3, 4, 4)

    def index(i: int) -> torch.Tensor:
        return torch.tensor([i])

    for i in range(399):
        x = diffusion.ddim_reverse_sample(model, x, index(i), clip_denoised=False)["sample"]
    spread = np.sqrt(diffusion.alphas_cumprod * std**2 + 1 - diffusion.alphas_cumprod)
    # The path keeps every point at the same quantile; 400 Euler steps follow it to about 1 %.
    torch.testing.assert_close(x, start * (spread[-1] / spread[0]), rtol=0.02, atol=0)
    for i in reversed(range(1, 400)):
        x = diffusion.ddim_sample(model, x, index(i), clip_denoised=False)["sample"]
    torch.testing.assert_close(x, start, rtol=0.02, atol=0)
    with pytest.raises(ValueError, match=r"eta is 0\.5"):  # only this path has a reverse
        diffusion.ddim_reverse_sample(model, x, index(1), eta=0.5)


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_loops_evaluate_once_a_step_repeat_under_a_seed_and_build_no_graph(loop):
    diffusion = process(variance=ModelVarType.LEARNED_RANGE)
    seen, noise, results = [], rnd(0, 2, 3, 4, 4), []
    weight = torch.ones(1, requires_grad=True)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.tolist())
        return torch.cat([weight * wave(x, t), wave(x, t)], dim=1)

    for _ in range(2):
        torch.manual_seed(5)
        results.append(getattr(diffusion, loop)(model, (2, 3, 4, 4), noise=noise))
    assert seen == 2 * [[i, i] for i in reversed(range(50))]
    assert torch.equal(*results) and not results[0].requires_grad and torch.is_grad_enabled()
    steps = list(getattr(diffusion, f"{loop}_progressive")(model, noise.shape, noise, progress=True))
    assert len(steps) == 50 and steps[0].keys() == {"sample", "pred_xstart"}
    with pytest.raises(ValueError, match=r"noise is \(2, 3, 4, 4\) where \(1, 3, 4, 4\)"):
        getattr(diffusion, loop)(model, (1, 3, 4, 4), noise=noise)
    # On this device .item(), .cpu() and the like raise an error: loops read nothing back.
    assert getattr(diffusion, loop)(Counted(wave, wave), (1, 3, 4, 4), device="meta").device.type == "meta"
    single = create_gaussian_diffusion(steps=100, learn_sigma=True, timestep_respacing="1")
    assert getattr(single, loop)(Counted(wave, wave), (1, 3, 4, 4), device="cpu").isfinite().all()


def test_tables_made_while_sampling_serve_training():
    diffusion = process()
    x, t = rnd(0, 1, 3, 4, 4), torch.tensor([3])
    with torch.inference_mode():
        diffusion.training_losses(wave, x, t)
    weight = torch.ones(1, requires_grad=True)
    diffusion.training_losses(lambda x, t: weight * x, x, t)["loss"].sum().backward()
    assert weight.grad is not None


X, T = rnd(0, 2, 3, 4, 4), torch.tensor([5, 30])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [500, 1000])
def test_betas_are_the_published_ones_and_those_out_of_range_are_refused(schedule, steps):
    expected = golden("diffusion")[f"betas_{schedule}_{steps}"]
    np.testing.assert_allclose(get_named_beta_schedule(schedule, steps), expected, rtol=1e-12)
    for betas in ([], [0.1, 0.0], [1.1], [[0.1]], [math.nan]):
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
    betas = betas_for_alpha_bar(10, lambda u: (1 - u) ** 2, max_beta=0.7)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:8], [(1 - i / 10) ** 2 for i in range(1, 9)])
    assert betas[-1] == 0.7


def test_interpreting_an_output_draws_nothing_and_an_output_that_does_not_fit_is_named():
    diffusion, model, state = process(variance=ModelVarType.LEARNED_RANGE), Counted(wave, wave), torch.get_rng_state()
    output = diffusion.model_output(model, X, T)
    clipped, free = (diffusion.interpret_output(output, X, T, clip)["pred_xstart"] for clip in (True, False))
    assert model.evaluations == 1 and clipped.abs().max() == 1 < free.abs().max()
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"\(2, 6, 4, 4\) where \(2, 3, 4, 4\) .* learn_sigma False"):
        process().p_mean_variance(model, X, T)
    with pytest.raises(ValueError, match="learn_sigma True"):
        diffusion.training_losses(Counted(wave), X, T)


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


def test_impossible_levels_have_a_finite_likelihood_and_kl_needs_a_tensor():
    x = torch.tensor([0.9])
    likelihood = discretized_gaussian_log_likelihood(x, means=-x, log_scales=torch.tensor([-8.0]))
    torch.testing.assert_close(likelihood, torch.tensor([1e-12]).log())
    torch.testing.assert_close(normal_kl(x, 0.0, 0.0, 0.0), 0.5 * x**2)
    with pytest.raises(TypeError, match="at least one"):
        normal_kl(0.0, 0.0, 0.0, 0.0)


SETTINGS = {
    "model_mean_type": ModelMeanType.EPSILON,
    "model_var_type": ModelVarType.FIXED_LARGE,
    "loss_type": LossType.MSE,
}


def spaced(timesteps, steps: int = 500, schedule: str = "linear", **more) -> SpacedDiffusion:
    return SpacedDiffusion(timesteps, betas=get_named_beta_schedule(schedule, steps), **{**SETTINGS, **more})


@pytest.mark.parametrize(
    ("steps", "sections"), [(500, "200"), (500, "50"), (1000, "ddim25"), (300, "10,15,20"), (500, [500])]
)
def test_timesteps_are_the_published_ones(steps, sections):
    expected = golden("diffusion")[f"space_{steps}_{sections}"]
    np.testing.assert_array_equal(sorted(space_timesteps(steps, sections)), expected)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("501", "cannot take 501 timesteps from section 1 of 1, which has 500"),
        ("10,0", "cannot take 0 timesteps from section 2 of 2"),
        ("ddim99", "no whole stride"),
        ("many", "expected a count"),
        ([], "at least one count"),
    ],
)
def test_impossible_choices_are_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        space_timesteps(500, sections)


@pytest.mark.parametrize(("rescale", "factor"), [(False, 1), (True, 10)])
def test_a_short_process_has_the_alpha_bars_of_the_long_one_and_shows_its_timesteps(rescale, factor):
    short = spaced({3, 50, 99}, 100, "cosine", rescale_timesteps=rescale)
    assert short.num_timesteps == 3 and short.timestep_map == [3, 50, 99] and short.original_num_steps == 100
    alpha_bars = np.cumprod(1 - get_named_beta_schedule("cosine", 100))[[3, 50, 99]]
    # β near 1 leave few digits of 1 - β: absolute rounding.
    np.testing.assert_allclose(short.alphas_cumprod, alpha_bars, rtol=0, atol=1e-15)
    seen = []

    def spy(x: torch.Tensor, t: torch.Tensor, **labels: int) -> torch.Tensor:
        assert labels == {"y": 1}
        seen.append(t.tolist())
        return x

    x, t = rnd(0, 2, 3, 4, 4), torch.tensor([0, 2])
    short.p_sample(spy, x, t, cond_fn=spy, model_kwargs={"y": 1})
    short.ddim_sample(spy, x, t, cond_fn=spy, model_kwargs={"y": 1})
    short.training_losses(spy, x, t, model_kwargs={"y": 1})
    assert seen == [[3 * factor, 99 * factor]] * 5


def test_a_subset_is_the_process_respaced_once_more():
    whole = spaced(space_timesteps(500, "50"))
    part = whole.subset([2, 9, 30])
    assert part.timestep_map == [whole.timestep_map[index] for index in (2, 9, 30)]
    np.testing.assert_allclose(part.alphas_cumprod, whole.alphas_cumprod[[2, 9, 30]], rtol=1e-12)
    assert whole.subset([30, 9, 2]) is part
    assert part.network_timesteps(torch.tensor([0, 1, 2])).tolist() == part.timestep_map
    for name in ("betas", "alphas_cumprod", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance"):
        # the first indices change no bit
        np.testing.assert_array_equal(getattr(whole.subset(range(20)), name), getattr(whole, name)[:20])

    # of one index: a jump to the prediction
    p = whole.subset([40]).interpret_output(rnd(0, 2, 3, 2, 2), rnd(1, 2, 3, 2, 2), torch.tensor([0, 0]))
    assert torch.equal(p["mean"], p["pred_xstart"])
