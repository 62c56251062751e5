"""The two ResNet-50 networks of the metrics: VGGFace2 face features and the attribute oracle.

Both descend from one Caffe network, which differs from torchvision's ResNet-50 in two places: the stride of a
stage sits on its first 1x1 convolution instead of the 3x3, and the max pool has no padding and rounds its
size up.
"""

from itertools import product

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import resnet50
from torchvision.transforms import functional as transforms

INPUT_SIZE = 224
BGR_MEAN = (91.4953, 103.8827, 131.0912)
"""Mean blue, green and red of VGGFace2, 0..255."""


def caffe_resnet50() -> nn.Module:
    """ResNet-50 of the Caffe lineage (see above) with torchvision's parameter names and without its last layer.

    Input (N, 3, 224, 224) -> pooled features (N, 2048).
    """
    network = resnet50(weights=None)
    network.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    network.avgpool = nn.AvgPool2d(7)
    network.fc = nn.Identity()
    return network


def vggface2_input(image: Image.Image) -> torch.Tensor:
    """The input of the VGGFace2 network for an RGB image: (3, 224, 224), BGR, 0..255 minus the mean.

    The shorter side is resized to 224 by Pillow's bilinear filter, as in the published FVA script.
    """
    rgb = transforms.pil_to_tensor(transforms.resize(image, INPUT_SIZE)).float()
    return rgb.flip(0) - torch.tensor(BGR_MEAN).view(3, 1, 1)


class Oracle(nn.Module):
    """Attribute oracle of the MNAC and CD metrics: Caffe ResNet-50, a 128-d bottleneck, one linear layer.

    It sees images in its own way, exactly as it was trained: the channels are reversed to BGR while the
    means, red first, are not.
    """

    def __init__(self, num_outputs: int = 40) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.trunk = caffe_resnet50()
        self.bottleneck = nn.Conv2d(2048, 128, kernel_size=1, bias=False)
        self.classifier = nn.Linear(128, num_outputs)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, 128) and logits (N, num_outputs) of RGB images x (N, 3, H, W) in [-1, 1]."""
        mean = x.new_tensor(BGR_MEAN[::-1]).view(1, 3, 1, 1) / 255
        bgr = (x.flip(1) + 1) / 2 - mean
        bgr = F.interpolate(bgr, size=(INPUT_SIZE, INPUT_SIZE), mode="bicubic", align_corners=False)
        features = self.bottleneck(self.trunk(bgr)[:, :, None, None]).flatten(1)
        return features, self.classifier(features)


def oracle_layers() -> dict[str, str]:
    """Layer of a published oracle's `feat_extract` table -> layer of `Oracle`.

    `conv3_1_1x1_proj_bn` -> `trunk.layer2.0.downsample.1`.
    """
    names = {"conv1_7x7_s2": "trunk.conv1", "conv1_7x7_s2_bn": "trunk.bn1", "feat_extract": "bottleneck"}
    parts = {"1x1_reduce": ("conv1", "bn1"), "3x3": ("conv2", "bn2"), "1x1_increase": ("conv3", "bn3")}
    parts["1x1_proj"] = ("downsample.0", "downsample.1")
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block, (part, (conv, norm)) in product(range(blocks), parts.items()):
            published, own = f"conv{stage + 1}_{block + 1}_{part}", f"trunk.layer{stage}.{block}"
            names |= {published: f"{own}.{conv}", f"{published}_bn": f"{own}.{norm}"}
    return names
