"""Perceptual distances between images: VGG19 features, and LPIPS (Zhang et al. 2018) on VGG16."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import lpips
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


class LPIPSDistance(lpips.LPIPS):
    """The `lpips` package's network in two halves, so that an image's features are computed once for all its pairs."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package calls torchvision in an older way
            super().__init__(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        for head in range(self.L):  # the package lists its heads twice, by name and in a row
            delattr(self, f"lin{head}")

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Normalised features of five layers, each (N, C, h, w), for images x (N, 3, H, W) in [-1, 1]."""
        return [lpips.normalize_tensor(layer) for layer in self.net(self.scaling_layer(x))]

    def forward(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
        """LPIPS (N,) of two batches of images, given by their features."""
        layers = zip(self.lins, a, b, strict=True)
        return torch.stack([head((a - b).square()).mean(dim=(1, 2, 3)) for head, a, b in layers]).sum(dim=0)

    @staticmethod
    def published_name(own: str) -> str:
        """How an entry is published: `net.slice3.12.bias` as `features.12.bias`, `lins.0.…` as `lin0.…`."""
        return re.sub(r"^lins\.", "lin", re.sub(r"^net\.slice\d\.", "features.", own))
