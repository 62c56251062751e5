"""A GAN and a VAE for small square images, to be compared with a diffusion model (compare-generators.py).

Each has a half that halves the side of an image until it is 4 and one that doubles it again, and what every generator
of the comparison has: `losses` of a batch, and `sample`.
Images are (N, C, H, W) in [-1, 1], with H = W a power of two and at least 8.
"""

import math
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

LATENT = 64
"""Dimensions of the noise that an image is made from."""
ACTIVE = 0.01
"""A latent dimension is in use where its mean varies by more than this over images (Burda et al. 2016, section 5)."""
HALF_LEVEL = 1 / 255
"""Half the distance of two of the 256 grey levels on the scale [-1, 1]."""


def halving(channels: list[int], norm: bool) -> nn.Sequential:
    """Strided convolutions: (N, channels[0], H, H) -> (N, channels[-1], 4, 4), with batch norms or spectral ones."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(channels):
        convolution = nn.Conv2d(inside, outside, 4, stride=2, padding=1)
        layers += [convolution, nn.BatchNorm2d(outside)] if norm else [spectral_norm(convolution)]
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers)


def doubling(channels: list[int]) -> nn.Sequential:
    """Transposed convolutions: (N, LATENT) -> (N, channels[-1], H, H), the first of them to 4x4."""
    layers = [nn.Unflatten(1, (LATENT, 1, 1)), nn.ConvTranspose2d(LATENT, channels[0], 4)]
    for inside, outside in pairwise(channels):
        layers += [nn.BatchNorm2d(inside), nn.ReLU(), nn.ConvTranspose2d(inside, outside, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)


class Generator(nn.Module):
    """What GAN and VAE share.

    image_size, channels: of the images. width: channels of the largest feature maps; each halving doubles them. Raises
    ValueError for an image_size that does not fit.
    """

    quick: ClassVar[dict[str, int]] = {}

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        halvings = image_size.bit_length() - 3
        if image_size != 4 << halvings or halvings < 1:
            raise ValueError(f"images of {image_size}x{image_size}: a GAN and a VAE need a power of two from 8 on")
        self.channels, self.widths = channels, [width << level for level in range(halvings)]

    def noise(self, count: int) -> Tensor:
        """What samples grow from, (count, LATENT)."""
        return torch.randn(count, LATENT, device=next(self.parameters()).device)


class GAN(Generator):
    """DCGAN (Radford et al. 2016), its discriminator with spectral (Miyato et al. 2018) instead of batch norms."""

    adam = (2e-4, (0.5, 0.999))

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        super().__init__(image_size, channels, width)
        self.generator = nn.Sequential(doubling([*self.widths[::-1], channels]), nn.Tanh())
        head = spectral_norm(nn.Conv2d(self.widths[-1], 1, 4))
        self.discriminator = nn.Sequential(halving([channels, *self.widths], norm=False), head, nn.Flatten(0))

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """The losses (N,) of both players, non-saturating (Goodfellow et al. 2014, section 3), and their sum, `loss`.

        One backward pass of the sum gives each player the gradients of its own loss and none of the other's.
        """
        fake = self.sample(len(x))
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        generator = F.softplus(-torch.func.functional_call(self.discriminator, fixed, (fake,)).float())
        real, found = self.discriminator(x).float(), self.discriminator(fake.detach()).float()
        discriminator = F.softplus(-real) + F.softplus(found)
        return {"loss": generator + discriminator, "generator": generator, "discriminator": discriminator}

    def sample(self, count: int) -> Tensor:
        """Images (count, C, H, W)."""
        return self.generator(self.noise(count))


class VAE(Generator):
    """A variational autoencoder (Kingma and Welling 2014) of 8-bit images, so that its bound is one in bits.

    The decoder gives mean and scale of each pixel's logistic distribution over the 256 grey levels.
    """

    adam = (1e-3, (0.9, 0.999))

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        super().__init__(image_size, channels, width)
        code = nn.Conv2d(self.widths[-1], 2 * LATENT, 4)
        self.encoder = nn.Sequential(halving([channels, *self.widths], norm=True), code, nn.Flatten(1))
        self.decoder = doubling([*self.widths[::-1], 2 * channels])

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """The negative ELBO in bits per dimension, `loss`, and its parts reconstruction and kl, (N,) each.

        One draw of z for each image; KL(q(z | x) || N(0, 1)) in closed form.
        """
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        pixels, log_scale = self.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean)).chunk(2, dim=1)
        bits = math.log(2) * x[0].numel()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / bits
        log_likelihood = discretized_logistic(x, pixels.float(), log_scale.float().clamp(min=-7))
        reconstruction = -log_likelihood.flatten(1).sum(1) / bits
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def active_units(self, x: Tensor) -> int:
        """How many latent dimensions say something of images x; the others have collapsed to the prior."""
        return int((self.encoder(x)[:, :LATENT].var(0) > ACTIVE).sum())

    def sample(self, count: int) -> Tensor:
        """The means (count, C, H, W) of the images' distributions; pixels drawn from them would add grain."""
        return self.decoder(self.noise(count))[:, : self.channels].clamp(-1, 1)


def discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability in nats of 8-bit x in [-1, 1] under logistic distributions, elementwise (Salimans et al. 2017).

    Each is integrated over a grey level, the first and the last reaching to infinity: over all levels it sums to one.
    σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)) keeps its logarithm exact far from the mean, too.
    """
    below, above = ((x - mean + edge) * (-log_scale).exp() for edge in (-HALF_LEVEL, HALF_LEVEL))
    inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    return torch.where(x < -0.999, F.logsigmoid(above), torch.where(x > 0.999, F.logsigmoid(-below), inside))
