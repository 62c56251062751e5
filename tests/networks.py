"""The networks behind the golden figures, with deterministic weights; built once per test run."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torchvision.models import vgg19

from dime.models.classifiers import DenseNetClassifier
from dime.models.perceptual import PerceptualFeatures
from guided_diffusion.respace import SpacedDiffusion
from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from guided_diffusion.unet import UNetModel
from tests.helpers import BASE, fill_, filled_tensor, golden


@functools.cache
def classifier() -> DenseNetClassifier:
    """The classifier, with the golden head."""
    network = DenseNetClassifier().eval().requires_grad_(False)
    fill_(network.feat_extract)
    heads = golden("heads")
    network.classifier.weight.copy_(torch.from_numpy(heads["classifier_weight"]))
    network.classifier.bias.copy_(torch.from_numpy(heads["classifier_bias"]))
    return network


@functools.cache
def vgg19_features(layer: int) -> nn.Module:
    """VGG19's features[:layer] with its preprocessing; the weights are those of the whole network's names."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in vgg19(weights=None).state_dict().items()}
    network = PerceptualFeatures(layer)
    network.load_state_dict({name: filled_tensor(name, shapes[name]) for name in network.state_dict()})
    return network.eval().requires_grad_(False)


@functools.cache
def base_unet(**flags: object) -> tuple[UNetModel, SpacedDiffusion]:
    """The small U-Net of the golden figures (tests.helpers.BASE) and its diffusion process."""
    model, diffusion = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **BASE, **flags})
    return fill_(model).requires_grad_(False), diffusion
