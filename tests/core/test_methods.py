"""What the methods do that no golden tree shows: evaluations, edges, settings, masks in closed form."""

import numpy as np
import pytest
import torch

from dime.core.estimates import InnerChain, chain_lengths, evenly_spread, last_prediction, masked_prediction
from dime.core.masks import FixedMask, GradientMask, SelfOptimisedMask, SpreadLimit, changed_region, largest, worth
from dime.core.methods import METHODS, Settings
from dime.core.noise import PerImageNoise
from dime.core.sampler import Denoiser, Gaussian, Region, Step
from tests.helpers import rnd
from tests.toys import CountingModel, ToyPull, toy_diffusion

TAU = 8
X = rnd(1, 3, 3, 8, 8).clamp(-1, 1)
EVALUATIONS = {
    "dime": 1 + TAU * (TAU - 1) // 2,
    "maskdime2": TAU + 1 + TAU * (TAU - 1) // 2,
    "direct": TAU,
    "naive": TAU,
    "fastdime": TAU,
    "fastdimenomask": TAU,
    "fastdime2": 2 * TAU,
    "fastdime2+": 2 * TAU,
    "gmd": TAU,
    "maskdime": TAU,
    "inverted": 2 * TAU - 1,  # the inversion, and a chain whose first evaluation it has made
}


def run(method: str, ids: list[int] | None = None, observe=None, **settings) -> tuple[torch.Tensor, int]:
    ids = [0, 1, 2] if ids is None else ids
    model, noise = CountingModel(), PerImageNoise(4)
    denoiser, x = Denoiser(model, toy_diffusion(50)), X[ids]
    z = denoiser.noised(x, TAU, noise.noising(ids)(x.shape))
    sampler = METHODS[method](Settings(start_step=TAU, **settings))
    cf = sampler(denoiser, x, z, ToyPull(), lambda i: noise.step(ids, 0, i), observe)
    return cf, model.evaluations


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    """Its evaluations, a result that is finite whatever the neighbours, what it shows once per step."""
    seen = []
    cf, evaluations = run(method, observe=lambda step, x_t, z_t: seen.append(step), warmup_step=3)
    assert evaluations == EVALUATIONS[method] and cf.isfinite().all() and not cf.requires_grad
    assert seen == list(range(TAU))
    assert torch.equal(run(method, [2, 0], warmup_step=3)[0], cf[[2, 0]])


@pytest.mark.parametrize(
    ("inner_steps", "evaluations"),
    [("1", TAU), ("2", TAU + 6), ("3", TAU + 6 + 5), ("8:3,1", TAU + 6 + 5), ("0:2,2", TAU + 6 + 5), ("99", 29)],
)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_evaluations_of_shorter_chains(inner_steps, evaluations, sampler):
    """A chain of K costs K - 1, the first being the step's own; the first step has none, the last has one index."""
    flags = {"inner_steps": inner_steps, "inner_sampler": sampler}
    cf, found = run("dime", **flags)
    assert found == evaluations and torch.equal(run("dime", [2, 0], **flags)[0], cf[[2, 0]])


def test_maskdime2_changes_only_where_maskdime_did():
    flags = {"dilation": 1, "masking_threshold": 0.9}
    cf, evaluations = run("maskdime2", inner_steps="1", **flags)
    assert evaluations == 2 * TAU
    changed = changed_region(X, run("maskdime")[0], 1, 0.9)
    assert torch.equal(torch.where(changed, X, cf), X)
    kept = (cf == X).all(dim=1)
    assert kept.any() and not kept.all()


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("inner_steps", [str(TAU), "99", "0:3,8", "99:99,1"])
def test_a_chain_of_all_indices_is_dimes_bit_for_bit(inner_steps, stochastic):
    full = run("dime", use_sampling_on_x_t=stochastic)[0]
    assert torch.equal(run("dime", inner_steps=inner_steps, use_sampling_on_x_t=stochastic)[0], full)
    assert not torch.equal(run("dime", inner_steps="7:2,1", use_sampling_on_x_t=stochastic)[0], full)


def step_at(z_t: torch.Tensor, i: int) -> Step:
    denoiser = Denoiser(CountingModel(), toy_diffusion(50))
    output = denoiser.output(z_t, i)
    draw = PerImageNoise(4).step([0, 1, 2], 0, i)
    return Step(TAU - 1 - i, i, X, z_t, denoiser, output, denoiser.reverse(output, z_t, i), draw, None, None)


