"""Sampling loops and training losses: published figures, closed forms, what is drawn and evaluated."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import ModelVarType, get_named_beta_schedule
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
