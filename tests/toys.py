"""Networks of the golden figures, built once per test run; and processes and stand-ins whose behaviour is known."""

import functools

import numpy as np
import torch
from torch import nn
from torchvision.models import vgg19

from dime.models.classifiers import DenseNetClassifier
from dime.models.perceptual import PerceptualFeatures
from guided_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
)
from guided_diffusion.respace import SpacedDiffusion
from guided_diffusion.script_util import create_gaussian_diffusion, create_model_and_diffusion
from guided_diffusion.unet import UNetModel
from tests.helpers import BASE, fill_, filled_tensor, golden


@functools.cache
def classifier() -> DenseNetClassifier:
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
    model, diffusion = create_model_and_diffusion(**{**BASE, **flags})
    return fill_(model).requires_grad_(False), diffusion


class CountingModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.evaluations = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.evaluations += 1
        level = t.float().view(-1, 1, 1, 1) / 500
        return torch.cat([torch.sin(2 * x + level), torch.cos(x - level)], dim=1)


class ToyPull:
    """Gradients in closed form: towards grey at the clean estimate, a constant step at the noisy image."""

    def class_gradient(self, x_t: torch.Tensor, wrt: torch.Tensor | None = None) -> torch.Tensor:
        if wrt is None:
            return x_t - 0.3
        with torch.enable_grad():
            return torch.autograd.grad((x_t - 0.3).square().sum() / 2, wrt)[0]

    def perceptual_gradient(self, x_t: torch.Tensor) -> float:
        return 0.0

    def distance_gradient(self, z_t: torch.Tensor) -> torch.Tensor:
        return 0.1 * z_t.sign()


def toy_diffusion(timesteps: int) -> SpacedDiffusion:
    """A process of this many respaced timesteps, of 500."""
    return create_gaussian_diffusion(steps=500, learn_sigma=True, timestep_respacing=str(timesteps))


def process(
    mean: ModelMeanType = ModelMeanType.EPSILON,
    variance: ModelVarType = ModelVarType.FIXED_SMALL,
    loss: LossType = LossType.MSE,
    betas: np.ndarray | None = None,
) -> GaussianDiffusion:
    betas = get_named_beta_schedule("linear", 50) if betas is None else betas
    return GaussianDiffusion(betas=betas, model_mean_type=mean, model_var_type=variance, loss_type=loss)


class Counted:
    """A model of one or two functions of (x, t), its outputs side by side, that counts its evaluations."""

    def __init__(self, *outputs) -> None:
        self.outputs, self.evaluations = outputs, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.evaluations += 1
        return torch.cat([output(x, t) for output in self.outputs], dim=1)


def wave(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x + t.view(-1, 1, 1, 1))


def gaussian_eps(diffusion: GaussianDiffusion, std: float):
    """The exact noise prediction for images drawn from N(0, std²): linear in x."""

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha_bar = torch.from_numpy(diffusion.alphas_cumprod).float()[t].view(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() * x / (alpha_bar * std**2 + 1 - alpha_bar)

    return eps
