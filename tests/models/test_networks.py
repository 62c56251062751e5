"""Preprocessing in closed form, and the small network; published figures are in tests/core/networks."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from dime.models.perceptual import IMAGENET_MEAN, IMAGENET_STD, PerceptualFeatures
from dime.models.resnet import BGR_MEAN, Oracle, oracle_parameter_name, vggface2_input
from dime.models.small_cnn import SmallCNN
from tests.helpers import fill_, rnd


def test_unknown_oracle_names_stay_as_they_are():
    for name in ("conv6_1_3x3.weight", "conv2_1_5x5.weight", "fc.weight", "conv2_x_3x3.weight"):
        assert oracle_parameter_name(name) == name


def test_vggface2_input_is_bgr_minus_mean():
    red, green, blue = 200, 100, 50
    x = vggface2_input(Image.new("RGB", (64, 64), (red, green, blue)))
    expected = torch.tensor([blue, green, red]) - torch.tensor(BGR_MEAN)
    assert x.shape == (3, 224, 224)
    # a constant image stays constant under resizing
    assert torch.equal(x, expected.view(3, 1, 1).expand(3, 224, 224))


def test_vggface2_input_resizes_as_pillow_does():
    """Pillow rounds to grey levels; resizing tensors would not."""
    x = vggface2_input(Image.effect_noise((100, 100), 64).convert("RGB")) + torch.tensor(BGR_MEAN).view(3, 1, 1)
    # 1e-4: adding the mean back in float32
    assert (x - x.round()).abs().max() < 1e-4


def test_oracle_preprocessing_reverses_channels_but_not_means():
    seen = []
    oracle = fill_(Oracle())
    oracle.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        oracle(torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    means = torch.tensor([131.0912, 103.8827, 91.4953]) / 255
    expected = torch.tensor([0.0, 0.5, 1.0]) - means
    assert seen[0].shape == (1, 3, 224, 224)
    # 1e-6: the bicubic weights sum to 1 in float32 only
    assert (seen[0] - expected.view(1, 3, 1, 1)).abs().max() < 1e-6


def test_one_perceptual_layer_is_a_convolution_of_the_normalised_image():
    network = fill_(PerceptualFeatures(1))
    x = 2 * rnd(1, 2, 3, 32, 32)  # beyond [-1, 1] too
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    convolution = network.features[0]
    expected = torch.conv2d(((x.clamp(-1, 1) + 1) / 2 - mean) / std, convolution.weight, convolution.bias, padding=1)
    # 1e-5: the same float32 operations
    assert torch.allclose(network(x), expected, atol=1e-5)


def test_eighteen_perceptual_layers_are_relu_3_4_of_vgg19():
    features = fill_(PerceptualFeatures(18))(rnd(1, 2, 3, 32, 32))
    assert features.shape == (2, 256, 8, 8)
    assert features.min() == 0 < features.max()


@pytest.mark.parametrize("layer", [0, 38, -1])
def test_perceptual_features_need_a_layer_that_exists(layer):
    with pytest.raises(ValueError, match="1 to 37"):
        PerceptualFeatures(layer)


def test_perceptual_gradient_reaches_the_image():
    network = fill_(PerceptualFeatures(4)).requires_grad_(False)
    x = rnd(2, 1, 3, 16, 16).clamp(-0.9, 0.9).requires_grad_()
    network(x).square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_small_network_is_small():
    network = SmallCNN().eval()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.2e6, rel=0.05)
    assert network(rnd(0, 2, 3, 64, 48)).shape == (2, 40)
