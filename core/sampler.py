"""The paper's algorithm and nothing else.

Notation, all images (N, 3, H, W):

    x     the input, in [-1, 1]
    z_t   the noisy image being denoised (the diffusion library calls it x_t)
    x_t   the clean estimate of z_t at which the classifier is asked; it starts as x
    i     an index of the respaced process, from τ - 1 down to 0
    ᾱ_i   alphas_cumprod[i]

The network is evaluated once per distinct (z, i): its output at a new z_t serves both the chain that estimates x_t
and the next outer step. With τ = 60 that makes 1771 evaluations instead of 1830, and changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from core.noise import Draw
from guided_diffusion.gaussian_diffusion import GaussianDiffusion

Gradient = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(x_t, z_t, sqrt(ᾱ_i)) -> what is taken off the mean, in units of the variance."""

Observer = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with (step, x_t, z_t) at the start of every outer step; step counts from 0."""


class Gaussian(NamedTuple):
    """p(z_{i-1} | z_i), element by element, and the clean image that its mean stands for."""

    mean: torch.Tensor
    variance: torch.Tensor
    std: torch.Tensor
    pred_xstart: torch.Tensor


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model at the indices of its respaced process.

    labels: (N, C) for a class-conditional model.
    """

    model: nn.Module
    diffusion: GaussianDiffusion
    labels: torch.Tensor | None = None

    def output(self, z: torch.Tensor, i: int) -> torch.Tensor:
        """One evaluation of the network."""
        conditions = {} if self.labels is None else {"y": self.labels}
        return self.diffusion.model_output(self.model, z, _indices(z, i), conditions)

    def reverse(self, output: torch.Tensor, z: torch.Tensor, i: int, clip: bool = True) -> Gaussian:
        """What an output at (z, i) says about the next z; evaluates nothing, draws nothing."""
        p = self.diffusion.interpret_output(output, z, _indices(z, i), clip_denoised=clip)
        return Gaussian(p["mean"], p["variance"], (0.5 * p["log_variance"]).exp(), p["pred_xstart"])

    def noised(self, x: torch.Tensor, tau: int, eps: torch.Tensor) -> torch.Tensor:
        """z ~ q(z_τ | x). As published: schedule index τ, although denoising starts at index τ - 1."""
        return self.diffusion.q_sample(x, _indices(x, tau), noise=eps)

    def sqrt_alpha_bar(self, i: int) -> float:
        """sqrt(ᾱ_i)."""
        return float(self.diffusion.sqrt_alphas_cumprod[i])


def _indices(z: torch.Tensor, i: int) -> torch.Tensor:
    return torch.full((len(z),), i, dtype=torch.long, device=z.device)


@dataclass(frozen=True)
class DiME:
    """Algorithm 1 of the paper: guided denoising whose gradients are taken at clean estimates.

    Args:
        tau: noise level τ, from 1 to T' - 1.
        clip_denoised: clip the outer steps' prediction of the clean image to [-1, 1] (the inner ones always are).
        stochastic: the chains that estimate x_t sample; else they follow the means.
        guided_iterations: from this outer step on, no gradient and no new estimate.
        sampling_scale: multiplies the ε's of the reverse steps.
    """

    tau: int
    clip_denoised: bool = True
    stochastic: bool = True
    guided_iterations: int = 9_999_999
    sampling_scale: float = 1.0

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        x: torch.Tensor,
        z_t: torch.Tensor,
        gradient: Gradient,
        noise: Callable[[int], Draw],
        observe: Observer | None = None,
    ) -> torch.Tensor:
        """Denoise z_t ~ q(z_τ | x) into the counterfactual of x. noise(i) gives outer step i's numbers."""
        x_t = x
        output = denoiser.output(z_t, self.tau - 1)
        for step, i in enumerate(reversed(range(self.tau))):
            if observe:
                observe(step, x_t, z_t)
            draw = self._scaled(noise(i))
            p = denoiser.reverse(output, z_t, i, clip=self.clip_denoised)
            mean = p.mean
            if step < self.guided_iterations:
                mean = mean - p.variance * gradient(x_t, z_t, denoiser.sqrt_alpha_bar(i))
            eps = draw(z_t.shape)  # also at the last index, which does not use it: the published order of draws
            z_t = mean + p.std * eps if i > 0 else mean
            if i > 0:
                output = denoiser.output(z_t, i - 1)
                if step < self.guided_iterations:
                    x_t = self._estimate(denoiser, z_t, i - 1, output, draw)
        return z_t

    def _estimate(self, denoiser: Denoiser, z: torch.Tensor, i: int, output: torch.Tensor, draw: Draw) -> torch.Tensor:
        """x_t: the end of an unguided chain from z over the indices i, ..., 0; `output` is the network's at (z, i)."""
        while True:
            p = denoiser.reverse(output, z, i)
            z = p.mean
            if self.stochastic:
                eps = draw(z.shape)
                z = z + p.std * eps if i > 0 else z
            if i == 0:
                return z
            i -= 1
            output = denoiser.output(z, i)

    def _scaled(self, draw: Draw) -> Draw:
        if self.sampling_scale == 1:
            return draw
        return lambda shape: self.sampling_scale * draw(shape)
