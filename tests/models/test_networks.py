"""The networks against the published code's outputs, and their preprocessing in closed form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from dime.models.classifiers import DenseNetClassifier
from dime.models.perceptual import IMAGENET_MEAN, IMAGENET_STD, PerceptualFeatures
from dime.models.resnet import BGR_MEAN, Oracle, caffe_resnet50, oracle_parameter_name, vggface2_input
from tests.helpers import GOLDEN, fill_, filled, golden, relative_error, rnd

KEYS = json.loads(Path(GOLDEN / "state_dict_keys.json").read_text())
TOLERANCE = 2e-5  # float32 on another machine, other kernels


def build(network: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def test_classifier_as_published():
    classifier = DenseNetClassifier()
    build(classifier.feat_extract, filled(KEYS["classifier"]["feat_extract"]))
    build(classifier.classifier, filled(KEYS["classifier"]["classifier"]))
    x = rnd(3, 2, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        assert relative_error(classifier.eval().feat_extract(x), golden("networks")["classifier_features"]) < TOLERANCE
        assert relative_error(classifier(x), golden("networks")["classifier_logits"]) < TOLERANCE


def test_oracle_as_published():
    state = {oracle_parameter_name(k): v for k, v in filled(KEYS["oracle"]["feat_extract"]).items()}
    state |= {f"classifier.{k}": v for k, v in filled(KEYS["oracle"]["classifier"]).items()}
    features, logits = build(Oracle(), state)(rnd(4, 2, 3, 128, 128).clamp(-1, 1))
    assert relative_error(features, golden("networks")["oracle_features"]) < TOLERANCE
    assert relative_error(logits, golden("networks")["oracle_logits"]) < TOLERANCE


def test_vggface2_as_published():
    state = {k: v for k, v in filled(KEYS["vggface2_resnet50"]).items() if not k.startswith("fc.")}
    features = build(caffe_resnet50(), state)(60 * rnd(5, 2, 3, 224, 224))
    assert features.shape == (2, 2048)
    assert relative_error(features[:, ::16], golden("networks")["vggface2_features"]) < TOLERANCE


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
