"""The diffusion process: published figures, closed forms, what is drawn and evaluated."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from guided_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    get_named_beta_schedule,
)
from guided_diffusion.script_util import create_gaussian_diffusion, create_model_and_diffusion
from guided_diffusion.unet import UNetModel
from tests.helpers import BASE, fill_, golden, relative_error, rnd

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


# Published figures


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [500, 1000])
def test_betas_are_the_published_ones(schedule, steps):
    expected = golden("diffusion")[f"betas_{schedule}_{steps}"]
    np.testing.assert_allclose(get_named_beta_schedule(schedule, steps), expected, rtol=1e-12)


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


# Schedules and the forward process


def test_alpha_bar_is_followed_up_to_the_largest_beta():
    betas = betas_for_alpha_bar(10, lambda u: (1 - u) ** 2, max_beta=0.7)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:8], [(1 - i / 10) ** 2 for i in range(1, 9)])
    assert betas[-1] == 0.7


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        ("sigmoid", 100, "--noise_schedule 'sigmoid' is unknown: expected linear or cosine"),
        ("linear", 10, "--diffusion_steps 10: the linear schedule needs at least 20"),
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
    t = torch.arange(50)
    arrays = {name: array for name, array in vars(diffusion).items() if isinstance(array, np.ndarray)}
    published = {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "alphas_cumprod_next",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    }
    assert published <= arrays.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float64 and array.shape == (50,)
        entries = diffusion.at(name, t, like=torch.empty(50, 3, 4, 4))
        assert entries.shape == (50, 1, 1, 1) and entries.dtype == torch.float32
        assert torch.equal(entries.flatten(), torch.from_numpy(array)[t].float())


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


def test_first_posterior_log_variance_is_the_seconds():
    diffusion = process()
    assert diffusion.posterior_variance[0] == 0
    assert diffusion.posterior_log_variance_clipped[0] == diffusion.posterior_log_variance_clipped[1]


def test_noise_and_clean_image_determine_each_other():
    diffusion = process()
    x_start, eps, t = rnd(0, 3, 3, 4, 4), rnd(1, 3, 3, 4, 4), torch.tensor([0, 20, 49])
    x_t = diffusion.q_sample(x_start, t, noise=eps)
    # At index 0 the noise is a hundredth of the image, at 49 the other way round: two digits are lost.
    torch.testing.assert_close(diffusion.xstart_from_eps(x_t, t, eps), x_start, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(diffusion.eps_from_xstart(x_t, t, x_start), eps, rtol=1e-4, atol=1e-4)
    previous = diffusion.posterior_mean(x_start, x_t, t)
    torch.testing.assert_close(diffusion.xstart_from_previous(x_t, t, previous), x_start, rtol=1e-3, atol=1e-3)


# One step back


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
    output = {ModelMeanType.START_X: x_start, ModelMeanType.EPSILON: eps, ModelMeanType.PREVIOUS_X: mean}[mean_type]
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


# Sampling


@pytest.mark.parametrize("step", ["p_sample", "ddim_sample"])
def test_index_0_draws_noise_and_does_not_use_it(step):
    diffusion = process()
    x, t = rnd(0, 1, 3, 4, 4), torch.tensor([0])
    torch.manual_seed(0)
    one = getattr(diffusion, step)(wave, x, t)["sample"]
    drawn = torch.get_rng_state()
    assert torch.equal(one, getattr(diffusion, step)(wave, x, t)["sample"])
    torch.manual_seed(0)
    torch.randn_like(x)
    assert torch.equal(drawn, torch.get_rng_state())


def test_full_noise_ddim_is_ddpm_with_the_posteriors_variance():
    diffusion = process(variance=ModelVarType.FIXED_SMALL)
    x, t = rnd(0, 3, 3, 4, 4), torch.tensor([1, 20, 49])
    torch.manual_seed(0)
    ddpm = diffusion.p_sample(wave, x, t)["sample"]
    torch.manual_seed(0)
    ddim = diffusion.ddim_sample(wave, x, t, eta=1.0)["sample"]
    torch.testing.assert_close(ddim, ddpm, rtol=1e-3, atol=1e-4)  # 1 - ᾱ - σ² cancels at small t


def gaussian_eps(diffusion: GaussianDiffusion, std: float):
    """The exact noise prediction for images drawn from N(0, std²): linear in x."""

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha_bar = torch.from_numpy(diffusion.alphas_cumprod).float()[t].view(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() * x / (alpha_bar * std**2 + 1 - alpha_bar)

    return eps


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


def test_only_the_deterministic_path_has_a_reverse():
    with pytest.raises(ValueError, match=r"eta is 0\.5"):
        process().ddim_reverse_sample(wave, rnd(0, 1, 3, 4, 4), torch.tensor([1]), eta=0.5)


def test_ancestral_sampling_of_a_gaussian_has_its_spread():
    std = 0.3
    diffusion = process(betas=get_named_beta_schedule("linear", 100))
    torch.manual_seed(0)
    sample = diffusion.p_sample_loop(gaussian_eps(diffusion, std), (64, 1, 8, 8), clip_denoised=False, device="cpu")
    # Every step is linear: the variance follows a recursion from 1.
    variance = 1.0
    for i in reversed(range(100)):
        alpha_bar = diffusion.alphas_cumprod[i]
        denoising = math.sqrt(alpha_bar) * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        factor = diffusion.posterior_mean_coef1[i] * denoising + diffusion.posterior_mean_coef2[i]
        variance = factor**2 * variance + diffusion.posterior_variance[i]
    spread = math.sqrt(variance)
    assert sample.mean().item() == pytest.approx(0, abs=4 * spread / 64)  # 4 standard errors of 4096 pixels
    assert sample.std().item() == pytest.approx(spread, rel=4 / math.sqrt(2 * 4096))


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_loops_evaluate_once_a_step_and_repeat_under_a_seed(loop):
    diffusion = process(variance=ModelVarType.LEARNED_RANGE)
    model, noise = Counted(wave, wave), rnd(0, 2, 3, 4, 4)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(getattr(diffusion, loop)(model, (2, 3, 4, 4), noise=noise))
    assert model.evaluations == 2 * 50
    assert torch.equal(*results)
    steps = list(getattr(diffusion, f"{loop}_progressive")(model, noise.shape, noise, progress=True))
    assert len(steps) == 50 and steps[0].keys() == {"sample", "pred_xstart"}
    assert not any(step["sample"].requires_grad for step in steps)


def test_a_loop_goes_down_from_the_last_index():
    seen = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.tolist())
        return x

    process().p_sample_loop(model, (2, 3, 4, 4), device="cpu")
    assert seen == [[i, i] for i in reversed(range(50))]


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise is \(1, 3, 4, 4\) where \(2, 3, 4, 4\)"):
        process().p_sample_loop(wave, (2, 3, 4, 4), noise=rnd(0, 1, 3, 4, 4))


class Recorder(TorchDispatchMode):
    """Notes the name of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_loops_stay_on_their_device(loop):
    _, diffusion = create_model_and_diffusion(**BASE)
    # Nothing can be read back from this device: .item(), .cpu() and the like raise an error.
    sample = functools.partial(getattr(diffusion, loop), Counted(wave, wave), (1, 3, 4, 4), device="meta")
    sample()  # fills the tables
    with Recorder() as recorder:
        assert sample().device.type == "meta"
    assert "aten::randn_like" in recorder.names
    assert "aten::lift_fresh" not in recorder.names  # torch.tensor(…)


