"""Inception-V3 as the FID knows it: TensorFlow's network of 2015, whose pooling differs from torchvision's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch_fid import inception as fid_blocks
from torch import nn
from torchvision.models import inception_v3

INPUT_SIZE = 299
TENSORFLOW_CLASSES = 1008


class InceptionFeatures(nn.Module):
    """Pooled features (2048) of pytorch-fid's Inception-V3; `network` carries the names of its published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.network = inception_v3(
            weights=None, init_weights=False, aux_logits=False, transform_input=False, num_classes=TENSORFLOW_CLASSES
        )
        self.network.Mixed_5b = fid_blocks.FIDInceptionA(192, pool_features=32)
        self.network.Mixed_5c = fid_blocks.FIDInceptionA(256, pool_features=64)
        self.network.Mixed_5d = fid_blocks.FIDInceptionA(288, pool_features=64)
        self.network.Mixed_6b = fid_blocks.FIDInceptionC(768, channels_7x7=128)
        self.network.Mixed_6c = fid_blocks.FIDInceptionC(768, channels_7x7=160)
        self.network.Mixed_6d = fid_blocks.FIDInceptionC(768, channels_7x7=160)
        self.network.Mixed_6e = fid_blocks.FIDInceptionC(768, channels_7x7=192)
        self.network.Mixed_7b = fid_blocks.FIDInceptionE_1(1280)
        self.network.Mixed_7c = fid_blocks.FIDInceptionE_2(2048)
        self.network.fc = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, 2048) of images x (N, 3, H, W) in [-1, 1]."""
        size = (INPUT_SIZE, INPUT_SIZE)
        return self.network(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
