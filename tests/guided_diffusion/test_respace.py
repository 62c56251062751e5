"""Which timesteps are kept, and that the shorter process agrees with the longer one."""

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
from tests.toys import wave

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


def test_keeping_every_timestep_is_the_process_itself_and_sections_differ_by_one_step():
    betas = get_named_beta_schedule("linear", 100)
    whole, kept = GaussianDiffusion(betas=betas, rescale_timesteps=True, **SETTINGS), spaced(range(100), 100)
    np.testing.assert_allclose(kept.betas, betas, rtol=1e-12)
    x, t = rnd(0, 2, 3, 8, 8), torch.tensor([4, 90])
    torch.testing.assert_close(
        kept.p_mean_variance(wave, x, t), whole.p_mean_variance(lambda x, t: wave(x, t / 10), x, t)
    )
    assert whole.network_timesteps(t).tolist() == [40.0, 900.0]
    assert space_timesteps(10, [4, 3, 3]) == set(range(10))
    assert space_timesteps(10, "1,1,1") == {0, 4, 7}
    assert space_timesteps(100, "2") == {0, 99}


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
