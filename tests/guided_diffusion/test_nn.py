"""Small pieces: the names that scripts import, and what they compute."""

from __future__ import annotations

import torch

from guided_diffusion.nn import avg_pool_nd, checkpoint, conv_nd, linear, scale_module, update_ema, zero_module
from tests.helpers import fill_, rnd


def test_layers_of_one_two_and_three_dimensions():
    for dims in (1, 2, 3):
        x = rnd(0, 1, 2, *[4] * dims)
        assert conv_nd(dims, 2, 3, 3, padding=1)(x).shape == (1, 3, *[4] * dims)
        assert avg_pool_nd(dims, kernel_size=2, stride=2)(x).shape == (1, 2, *[2] * dims)


def test_averages_move_towards_the_parameters_without_a_graph():
    layer = fill_(linear(3, 2))
    averages = [torch.ones_like(p) for p in layer.parameters()]
    expected = [0.9 * average + 0.1 * p for average, p in zip(averages, layer.parameters(), strict=True)]
    update_ema(averages, layer.parameters(), rate=0.9)
    torch.testing.assert_close(averages, [value.detach() for value in expected])


def test_parameters_are_scaled_and_zeroed_in_place():
    layer = fill_(linear(3, 2))
    weight = layer.weight.detach().clone()
    assert scale_module(layer, 2.0) is layer and torch.equal(layer.weight, 2 * weight)
    assert zero_module(layer) is layer and not layer.weight.any() and not layer.bias.any()


def test_a_checkpoint_has_the_gradients_of_the_function():
    layer, x = fill_(linear(3, 2)), rnd(0, 4, 3)
    gradients = []
    for flag in (False, True):
        layer.zero_grad()
        checkpoint(lambda u: layer(u).square(), (x,), layer.parameters(), flag).sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)