def test_tables_made_while_sampling_serve_training():
    diffusion = process()
    x, t = rnd(0, 1, 3, 4, 4), torch.tensor([3])
    with torch.inference_mode():
        diffusion.training_losses(wave, x, t)
    weight = torch.ones(1, requires_grad=True)
    diffusion.training_losses(lambda x, t: weight * x, x, t)["loss"].sum().backward()
    assert weight.grad is not None


def test_a_single_timestep_is_a_process():
    diffusion = create_gaussian_diffusion(steps=100, learn_sigma=True, timestep_respacing="1")
    sample = diffusion.p_sample_loop(Counted(wave, wave), (1, 3, 4, 4), device="cpu")
    assert sample.isfinite().all()


# Losses


def test_a_perfect_model_has_no_loss():
    x_start, eps, t = rnd(0, 3, 3, 4, 4).clamp(-1, 1), rnd(1, 3, 3, 4, 4), torch.tensor([1, 20, 49])
    for mean_type in ModelMeanType:
        diffusion = process(mean=mean_type)
        x_t = diffusion.q_sample(x_start, t, noise=eps)
        output = {
            ModelMeanType.START_X: x_start,
            ModelMeanType.EPSILON: eps,
            ModelMeanType.PREVIOUS_X: diffusion.posterior_mean(x_start, x_t, t),
        }[mean_type]
        losses = diffusion.training_losses(lambda x, t, output=output: output, x_start, t, noise=eps)
        assert losses.keys() == {"loss", "mse"}
        assert losses["loss"].abs().max() == 0
    # The bound's terms vanish as well: the step back is the posterior.
    bound = process(loss=LossType.KL).training_losses(lambda x, t: eps, x_start, t, noise=eps)
    assert bound.keys() == {"loss"} and bound["loss"].abs().max() < 1e-4


