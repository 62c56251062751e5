"""The classifier of the DiME paper, under the published parameter names."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import densenet121


class DenseNetTrunk(nn.Module):
    """DenseNet-121 without its last layer; its parameters lie under `feat_extract.`, as in published checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.feat_extract = densenet121(weights=None)
        self.feat_extract.classifier = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of images: x (N, 3, H, W) in [-1, 1], without any further normalisation -> (N, 1024)."""
        return self.feat_extract(x)


class DenseNetClassifier(nn.Module):
    """Attribute classifier of the DiME paper: `feat_extract` (the trunk) and `classifier` (linear).

    num_outputs: how many logits there are; 40 for CelebA's attributes, one binary decision each.
    """

    def __init__(self, num_outputs: int = 40) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.feat_extract = DenseNetTrunk()
        self.classifier = nn.Linear(1024, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images: x (N, 3, H, W) in [-1, 1] -> (N, num_outputs)."""
        return self.classifier(self.feat_extract(x))
