"""Features that images are compared by: VGG19's, LPIPS (Zhang et al. 2018) on VGG16, and the FID's Inception-V3."""

import warnings
from collections.abc import Sequence

import lpips
import torch
import torch.nn.functional as F
from pytorch_fid import inception as fid
from torch import nn
from torchvision.models import inception_v3, vgg19

VGG19_LAYERS = 37
"""How many layers the convolutional part of VGG19 has."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PerceptualFeatures(nn.Module):
    """The first layers of torchvision's VGG19, with the ImageNet preprocessing in front of them.

    layer: how many layers are kept, `features[:layer]`, 1 to 37. The parameters keep torchvision's names
    (`features.0.weight` …) and hold nothing until weights are loaded.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        with torch.device("meta"):  # the whole network has 144 million weights, of which the slice keeps a few
            whole = vgg19(weights=None, init_weights=False)
        self.features = whole.features[:layer].to_empty(device=torch.get_default_device())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, C, h, w) of images x, clamped to [-1, 1]: (N, 3, H, W), or grey (N, 1, H, W)."""
        x = x.expand(-1, 3, -1, -1)
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


class InceptionFeatures(nn.Module):
    """Inception-V3 as the FID knows it: TensorFlow's network of 2015, whose pooling differs from torchvision's.

    pytorch-fid's own InceptionV3 cannot be built without a download, so its blocks are put into torchvision's here.
    `network` carries the names of its published weights.
    """

    def __init__(self) -> None:
        super().__init__()
        network = inception_v3(
            weights=None, init_weights=False, aux_logits=False, transform_input=False, num_classes=1008
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
        return self.network(F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False))
