"""A small convolutional classifier for small images: trained in minutes where the DenseNet-121 takes hours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class SmallCNN(nn.Module):
    """Four levels of two 3x3 convolutions, the mean over the image, and one linear layer; 1.2 M parameters.

    SiLU instead of ReLU: its gradient with respect to the image, which guides the counterfactuals, is continuous.

    num_outputs: how many logits there are, one binary decision each. channels: C, of the images.
    """

    def __init__(self, num_outputs: int = 40, widths: tuple[int, ...] = (32, 64, 128, 256), channels: int = 3) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.levels = len(widths)

        def convolution(width_in: int, width: int) -> tuple[nn.Module, ...]:
            return nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()

        levels = [
            nn.Sequential(*convolution(width_in, width), *convolution(width, width), nn.AvgPool2d(2))
            for width_in, width in zip((channels, *widths), widths, strict=False)
        ]
        self.feat_extract = nn.Sequential(*levels, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images: x (N, C, H, W) in [-1, 1], H and W at least 16 -> (N, num_outputs)."""
        return self.classifier(self.feat_extract(x))

    @classmethod
    def shaped_like(cls, state: Mapping[str, torch.Tensor]) -> SmallCNN:
        """The network that these weights are recognised as, without them."""
        firsts = [state[name] for name in sorted(state) if name.endswith(".0.weight") and state[name].ndim == 4]
        return cls(len(state["classifier.weight"]), tuple(map(len, firsts)), channels=firsts[0].shape[1])

    @staticmethod
    def recognises(state: Mapping[str, torch.Tensor]) -> bool:
        """Whether these are such a network's weights, by the names of its first convolution, its norm, and its head."""
        return {"feat_extract.0.0.weight", "feat_extract.0.1.running_var", "classifier.weight"} <= state.keys()


class SmallOracle(nn.Module):
    """A SmallCNN in the place of the oracle: x (N, 3, H, W) in [-1, 1] -> features, logits."""

    def __init__(self, network: SmallCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, D) and logits (N, C)."""
        features = self.network.feat_extract(x)
        return features, self.network.classifier(features)


class SmallPerceptual(nn.Module):
    """The first levels of a SmallCNN in the place of VGG19's layers, for the perceptual distance.

    levels: how many, 1 to network.levels.
    """

    def __init__(self, network: SmallCNN, levels: int) -> None:
        super().__init__()
        self.features = network.feat_extract[:levels]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, C, h, w) of images x, clamped to [-1, 1]: (N, 3, H, W), or grey (N, 1, H, W)."""
        return self.features(x.expand(-1, self.features[0][0].in_channels, -1, -1).clamp(-1, 1))