def test_indices_are_evenly_spread_and_schedules_read():
    assert evenly_spread(29, 1) == [29]
    assert evenly_spread(29, 5) == [5, 11, 17, 23, 29]
    assert evenly_spread(3, 3) == [0, 1, 3]
    for count in (0, 4, 99):
        assert evenly_spread(3, count) == [0, 1, 2, 3]
    for i in range(40):
        for count in range(1, i + 2):
            gaps = np.diff([-1, *evenly_spread(i, count)])
            assert len(gaps) == count and gaps.sum() == i + 1 and gaps.max() - gaps.min() <= 1 and gaps.min() >= 1
    assert chain_lengths("5", 3) == (5, 5, 5)
    assert chain_lengths("8:2,3:1,1", 5) == (8, 8, 3, 1, 1)
    assert chain_lengths("8:99999999999,1", 2) == (8, 8)


def test_a_shorter_ddim_chain_in_closed_form():
    """Two steps, from index 6 over 2 to the prediction there, in float64 from the definition of DDIM."""
    step = step_at(z_t=X, i=6)
    x_t = InnerChain(evaluations=[2] * TAU, ddim=True)(step)
    diffusion = step.denoiser.diffusion
    assert evenly_spread(6, 2) == [2, 6]
    z, alpha_bars = X.double(), diffusion.alphas_cumprod
    for i, alpha_bar_prev in ((6, alpha_bars[2]), (2, 1.0)):
        output = step.denoiser.output(z.float(), i)[:, :3].double()
        x_start = ((z - (1 - alpha_bars[i]) ** 0.5 * output) / alpha_bars[i] ** 0.5).clamp(-1, 1)
        eps = (z - alpha_bars[i] ** 0.5 * x_start) / (1 - alpha_bars[i]) ** 0.5
        z = alpha_bar_prev**0.5 * x_start + (1 - alpha_bar_prev) ** 0.5 * eps
    torch.testing.assert_close(x_t, z.float(), rtol=1e-5, atol=1e-5)
    for ddim in (True, False):  # a chain of one is the step's own prediction, which is clipped
        step = step_at(z_t=2 * X, i=6)
        x_t = InnerChain(evaluations=[1] * TAU, ddim=ddim)(step)
        assert torch.equal(x_t, step.p.pred_xstart) and (x_t.abs() == 1).any()


def test_methods_and_their_flags_differ():
    results = [run(method, warmup_step=3, dilation=1, masking_threshold=0.9)[0] for method in METHODS]
    for k, one in enumerate(results):
        assert not any(torch.equal(one, other) for other in results[k + 1 :])
    kept = (dict(zip(METHODS, results, strict=True))["fastdime"] == X).all(dim=1)
    assert kept.any() and not kept.all()  # the input is pasted back outside the mask
    assert not torch.equal(run("fastdimenomask")[0], run("fastdimenomask", scale_grads=True)[0])
    assert torch.equal(run("gmd")[0], run("gmd", scale_grads=True)[0])  # it has no effect there
    stopped = {method: run(method, guided_iterations=0, warmup_step=99)[0] for method in ("dime", "naive", "gmd")}
    assert torch.equal(stopped["naive"], stopped["gmd"])  # nothing but ordinary denoising is left
    assert not torch.equal(stopped["naive"], run("fastdime", guided_iterations=0, warmup_step=99)[0])  # goes on
    assert run("maskdime", guided_iterations=2)[0].isfinite().all()


def test_changed_region_in_closed_form():
    other = X.clone()
    other[:, :, 2, 5] += 0.5  # the largest change
    other[:, :, 6, 1] += 0.05  # a tenth of it
    region = changed_region(X, other, dilation=3, threshold=0.15)
    expected = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    expected[:, :, 1:4, 4:7] = True
    assert torch.equal(region, expected)
    assert changed_region(X, other, dilation=1, threshold=0.09).sum() == 2 * 3
    assert not changed_region(X, X, 5, 0.15).any()


def step_with(region: Region | None, number: int = 3) -> Step:
    p = Gaussian(*(torch.full_like(X, value) for value in (0.1, 0.2, 0.3, 0.4)))
    last = torch.full_like(X, 0.9)
    return Step(number, 5, X, X, Denoiser(CountingModel(), toy_diffusion(50)), X, p, lambda shape: X, last, region)


