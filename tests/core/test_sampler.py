"""Algorithm 1 and its gradients against the published figures, the inversion, and where random numbers come from."""

import pytest
import torch
from torch import nn

from bench.plain_loop import plain_loop
from dime.core.guidance import Binary, Guidance, MultiClass
from dime.core.methods import METHODS, dime
from dime.core.noise import PerImageNoise, StreamNoise
from dime.core.sampler import Denoiser, evenly_spread
from dime.core.settings import Settings
from tests.helpers import golden, reference_arithmetic, relative_error, rnd
from tests.toys import CountingModel, ToyPull, base_unet, classifier, toy_diffusion, vgg19_features

SMILING = 31
TOLERANCE = 2e-5  # float32 through a hundred layers, summed in another order (reference_arithmetic)
X_T, NOISY = rnd(20, 3, 3, 64, 64).clamp(-1, 1), rnd(21, 3, 3, 64, 64)
INPUT = rnd(22, 3, 3, 64, 64).clamp(-1, 1)


@reference_arithmetic
@pytest.mark.parametrize(
    ("decision", "y", "name"),
    [
        (Binary(SMILING, True), [1, 0, 1], "class_logits"),
        (Binary(SMILING, False), [1, 0, 1], "class_logsigmoid"),
        (MultiClass(True), [3, 31, 0], "multi_logits"),
        (MultiClass(False), [3, 31, 0], "multi_logsoftmax"),
    ],
)
def test_class_gradients_are_the_published_ones(decision, y, name):
    gradient = Guidance(classifier(), decision).towards(X_T, None, torch.tensor(y), scale=8).class_gradient(X_T)
    assert relative_error(gradient[:, :, ::4, ::4], golden("guidance")[name]) < TOLERANCE


@reference_arithmetic
@pytest.mark.parametrize(
    "weights, name",
    [
        ({"l1": 0.05}, "dist_l1"),
        ({"l2": 0.1}, "dist_l2"),
        ({"l1": 0.05, "l2": 0.1, "l_perc": 9e4}, "dist_l1_l2_perc"),
        ({"l_perc": 9e4}, "dist_perc"),
    ],
)
def test_distance_gradients_are_the_published_ones(weights, name):
    guidance = Guidance(classifier(), Binary(SMILING), vgg19_features(18), **weights)
    pull = guidance.towards(INPUT, guidance.input_features(INPUT), torch.ones(3), scale=8)
    gradient = pull.distance_gradient(NOISY) + pull.perceptual_gradient(X_T) / 0.7
    assert relative_error(gradient[:, :, ::4, ::4], golden("guidance")[name]) < TOLERANCE