def test_the_rescaled_losses():
    x, t, noise = rnd(0, 2, 3, 4, 4), torch.tensor([0, 30]), rnd(1, 2, 3, 4, 4)

    def losses(loss: LossType) -> dict[str, torch.Tensor]:
        diffusion = process(variance=ModelVarType.LEARNED_RANGE, loss=loss)
        return diffusion.training_losses(Counted(wave, wave), x, t, noise=noise)

    plain, rescaled = losses(LossType.MSE), losses(LossType.RESCALED_MSE)
    torch.testing.assert_close(rescaled["vb"], plain["vb"] * 50 / 1000)
    torch.testing.assert_close(plain["loss"], plain["mse"] + plain["vb"])
    torch.testing.assert_close(rescaled["loss"], rescaled["mse"] + rescaled["vb"])
    torch.testing.assert_close(losses(LossType.RESCALED_KL)["loss"], 50 * losses(LossType.KL)["loss"])
    torch.testing.assert_close(losses(LossType.KL)["loss"], plain["vb"])


def test_the_bound_trains_the_variance_alone():
    diffusion = process(variance=ModelVarType.LEARNED_RANGE)
    x, t = rnd(0, 2, 3, 4, 4), torch.tensor([0, 30])
    output = rnd(1, 2, 6, 4, 4).requires_grad_()
    losses = diffusion.training_losses(lambda x, t: output, x, t)
    (bound,) = torch.autograd.grad(losses["vb"].sum(), output, retain_graph=True)
    (error,) = torch.autograd.grad(losses["mse"].sum(), output)
    assert bound[:, :3].abs().max() == 0 < bound[:, 3:].abs().max()
    assert error[:, 3:].abs().max() == 0 < error[:, :3].abs().max()


def test_the_bound_of_a_model_that_knows_the_image():
    diffusion = process(mean=ModelMeanType.START_X)
    x_start = rnd(0, 2, 3, 4, 4).clamp(-1, 1)
    model = Counted(lambda x, t: x_start)
    bound = diffusion.calc_bpd_loop(model, x_start)
    assert model.evaluations == 50
    assert bound["vb"].shape == bound["mse"].shape == bound["xstart_mse"].shape == (2, 50)
    assert bound["vb"][:, :-1].abs().max() < 1e-5  # all but index 0, the last column
    assert bound["xstart_mse"].abs().max() == 0
    alpha_bar = diffusion.alphas_cumprod[-1]
    # KL(N(sqrt(ᾱ) x_0, 1 - ᾱ) || N(0, 1)) = (ᾱ x_0² - ᾱ - ln(1 - ᾱ)) / 2
    squared = x_start.double().square().flatten(1).mean(1)
    prior = (alpha_bar * (squared - 1) - math.log(1 - alpha_bar)) / 2 / math.log(2)
    # The KL divergence is a small difference of numbers near 1.
    torch.testing.assert_close(bound["prior_bpd"].double(), prior, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(bound["total_bpd"], bound["vb"].sum(1) + bound["prior_bpd"])
