"""LPIPS (Zhang et al. 2018) on VGG16, split so that an image's features are computed once for all its
comparisons.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import lpips
import torch
from torch import nn

LINEAR_HEADS = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
"""The calibrated layer weights, which come with the lpips package."""


class LPIPSDistance(nn.Module):
    """The `lpips` package's network in two halves: features of images, distance of features."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package calls torchvision in an older way
            self.network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Normalised features of five layers, each (N, C, h, w), for images x (N, 3, H, W) in [-1, 1]."""
        layers = self.network.net(self.network.scaling_layer(x))
        return [lpips.normalize_tensor(layer) for layer in layers]

    def forward(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
        """LPIPS (N,) of two batches of images, given by their features."""
        per_layer = [
            head((layer_a - layer_b).square()).mean(dim=(1, 2, 3))
            for head, layer_a, layer_b in zip(self.network.lins, a, b, strict=True)
        ]
        return torch.stack(per_layer).sum(dim=0)


def lpips_parameter_name(torchvision: str) -> str:
    """The name in `LPIPSDistance` of a convolution of torchvision's VGG16.

    `features.12.weight` -> `network.net.slice3.12.weight`: the package cuts the network before each pooling layer.
    """
    _, layer, entry = torchvision.split(".")
    cut = sum(int(layer) >= pool for pool in (4, 9, 16, 23))
    return f"network.net.slice{cut + 1}.{layer}.{entry}"
