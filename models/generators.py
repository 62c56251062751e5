"""A GAN and a VAE for small square images, to be compared with a diffusion model (compare-generators.py).

Both have two halves of the same shape, one that halves the side until it is 4 and one that doubles it again, and what
every generator of the comparison has: `losses` of a batch, `noise` that samples grow from, `draw`, which makes them.
Images are (N, C, H, W) in [-1, 1], with H = W a power of two and at least 8.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

GREY_LEVEL = 2 / 255
"""The distance of two of the 256 grey levels on the scale [-1, 1]."""
ACTIVE = 0.01
"""A latent dimension is in use where its mean varies by more than this over images (Burda et al. 2016, section 5)."""


def widths(image_size: int, width: int) -> list[int]:
    """Channels of the levels between the image's side and 4: width, 2 width, …

    Raises ValueError for a side that is no power of two, or below 8.
    """
    levels = round(math.log2(max(image_size, 1))) - 2
    if levels < 1 or image_size != 4 * 2**levels:
        raise ValueError(f"images of {image_size}x{image_size}: GAN and VAE need a power of two that is at least 8")
    return [width * 2**level for level in range(levels)]


def halving(channels: list[int], norm: bool) -> nn.Sequential:
    """Strided convolutions: (N, channels[0], H, H) -> (N, channels[-1], 4, 4)."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(channels):
        convolution = nn.Conv2d(inside, outside, 4, stride=2, padding=1)
        layers += [convolution, nn.BatchNorm2d(outside)] if norm else [spectral_norm(convolution)]
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers)


def doubling(latent: int, channels: list[int]) -> nn.Sequential:
    """Transposed convolutions: (N, latent) -> (N, channels[-1], H, H), the first of them to 4x4."""
    layers = [nn.Unflatten(1, (latent, 1, 1)), nn.ConvTranspose2d(latent, channels[0], 4)]
    for inside, outside in pairwise(channels):
        layers += [nn.BatchNorm2d(inside), nn.ReLU(), nn.ConvTranspose2d(inside, outside, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)


class GAN(nn.Module):
    """DCGAN (Radford et al. 2016), its discriminator with spectral norms (Miyato et al. 2018) instead of batch norms.

    image_size, channels: of the images. width: channels of the largest feature maps. latent: dimensions of the noise.
    Raises ValueError for an image_size that does not fit.
    """

    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}

    def __init__(self, image_size: int, channels: int, width: int, latent: int = 64) -> None:
        super().__init__()
        self.latent, levels = latent, widths(image_size, width)
        self.generator = nn.Sequential(doubling(latent, [*levels[::-1], channels]), nn.Tanh())
        head = spectral_norm(nn.Conv2d(levels[-1], 1, 4))
        self.discriminator = nn.Sequential(halving([channels, *levels], norm=False), head, nn.Flatten(0))

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """The losses (N,) of both players, non-saturating (Goodfellow et al. 2014, section 3), and their sum, `loss`.

        One backward pass of the sum gives each player the gradients of its own loss and nothing of the other's.
        """
        fake = self.generator(self.noise(len(x)).to(x.device))
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        believed = torch.func.functional_call(self.discriminator, fixed, (fake,))
        generator = F.softplus(-believed.float())
        real, found = self.discriminator(x), self.discriminator(fake.detach())
        discriminator = F.softplus(-real.float()) + F.softplus(found.float())
        return {"loss": generator + discriminator, "generator": generator, "discriminator": discriminator}

    def noise(self, count: int) -> Tensor:
        """What `count` samples grow from, (count, latent), on the CPU."""
        return torch.randn(count, self.latent)

    def draw(self, noise: Tensor) -> Tensor:
        """Samples (N, C, H, W)."""
        return self.generator(noise)


class VAE(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014) of 8-bit images, so that its bound is one in bits.

    Each pixel is a logistic distribution over the 256 grey levels, whose mean and scale the decoder gives. Arguments
    as GAN's.
    """

    adam = {"lr": 1e-3, "betas": (0.9, 0.999)}

    def __init__(self, image_size: int, channels: int, width: int, latent: int = 64) -> None:
        super().__init__()
        self.latent, levels = latent, widths(image_size, width)
        code = nn.Conv2d(levels[-1], 2 * latent, 4)
        self.encoder = nn.Sequential(halving([channels, *levels], norm=True), code, nn.Flatten(1))
        self.decoder = doubling(latent, [*levels[::-1], 2 * channels])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x), (N, latent) each."""
        return self.encoder(x).float().chunk(2, dim=1)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale of the pixels' distributions, (N, C, H, W) each."""
        mean, log_scale = self.decoder(z).float().chunk(2, dim=1)
        return mean, log_scale.clamp(min=-7)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """The negative ELBO in bits per dimension, `loss`, and its parts reconstruction and kl, (N,) each.

        One draw of z for each image; KL(q(z | x) || N(0, 1)) in closed form.
        """
        mean, log_variance = self.encode(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        bits = math.log(2) * x[0].numel()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / bits
        reconstruction = -discretized_logistic(x, *self.decode(z)).flatten(1).sum(1) / bits
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    @torch.no_grad()
    def active_units(self, x: Tensor) -> int:
        """How many latent dimensions say something of images x; the others have collapsed to the prior."""
        mean, _ = self.encode(x)
        return int((mean.var(0) > ACTIVE).sum())

    def noise(self, count: int) -> Tensor:
        """What `count` samples grow from, (count, latent), on the CPU."""
        return torch.randn(count, self.latent)

    def draw(self, noise: Tensor) -> Tensor:
        """The means (N, C, H, W) of the images' distributions; pixels drawn from them would add grain."""
        return self.decode(noise)[0].clamp(-1, 1)


def discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability in nats of 8-bit x in [-1, 1] under logistic distributions, elementwise (Salimans et al. 2017).

    Each is integrated over the grey level, the first and the last reaching to infinity: over all levels it sums to one.
    σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)) keeps its logarithm exact far from the mean, too.
    """
    inverse = (-log_scale).exp()
    above = (x - mean + GREY_LEVEL / 2) * inverse
    below = (x - mean - GREY_LEVEL / 2) * inverse
    inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    return torch.where(x < -0.999, F.logsigmoid(above), torch.where(x > 0.999, F.logsigmoid(-below), inside))
