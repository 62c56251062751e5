"""Inception-V3 as the FID knows it: TensorFlow's network of 2015, whose pooling differs from torchvision's.

pytorch-fid's own InceptionV3 cannot be built without a download, so its blocks are put into torchvision's here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch_fid import inception as fid
from torch import nn
from torchvision.models import inception_v3

INPUT_SIZE = 299
TENSORFLOW_CLASSES = 1008


class InceptionFeatures(nn.Module):
    """Pooled features (2048) of pytorch-fid's Inception-V3; `network` carries the names of its published weights."""

    def __init__(self) -> None:
        super().__init__()
        network = inception_v3(
            weights=None, init_weights=False, aux_logits=False, transform_input=False, num_classes=TENSORFLOW_CLASSES
        )
        for name, width, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            setattr(network, f"Mixed_{name}", fid.FIDInceptionA(width, pooled))
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            setattr(network, f"Mixed_{name}", fid.FIDInceptionC(768, width))
        network.Mixed_7b, network.Mixed_7c = fid.FIDInceptionE_1(1280), fid.FIDInceptionE_2(2048)
        network.fc = nn.Identity()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, 2048) of images x (N, 3, H, W) in [-1, 1]."""
        size = (INPUT_SIZE, INPUT_SIZE)
        return self.network(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