def test_estimates_keep_the_input_outside_the_last_region():
    left = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    left[..., :4] = True
    step = step_with(Region(~left, left))  # the estimate has a region of its own
    for estimate, value in ((last_prediction, 0.9), (masked_prediction, 0.4)):
        x_t = estimate(step)
        assert (x_t[..., :4] == value).all() and torch.equal(x_t[..., 4:], X[..., 4:])
        assert (estimate(step_with(None)) == value).all()
        assert estimate(step_with(None, number=0)) is X


def test_gradient_mask_takes_the_largest_and_others_wait_or_stay():
    g_class = torch.zeros_like(X)
    g_class[:, 1, 0, 0] = -9.0
    g_class[:, 0, 4, 4] = 3.0
    mask = GradientMask(topk_ratio=2 / 64, x_t_rate=0.5, width=1, per_channel=False)
    region = mask(step_with(None), g_class)
    assert region.z_t.nonzero()[:2, 2:].tolist() == [[0, 0], [4, 4]] and region.z_t.sum() == 2 * 3
    assert region.x_t.nonzero()[:1, 2:].tolist() == [[0, 0]] and region.x_t.sum() == 3
    wide = GradientMask(topk_ratio=0.0, x_t_rate=1.0, width=3, per_channel=False)(step_with(None), g_class)
    assert wide.z_t.sum() == 4 * 3  # one pixel in the corner, widened
    channels = GradientMask(topk_ratio=0.0, width=1, per_channel=True)(step_with(None), g_class)
    assert channels.z_t.shape == X.shape
    assert mask(step_with(None), None) is None
    region = mask(step_with(None), torch.zeros_like(X))
    assert region.z_t.all() and region.x_t.all()
    waiting = SelfOptimisedMask(warmup_step=4)
    assert waiting(step_with(None, number=3), None) is None
    assert waiting(step_with(None, number=4), None) is not None
    changed = torch.ones(3, 1, 8, 8, dtype=torch.bool)
    assert FixedMask(changed)(step_with(None), None) == Region(changed, changed)


def test_what_serves_the_target_is_found():
    """Three pixels come nearer to the grey of 0.3, one moves away from it, and one does more than both."""
    x = torch.full((2, 3, 8, 8), 0.9)
    other = x.clone()
    other[:, :, 0, 0] -= 0.1
    other[:, :, 0, 1] += 0.4
    other[1, :, 5, 5] -= 0.5
    served = worth(x, other, ToyPull(), 1)
    # per channel the gradient is the value midway less 0.3
    expected = torch.zeros(2, 1, 8, 8)
    expected[:, :, 0, 0] = 3 * 0.55 * 0.1
    expected[:, :, 0, 1] = -3 * 0.8 * 0.4
    expected[1, :, 5, 5] = 3 * 0.35 * 0.5
    torch.testing.assert_close(served, expected)
    region = largest(served, 1 / 64)
    assert region.nonzero().tolist() == [[0, 0, 0, 0], [1, 0, 5, 5]]
    assert largest(served, torch.tensor([0.5, 0.0]).view(2, 1, 1, 1)).sum(dim=(1, 2, 3)).tolist() == [32, 0]
    wide = worth(x, other, ToyPull(), 3)
    torch.testing.assert_close(wide[1, 0, 4:7, 4:7], torch.full((3, 3), float(expected[1, 0, 5, 5]) / 9))
    torch.testing.assert_close(wide[0, 0, 0, 0], expected[0].sum() / 4)  # a corner's square is cut


def test_a_repainted_part_is_the_only_one_that_changes():
    cf, evaluations = run("inverted", repaint=0.25, fresh_noise=1.0, blur_kernel=1)
    changed = (cf != X).any(dim=1).flatten(1).sum(dim=1)
    assert (changed <= 16).all() and (changed > 0).all()
    assert evaluations == 3 * TAU - 2  # both passes begin where the inversion has been
    silent = run("inverted", repaint=0.25, fresh_noise=1.0, blur_kernel=1, sampling_scale=0.0)[0]
    assert not torch.equal(silent, cf)
    assert ((silent == X) | (cf != X)).all()  # the part is the same one


def test_spread_limit():
    gradient = rnd(3, 2, 3, 4, 4)
    gradient[0] *= 100
    alone, whole = SpreadLimit(sigma=1.0)(gradient), SpreadLimit(sigma=1.0, per_image=False)(gradient)
    for limited, g in ((alone[0], gradient[0]), (alone[1], gradient[1]), (whole, gradient)):
        torch.testing.assert_close(limited, g.clamp(g.mean() - g.std(), g.mean() + g.std()))
