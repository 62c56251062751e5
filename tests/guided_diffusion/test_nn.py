"""Small pieces: the names that scripts import, and what they compute."""

from __future__ import annotations

import torch

from guided_diffusion.nn import avg_pool_nd, conv_nd, linear, scale_module, update_ema, zero_module
from tests.helpers import fill_, rnd


def test_layers_of_one_two_and_three_dimensions():
    for dims in (1, 2, 3):
        x = rnd(0, 1, 2, *[4] * dims)
        assert conv_nd(dims, 2, 3, 3, padding=1)(x).shape == (1, 3, *[4] * dims)
        assert avg_pool_nd(dims, kernel_size=2, stride=2)(x).shape == (1, 2, *[2] * dims)


def test_parameters_are_averaged_scaled_and_zeroed_in_place():
    layer = fill_(linear(3, 2))
    weight = layer.weight.detach().clone()
    averages = [torch.ones_like(p) for p in layer.parameters()]
    update_ema(averages, layer.parameters(), rate=0.9)
    torch.testing.assert_close(averages[0], 0.9 + 0.1 * weight)
    assert scale_module(layer, 2.0) is layer and torch.equal(layer.weight, 2 * weight)
    assert zero_module(layer) is layer and not layer.weight.any() and not layer.bias.any()
