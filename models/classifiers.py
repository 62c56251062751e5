"""Classifiers: the DiME paper's, under the published parameter names, and a small one, trained in minutes."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn


class DenseNetClassifier(nn.Module):
    """Attribute classifier of the DiME paper: DenseNet-121 in `feat_extract.feat_extract`, and a linear `classifier`.

    num_outputs: how many logits there are; 40 for CelebA's attributes, one binary decision each.
    """

    def __init__(self, num_outputs: int = 40) -> None:
        from torchvision.models import densenet121  # takes seconds, which other classifiers need not wait

        super().__init__()
        self.num_outputs = num_outputs
        trunk = densenet121(weights=None)
        trunk.classifier = nn.Identity()
        self.feat_extract = nn.Sequential(OrderedDict(feat_extract=trunk))  # twice, as in published checkpoints
        self.classifier = nn.Linear(1024, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images: x (N, 3, H, W) in [-1, 1], without any further normalisation -> (N, num_outputs)."""
        return self.classifier(self.feat_extract(x))


class SmallCNN(nn.Module):
    """Four levels of two 3x3 convolutions, the mean over the image, and one linear layer; 1.2 M parameters.

    SiLU instead of ReLU: its gradient with respect to the image, which guides the counterfactuals, is continuous.

    num_outputs: how many logits there are, one binary decision each. channels: C, of the images.
    """

    def __init__(self, num_outputs: int = 40, widths: tuple[int, ...] = (32, 64, 128, 256), channels: int = 3) -> None:
        super().__init__()
        self.num_outputs, self.channels = num_outputs, channels
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
    def shaped_like(cls, state: Mapping[str, torch.Tensor]) -> "SmallCNN | None":
        """The network that these weights are of, without them; None where they are of another kind.

        It is known by the names of its first convolution, that one's norm, and its head.
        """
        if not {"feat_extract.0.0.weight", "feat_extract.0.1.running_var", "classifier.weight"} <= state.keys():
            return None
        firsts = [state[name] for name in sorted(state) if name.endswith(".0.weight") and state[name].ndim == 4]
        with torch.device("meta"):
            return cls(len(state["classifier.weight"]), tuple(map(len, firsts)), channels=firsts[0].shape[1])


class SmallOracle(nn.Module):
    """A SmallCNN in the place of the oracle: x (N, 3, H, W) in [-1, 1] -> features (N, D), logits (N, K)."""

    def __init__(self, network: SmallCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As Oracle.forward."""
        features = self.network.feat_extract(x)
        return features, self.network.classifier(features)


class SmallPerceptual(nn.Module):
    """The first 1 to network.levels levels of a SmallCNN in the place of VGG19's layers, for the perceptual loss."""

    def __init__(self, network: SmallCNN, levels: int) -> None:
        super().__init__()
        self.features = network.feat_extract[:levels]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As PerceptualFeatures.forward."""
        return self.features(x.expand(-1, self.features[0][0].in_channels, -1, -1).clamp(-1, 1))
