"""Which timesteps are kept, and that the shorter process agrees with the longer one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
)
from guided_diffusion.respace import SpacedDiffusion, space_timesteps
from tests.helpers import golden, rnd

SETTINGS = {
    "model_mean_type": ModelMeanType.EPSILON,
    "model_var_type": ModelVarType.FIXED_LARGE,
    "loss_type": LossType.MSE,
}


def toy_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth function of pixel and timestep."""
    return torch.sin(x + 0.01 * t.view(-1, 1, 1, 1))


@pytest.mark.parametrize(
    ("steps", "sections"), [(500, "200"), (500, "50"), (1000, "ddim25"), (300, "10,15,20"), (500, [500])]
)
def test_timesteps_are_the_published_ones(steps, sections):
    np.testing.assert_array_equal(
        sorted(space_timesteps(steps, sections)), golden("diffusion")[f"space_{steps}_{sections}"]
    )


def test_sections_differ_by_one_step_at_most():
    assert space_timesteps(10, [4, 3, 3]) == set(range(10))
    assert space_timesteps(10, "1,1,1") == {0, 4, 7}
    assert space_timesteps(100, "2") == {0, 99}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("501", "cannot take 501 timesteps from section 1 of 1, which has 500"),
        ("10,0", "cannot take 0 timesteps from section 2 of 2"),
        ("ddim99", "no whole stride"),
        ("ddim", "no whole stride"),
        ("", "expected a count"),
        ("many", "expected a count"),
        ([], "at least one count"),
    ],
)
def test_impossible_choices_are_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        space_timesteps(500, sections)


def test_keeping_every_timestep_is_the_process_itself():
    betas = get_named_beta_schedule("linear", 100)
    whole, spaced = GaussianDiffusion(betas=betas, **SETTINGS), SpacedDiffusion(range(100), betas=betas, **SETTINGS)
    np.testing.assert_allclose(spaced.betas, betas, rtol=1e-12)
    x, t = rnd(0, 2, 3, 8, 8), torch.tensor([4, 90])
    for name, expected in whole.p_mean_variance(toy_model, x, t).items():
        torch.testing.assert_close(spaced.p_mean_variance(toy_model, x, t)[name], expected)


def test_alpha_bars_are_those_of_the_timesteps_that_are_kept():
    betas = get_named_beta_schedule("cosine", 100)
    spaced = SpacedDiffusion({3, 50, 99}, betas=betas, **SETTINGS)
    assert spaced.num_timesteps == 3 and spaced.timestep_map == [3, 50, 99] and spaced.original_num_steps == 100
    # β near 1 leave few digits of 1 - β: absolute rounding.
    np.testing.assert_allclose(spaced.alphas_cumprod, np.cumprod(1 - betas)[[3, 50, 99]], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("rescale", "factor"), [(False, 1), (True, 10)])
def test_networks_and_cond_fn_see_the_long_process(rescale, factor):
    spaced = SpacedDiffusion(
        {3, 50, 99}, betas=get_named_beta_schedule("linear", 100), rescale_timesteps=rescale, **SETTINGS
    )
    seen = []

    def spy(x: torch.Tensor, t: torch.Tensor, **labels: int) -> torch.Tensor:
        assert labels == {"y": 1}
        seen.append(t.tolist())
        return x

    x, t = rnd(0, 2, 3, 4, 4), torch.tensor([0, 2])
    spaced.p_sample(spy, x, t, cond_fn=spy, model_kwargs={"y": 1})
    spaced.ddim_sample(spy, x, t, cond_fn=spy, model_kwargs={"y": 1})
    spaced.training_losses(spy, x, t, model_kwargs={"y": 1})
    assert seen == [[3 * factor, 99 * factor]] * 5


def test_whole_process_rescales_to_a_thousand():
    diffusion = GaussianDiffusion(betas=get_named_beta_schedule("linear", 200), rescale_timesteps=True, **SETTINGS)
    assert diffusion.network_timesteps(torch.tensor([0, 100])).tolist() == [0.0, 500.0]


def test_a_subset_is_the_process_respaced_once_more():
    betas = get_named_beta_schedule("linear", 500)
    whole = SpacedDiffusion(space_timesteps(500, "50"), betas=betas, **SETTINGS)
    part = whole.subset([2, 9, 30])
    assert part.timestep_map == [whole.timestep_map[index] for index in (2, 9, 30)]
    np.testing.assert_allclose(part.alphas_cumprod, whole.alphas_cumprod[[2, 9, 30]], rtol=1e-12)
    assert whole.subset([30, 9, 2]) is part
    asked = []
    part.model_output(lambda x, t: asked.append(t.tolist()) or x, rnd(0, 3, 3, 2, 2), torch.tensor([0, 1, 2]))
    assert asked == [part.timestep_map]


def test_a_learned_variance_in_a_subset_lies_between_the_bounds_of_its_steps():
    """Posterior of index 30 given index 9, from the definition: q(x_9 | x_30, x_0)."""
    betas = get_named_beta_schedule("linear", 500)
    settings = {**SETTINGS, "model_var_type": ModelVarType.LEARNED_RANGE}
    whole = SpacedDiffusion(space_timesteps(500, "50"), betas=betas, **settings)
    early, late = whole.alphas_cumprod[[9, 30]]
    beta = 1 - late / early
    z, t = rnd(1, 1, 3, 2, 2), torch.tensor([2])
    for value, expected in ((1.0, beta), (-1.0, beta * (1 - early) / (1 - late))):
        output = torch.cat([torch.zeros_like(z), torch.full_like(z, value)], dim=1)
        p = whole.subset([2, 9, 30]).interpret_output(output, z, t, clip_denoised=False)
        torch.testing.assert_close(p["variance"], torch.full_like(z, expected))
    mean = early**0.5 * beta / (1 - late) * z / late**0.5 + (1 - early) * (late / early) ** 0.5 / (1 - late) * z
    torch.testing.assert_close(p["mean"], mean)


def test_the_subset_of_the_first_indices_changes_no_bit():
    whole = SpacedDiffusion(space_timesteps(500, "50"), betas=get_named_beta_schedule("linear", 500), **SETTINGS)
    for name in ("betas", "alphas_cumprod", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance"):
        np.testing.assert_array_equal(getattr(whole.subset(range(20)), name), getattr(whole, name)[:20])


def test_a_subset_of_one_index_jumps_to_the_prediction():
    whole = SpacedDiffusion(space_timesteps(500, "50"), betas=get_named_beta_schedule("linear", 500), **SETTINGS)
    p = whole.subset([40]).interpret_output(rnd(0, 2, 3, 2, 2), rnd(1, 2, 3, 2, 2), torch.tensor([0, 0]))
    assert torch.equal(p["mean"], p["pred_xstart"])
