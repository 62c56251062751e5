"""VGG19 features for the perceptual distance between images."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import vgg19

VGG19_LAYERS = 37
"""How many layers the convolutional part of VGG19 has."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PerceptualFeatures(nn.Module):
    """The first layers of torchvision's VGG19, with the ImageNet preprocessing in front of them.

    layer: how many layers are kept, `features[:layer]`, 1 to 37. The parameters keep torchvision's names
    (`features.0.weight` …) and hold nothing until weights are loaded. Raises ValueError for another number of layers.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        if not 1 <= layer <= VGG19_LAYERS:
            raise ValueError(f"VGG19 has layers 1 to {VGG19_LAYERS}, not {layer}")
        with torch.device("meta"):  # the whole network has 144 million weights, of which the slice keeps a few
            whole = vgg19(weights=None, init_weights=False)
        self.features = whole.features[:layer].to_empty(device=torch.get_default_device())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, C, h, w) of images x (N, 3, H, W); x is clamped to [-1, 1]."""
        mean, std = x.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1), x.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
        return self.features(((x.clamp(-1, 1) + 1) / 2 - mean) / std)