class Linear(nn.Module):
    """Two logits, w0·x and w1·x: their gradients are w0 and w1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rnd(1, 2, 3 * 4 * 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


X4, Z4 = rnd(2, 5, 3, 4, 4), rnd(3, 5, 3, 4, 4)
Y5 = torch.tensor([0, 1, 1, 0, 1])


def all_gradients(guidance: Guidance, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    pull = guidance.towards(x, guidance.input_features(x), y, scale=4)
    return pull.class_gradient(z.tanh()) + pull.perceptual_gradient(z.tanh()) + pull.distance_gradient(z)


def test_each_image_has_its_own_gradient_also_through_its_estimate():
    guidance = Guidance(Linear(), Binary(0), nn.Flatten(), l1=0.1, l2=0.2, l_perc=2)
    together = all_gradients(guidance, X4, Y5, Z4)
    alone = [all_gradients(guidance, x, y, z) for x, y, z in zip(X4.split(1), Y5.split(1), Z4.split(1), strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)
    linear, z = Linear(), Z4.clone().requires_grad_()
    pull = Guidance(linear, Binary(1, use_logits=True)).towards(X4, None, torch.ones(5), scale=1)
    gradient = pull.class_gradient(z.square(), wrt=z)
    torch.testing.assert_close(gradient.flatten(1), -2 * Z4.flatten(1) * linear.weight[1], atol=1e-6, rtol=1e-5)


def test_perceptual_gradient_at_the_input_is_not_computed():
    calls = []
    features = lambda u: calls.append(u) or u.flatten(1)  # noqa: E731
    guidance = Guidance(Linear(), Binary(0), features, l_perc=2)
    pull = guidance.towards(X4, guidance.input_features(X4), Y5, scale=4)
    assert pull.perceptual_gradient(X4) == 0
    assert len(calls) == 1
    assert pull.perceptual_gradient(X4.clone()).abs().max() == 0  # it is exactly zero there
    distances = Guidance(Linear(), Binary(0), l1=0.3, l2=0.7).towards(X4, None, Y5, scale=1)
    assert distances.distance_gradient(X4).abs().max() == 0  # likewise


def test_decisions():
    logits = torch.tensor([[2.0, -1.0, 0.0], [-2.0, 3.0, 0.5]])
    assert Binary(0).predict(logits).tolist() == [1, 0] and MultiClass().predict(logits).tolist() == [0, 1]
    assert Binary(0).predict(torch.zeros(1, 1)).tolist() == [0]  # yes means a logit above 0


X = rnd(30, 3, 3, 64, 64).clamp(-1, 1)
Y = torch.tensor([1, 0, 1])
IDS = [0, 1, 2]
TAU = 5
GOLDEN = {
    "stochastic": (dime(Settings(start_step=TAU)), {"use_logits": True}, {"l1": 0.05, "l_perc": 9e4}),
    "mean_xt": (dime(Settings(start_step=TAU, use_sampling_on_x_t=False)), {"use_logits": False}, {"l_perc": 9e4}),
    "early_stop": (dime(Settings(start_step=TAU, guided_iterations=2)), {"use_logits": True}, {"l1": 0.05}),
}


@reference_arithmetic
@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_chains(name):
    method, decision, weights = GOLDEN[name]
    guidance = Guidance(classifier(), Binary(31, **decision), vgg19_features(18), **weights)
    denoiser, noise = Denoiser(*base_unet()), StreamNoise(4)
    noisy = denoiser.noised(X, TAU, noise.noising(IDS)(X.shape))
    steps: dict[str, list] = {"x_t": [], "z_t": []}

    def observe(step: int, x_t: torch.Tensor, z_t: torch.Tensor) -> None:
        assert step == len(steps["x_t"])
        steps["x_t"].append(x_t)
        steps["z_t"].append(z_t)

    pull = guidance.towards(X, guidance.input_features(X), Y, scale=8)
    cf = method(denoiser, X, noisy, pull, lambda i: noise.step(IDS, 0, i), observe)
    got = {"noisy": noisy, "cf": cf, **{kind: torch.stack(images) for kind, images in steps.items()}}
    for kind, images in got.items():
        # 2e-5: float32 in another order, carried through 15 evaluations and 5 guided steps
        assert relative_error(images[..., ::4, ::4], golden("sampler")[f"{name}_{kind}"]) < 2e-5, kind


TOY = rnd(1, 3, 3, 4, 4)


def run_toy(name: str, tau: int, pull=None, observe=None, noise=None, x=TOY, **settings) -> tuple[torch.Tensor, int]:
    ids, noise, denoiser = list(range(len(x))), noise or PerImageNoise(4), Denoiser(CountingModel(), toy_diffusion(100))
    z = denoiser.noised(x, tau, noise.noising(ids)(x.shape))
    method = METHODS[name](Settings(start_step=tau, **settings))
    cf = method(denoiser, x, z, pull or ToyPull(), lambda i: noise.step(ids, 0, i), observe)
    return cf, denoiser.model.evaluations


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("tau", "guided_iterations"), [(8, 0), (8, 3), (8, 99), (1, 99), (2, 99)])
def test_sharing_evaluations_changes_no_bit(stochastic, clip, tau, guided_iterations):
    flags, noise = {"guided_iterations": guided_iterations}, StreamNoise(0)
    cf, evaluations = run_toy("dime", tau, noise=noise, clip_denoised=clip, use_sampling_on_x_t=stochastic, **flags)
    flags |= {"clip": clip, "stochastic": stochastic}
    assert torch.equal(cf, plain_loop(CountingModel(), toy_diffusion(100), TOY, tau, ToyPull(), seed=0, **flags))
    assert evaluations <= 1 + tau * (tau - 1) // 2


def test_no_guidance_is_ordinary_denoising_which_sampling_scale_silences():
    tau, diffusion = 6, toy_diffusion(100)
    torch.manual_seed(3)
    expected = diffusion.q_sample(TOY, torch.full((3,), tau), noise=torch.randn_like(TOY))
    for i in reversed(range(tau)):
        expected = diffusion.p_sample(CountingModel(), expected, torch.full((3,), i))["sample"]
    cf, _ = run_toy("dime", tau, noise=StreamNoise(3), guided_iterations=0)
    torch.testing.assert_close(cf, expected, atol=0, rtol=0)
    silent, _ = run_toy("dime", 5, sampling_scale=0)
    assert torch.equal(silent, run_toy("dime", 5, sampling_scale=0, use_sampling_on_x_t=False)[0])
    assert not torch.equal(silent, run_toy("dime", 5, sampling_scale=0, noise=PerImageNoise(1))[0])


class NoPull(ToyPull):
    """Nothing pulls."""

    def class_gradient(self, x_t: torch.Tensor, wrt: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(x_t)

    distance_gradient = class_gradient


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("tau", "steps"), [(1, 0), (5, 0), (30, 0), (99, 0), (99, 7), (30, 1)])
def test_the_input_comes_back_where_nothing_pulls(tau, steps, clip):
    """Through a U-Net with learned variances, whose predictions leave [-1, 1] and are clipped or not."""
    seen, x = [], X[:2, :, :16, :16]
    observe = lambda step, x_t, z_t: seen.append((x_t, z_t))  # noqa: E731
    cf, _ = run_toy("inverted", tau, NoPull(), observe, x=x, outer_steps=steps, clip_denoised=clip)
    assert torch.equal(cf, x)  # to the last bit
    assert all(torch.equal(x_t, x) for x_t, _ in seen)
    assert len(seen) == len(evenly_spread(tau - 1, steps))
    assert len({tuple(z_t.flatten()[:4].tolist()) for _, z_t in seen}) == len(seen)  # noised to every index


def test_an_inversion_is_made_once_and_fresh_noise_alone_is_ordinary_denoising():
    denoiser, noise = Denoiser(CountingModel(), toy_diffusion(100)), PerImageNoise(4)
    x, method = rnd(1, 3, 3, 4, 4), METHODS["inverted"](Settings(start_step=8, outer_steps=4))
    draw = noise.noising(IDS)
    z = denoiser.noised(x, 8, draw(x.shape))
    inversion = method.invert(denoiser, x, z, draw)
    assert denoiser.model.evaluations == 4
    pulled = method(denoiser, x, z, ToyPull(), lambda i: noise.step(IDS, 0, i), inversion=inversion)
    assert denoiser.model.evaluations == 4 + 3  # the first has been made
    some = [2, 0]
    again = method(
        *(denoiser, x[some], z[some], ToyPull(), lambda i: noise.step(some, 1, i)), inversion=inversion.rows(some)
    )
    assert torch.equal(again, pulled[some])  # no attempt draws anything of its own
    # fresh_noise 1 is the ablation `naive` without gradients, up to the rounding of s - m + m
    fresh, half = (run_toy("inverted", 8, NoPull(), fresh_noise=share)[0] for share in (1.0, 0.5))
    torch.testing.assert_close(fresh, run_toy("naive", 8, NoPull())[0], atol=1e-5, rtol=1e-5)
    assert (half - TOY).abs().mean() < (fresh - TOY).abs().mean()


@pytest.mark.parametrize(("steps", "visited"), [(0, 8), (3, 3), (8, 8), (99, 8)])
@pytest.mark.parametrize("name", ["dime", "inverted", "maskdime2"])
def test_fewer_outer_steps(name, steps, visited):
    seen = []
    flags = {"outer_steps": steps, "inner_steps": "1"}
    _, evaluations = run_toy(name, 8, observe=lambda step, x_t, z_t: seen.append(step), **flags)
    assert seen == list(range(visited)) and Settings(start_step=8, **flags).steps == visited
    assert evaluations == {"dime": visited, "inverted": 2 * visited - 1, "maskdime2": 2 * visited}[name]


SHAPE = torch.Size((2, 3, 8, 8))


def test_the_stream_is_torchs_own_and_an_images_noise_depends_on_its_key_alone():
    noise = PerImageNoise(4)
    together = noise.step([11, 12], 3, 5)
    alone = PerImageNoise(4).step([12], 3, 5)
    for _ in range(3):  # its inner chain's ε's, then its own
        assert torch.equal(together(SHAPE)[1], alone(torch.Size((1, *SHAPE[1:])))[0])
    eps = PerImageNoise(0).noising(list(range(8)))(torch.Size((8, 3, 64, 64)))
    assert abs(eps.mean()) < 0.02  # 98,304 numbers: the standard error is 0.0032
    assert abs(eps.std() - 1) < 0.02
    torch.manual_seed(7)
    noise = StreamNoise(7)
    draws = [noise.noising([0, 1])(SHAPE), noise.step([0, 1], 0, 5)(SHAPE), noise.step([1], 2, 4)(SHAPE)]
    for eps in draws:  # which has not been touched
        assert torch.equal(eps, torch.randn_like(eps))


def test_every_part_of_the_key_matters():
    def first(seed: int, id: int, attempt: int | None = None, index: int = 0) -> torch.Tensor:
        noise = PerImageNoise(seed)
        draw = noise.noising([id]) if attempt is None else noise.step([id], attempt, index)
        return draw(torch.Size((1, 3, 8, 8)))

    keys = [(4, 0), (4, 0, 0, 0), (5, 0), (4, 1), (4, 0, 1, 0), (4, 0, 0, 1), (4, 1, 0, 0), (4, 1, 1, 0)]
    drawn = {key: first(*key) for key in keys}
    for key, eps in drawn.items():
        assert not any(torch.equal(eps, other) for name, other in drawn.items() if name != key), key
