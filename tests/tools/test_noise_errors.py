"""The errors of ε on networks whose answer is known."""

import pytest
import torch

from guided_diffusion.script_util import create_gaussian_diffusion
from tests.helpers import rnd
from tools.noise_errors import noise_error

X = rnd(3, 6, 3, 8, 8).clamp(-1, 1)
DIFFUSION = create_gaussian_diffusion(steps=100)
T = 60


def answer(change):
    """A network that knows x, and gives the true ε after a change."""

    def network(z, t):
        a = DIFFUSION.sqrt_alphas_cumprod[T], DIFFUSION.sqrt_one_minus_alphas_cumprod[T]
        return change((z - float(a[0]) * X) / float(a[1]))

    return network


@pytest.mark.parametrize(
    ("change", "mse", "mean_rms", "followed"),
    [
        (lambda eps: eps, 0, 0, 1),
        (lambda eps: eps + 0.5, 0.25, 0.5, 1),  # the same shift of all images is no regression's business
        (lambda eps: eps - eps.mean((2, 3), keepdim=True), None, None, 0),  # blind to the mean
    ],
)
def test_known_answers(change, mse, mean_rms, followed):
    found = noise_error(answer(change), DIFFUSION, X, T, seed=5)
    means = torch.randn(X.shape, generator=torch.Generator().manual_seed(5)).mean((2, 3))
    expected = means.square().mean()  # of a network that answers with a mean of 0
    mse, mean_rms = (float(expected) if mse is None else mse), (float(expected.sqrt()) if mse is None else mean_rms)
    assert found == pytest.approx((mse, mean_rms, followed), abs=1e-5)  # the network undoes the noising in float32
