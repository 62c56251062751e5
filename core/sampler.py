"""The guided denoising of the paper (Algorithm 1), with the parts in which its family differs left open.

Notation, all images (N, C, H, W):

    x     the input, in [-1, 1]
    z_t   the noisy image being denoised (the diffusion library calls it x_t)
    x_t   the clean estimate of z_t at which the classifier is asked; DiME's starts as x
    i     an index of the respaced process, from τ - 1 down to 0
    ᾱ_i   alphas_cumprod[i]

The parts are a clean estimate (core.estimates), a mask (core.masks), how the gradients are scaled, and what stands in
the place of fresh noise; core.methods puts them together into DiME and its relatives.

The network is evaluated once per distinct (z, i): its output at z_t serves both the chain that estimates x_t and the
outer step itself. With τ = 60 DiME makes 1771 evaluations instead of 1830, and no bit of its result changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import nn

from dime.core.guidance import Pull
from dime.core.noise import Draw
from guided_diffusion.respace import SpacedDiffusion

Observer = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with (step, x_t, z_t) in every outer step; step counts from 0."""


class Gaussian(NamedTuple):
    """p(z_{i-1} | z_i), element by element, and the clean image that its mean stands for."""

    mean: torch.Tensor
    variance: torch.Tensor
    std: torch.Tensor
    pred_xstart: torch.Tensor


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model at the indices of its respaced process.

    labels: what a class-conditional model is told of the images: 0/1 vectors (N, K), or class indices (N,).
    """

    model: nn.Module
    diffusion: SpacedDiffusion
    labels: torch.Tensor | None = None

    def output(self, z: torch.Tensor, i: int) -> torch.Tensor:
        """One evaluation of the network."""
        conditions = {} if self.labels is None else {"y": self.labels}
        return self.diffusion.model_output(self.model, z, _indices(z, i), conditions)

    def reverse(self, output: torch.Tensor, z: torch.Tensor, i: int, clip: bool = True) -> Gaussian:
        """What an output at (z, i) says about the next z; evaluates nothing, draws nothing."""
        p = self.diffusion.interpret_output(output, z, _indices(z, i), clip_denoised=clip)
        variance = p["variance"]
        if (
            i == 0
        ):  # the posterior's is 0 there, and guidance by it would end: that of the next index, as everywhere else
            variance = torch.where(variance > 0, variance, p["log_variance"].exp())
        return Gaussian(p["mean"], variance, (0.5 * p["log_variance"]).exp(), p["pred_xstart"])

    def ddim(self, p: Gaussian, z: torch.Tensor, i: int) -> torch.Tensor:
        """The deterministic step back from z (DDIM with η = 0: Song et al. 2021, equation 12)."""
        indices = _indices(z, i)
        eps = self.diffusion.eps_from_xstart(z, indices, p.pred_xstart)
        alpha_bar_prev = self.diffusion.at("alphas_cumprod_prev", indices, z)
        return alpha_bar_prev.sqrt() * p.pred_xstart + (1 - alpha_bar_prev).sqrt() * eps

    def over(self, indices: Sequence[int]) -> "Denoiser":
        """The same model on the process of these indices alone, in ascending order: its index k is indices[k]."""
        if indices[-1] + 1 == len(indices):
            return self
        return replace(self, diffusion=self.diffusion.subset(indices))

    def noised(self, x: torch.Tensor, i: int, eps: torch.Tensor) -> torch.Tensor:
        """z ~ q(z_i | x)."""
        return self.diffusion.q_sample(x, _indices(x, i), noise=eps)

    def invert(self, x: torch.Tensor, z: torch.Tensor, steps: int, draw: Draw) -> "Inversion":
        """x noised to every index below steps - 1, independently, and z at that one; all of them evaluated."""
        states = [*(self.noised(x, i, draw(x.shape)) for i in range(steps - 1)), z]
        return Inversion([x, *states], [self.output(state, i) for i, state in enumerate(states)])


def _indices(z: torch.Tensor, i: int) -> torch.Tensor:
    """The index of all images (1,): the network computes its embedding once."""
    return torch.full((1,), i, dtype=torch.long, device=z.device)


@dataclass(frozen=True)
class Inversion:
    """An image as a chain of K indices that ends at it ("edit-friendly": Huberman-Spiegelglas et al., CVPR 2024).

    states: K + 1 images (N, C, H, W): x, and what is evaluated at index 0 … K - 1. outputs: the network's output there.
    """

    states: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor]

    def rows(self, rows: Sequence[int]) -> "Inversion":
        """That of these images alone, in this order."""
        return Inversion([state[rows] for state in self.states], [output[rows] for output in self.outputs])


class Region(NamedTuple):
    """Where the noisy image and the clean estimate may change: booleans (N, 1 or C, H, W)."""

    z_t: torch.Tensor
    x_t: torch.Tensor


@dataclass(frozen=True)
class Step:
    """What is known in outer step `number` (from 0) at index i, before its gradients.

    output, p: the network's output at (z_t, i) and what it says. draw: the step's random numbers.
    last_prediction, region: p.pred_xstart and the region of the step before; None in the first step, or without mask.
    own: what the network says at the input's own state of this index; None without inversion.
    """

    number: int
    i: int
    x: torch.Tensor
    z_t: torch.Tensor
    denoiser: Denoiser
    output: torch.Tensor
    p: Gaussian
    draw: Draw
    last_prediction: torch.Tensor | None
    region: Region | None
    own: Gaussian | None = None


Estimate = Callable[[Step], torch.Tensor]
"""The clean estimate x_t of a step."""


class Mask(Protocol):
    """Confines the change to a part of the image."""

    own_noise: bool
    """Whether the changing part draws the ordinary noise of a step."""
    paste_input: bool
    """Whether the result gets the input back outside the last region."""

    def __call__(self, step: Step, g_class: torch.Tensor | None) -> Region | None:
        """The region of this step, from its class gradient (None once gradients have stopped); None: everywhere."""


@dataclass(frozen=True)
class Sampler:
    """Guided denoising from q(z_τ | x) to a counterfactual of x.

    Args:
        tau: noise level τ, from 1 to T' - 1. steps: how many of the indices are visited, evenly spread; 0: all.
        estimate: x_t of every step. mask: what may change; None: everything.
        divide: gradients at x_t are divided by sqrt(ᾱ_i). grad_scale: a factor on all gradients.
        limit: applied to the class gradient after the mask has seen it.
        through_network: take the class gradient at z_t, through the network's prediction.
        clip_denoised: clip the prediction of the clean image to [-1, 1].
        guided_iterations: how many outer steps have gradients. The estimate after the last of them is still made, as
            published, for its draws and its frame. class_unending: the class gradient goes on after them.
        sampling_scale: multiplies the ε's of the reverse steps.
        inverted: the residuals of the input's inversion stand in the place of the ε's, so that without gradients the
            input comes back exactly. fresh_noise: the share of fresh ε among them, from 0 to 1; variances add up.
    """

    tau: int
    estimate: Estimate
    steps: int = 0
    mask: Mask | None = None
    divide: bool = True
    grad_scale: float = 1.0
    limit: Callable[[torch.Tensor], torch.Tensor] | None = None
    through_network: bool = False
    clip_denoised: bool = True
    guided_iterations: int = 9_999_999
    class_unending: bool = False
    sampling_scale: float = 1.0
    inverted: bool = False
    fresh_noise: float = 0.0

    @property
    def indices(self) -> list[int]:
        """Those that the outer chain visits, ascending."""
        return evenly_spread(self.tau - 1, self.steps)

    def invert(self, denoiser: Denoiser, x: torch.Tensor, z_t: torch.Tensor, draw: Draw) -> Inversion | None:
        """What all attempts at the images share: their inversion from z_t ~ q(z_τ | x), if the method has one."""
        indices = self.indices
        return denoiser.over(indices).invert(x, z_t, len(indices), draw) if self.inverted else None

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        x: torch.Tensor,
        z_t: torch.Tensor,
        pull: Pull,
        noise: Callable[[int], Draw],
        observe: Observer | None = None,
        inversion: Inversion | None = None,
    ) -> torch.Tensor:
        """Denoise z_t ~ q(z_τ | x) into the counterfactual of x.

        noise(i) gives outer step i's numbers. inversion: see invert; it is made anew where it is not given.
        """
        x_t, prediction, region, own = x, None, None, None
        inversion = inversion or self.invert(denoiser, x, z_t, noise(2 * self.tau))  # two passes use those below
        indices = self.indices
        denoiser = denoiser.over(indices)
        for number, i in enumerate(reversed(range(len(indices)))):
            with torch.set_grad_enabled(self.through_network):  # z_t is a leaf then
                z_t = z_t.detach().requires_grad_(self.through_network)
                known = inversion and number == 0 and not self.through_network
                output = inversion.outputs[i] if known else denoiser.output(z_t, i)
                p = denoiser.reverse(output, z_t, i, clip=self.clip_denoised)
            if inversion:
                own = denoiser.reverse(inversion.outputs[i], inversion.states[i + 1], i, clip=self.clip_denoised)
            step = Step(number, i, x, z_t, denoiser, output, p, noise(indices[i]), prediction, region, own)
            if number <= self.guided_iterations or self.class_unending:
                x_t = self.estimate(step)
            if observe:
                observe(number, x_t, z_t)
            mean, region = self._guided_mean(step, x_t, pull)
            z_t = self._next(step, mean, region, inversion)
            prediction = p.pred_xstart.detach()
        if region is not None and self.mask.paste_input:
            z_t = torch.where(region.z_t, z_t, x)
        return z_t

    def _guided_mean(self, step: Step, x_t: torch.Tensor, pull: Pull) -> tuple[torch.Tensor, Region | None]:
        """μ - Σ (g_class + g_dist), and the region to which the change is confined."""
        guided = step.number < self.guided_iterations
        root = float(step.denoiser.diffusion.sqrt_alphas_cumprod[step.i]) if self.divide else 1.0
        g_class = None
        if guided or self.class_unending:
            if self.through_network:
                g_class = pull.class_gradient(step.p.pred_xstart, wrt=step.z_t)
            else:
                g_class = pull.class_gradient(x_t) / root
        region = self.mask(step, g_class) if self.mask else None
        mean = step.p.mean.detach()
        if g_class is None:
            return mean, region
        gradient = self.limit(g_class) if self.limit else g_class
        if guided:
            gradient = gradient + (pull.distance_gradient(step.z_t) + pull.perceptual_gradient(x_t) / root)
        return mean - step.p.variance.detach() * (self.grad_scale * gradient), region

    def _next(self, step: Step, mean: torch.Tensor, region: Region | None, inversion: Inversion | None) -> torch.Tensor:
        """z of the next index: sampled where it may change, the noised input elsewhere."""
        z, noise = mean, torch.zeros_like(mean)
        if (self.mask is None or self.mask.own_noise) and (inversion is None or self.fresh_noise):
            eps = step.draw(mean.shape)  # at index 0 too, although it is not used: the published order of draws
            if step.i > 0:
                noise = step.p.std.detach() * (self.sampling_scale * eps)
                z = mean + noise
        if inversion:
            # not mean + (state - own.mean): where mean is own.mean, this is the state to the last bit
            z = inversion.states[step.i] + (mean - step.own.mean)
            if self.fresh_noise:
                kept = math.sqrt(1 - self.fresh_noise**2)
                z = z - (1 - kept) * (inversion.states[step.i] - step.own.mean) + self.fresh_noise * noise
        if region is not None:
            other = inversion.states[step.i] if inversion else step.denoiser.noised(step.x, step.i, step.draw(z.shape))
            z = torch.where(region.z_t, z, other)
        return z


def evenly_spread(i: int, count: int) -> list[int]:
    """`count` of the indices 0 … i, ascending and i the last; all of them where count is 0 or too large.

    They cut 0 … i into equal parts up to rounding and are the upper ends of these: the last jump, to the clean image,
    is as long as any other.
    """
    count = min(count or i + 1, i + 1)
    return [(i + 1) * part // count - 1 for part in range(1, count + 1)]
