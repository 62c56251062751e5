"""Masks: which part of the image a step may change, each from a core.sampler.Step and its class gradient; and, when all
is done, which part has to stay changed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dime.core.guidance import Pull
from dime.core.sampler import Region, Step

WIDTH = 5
"""Side of the squares over which worth is averaged, and over which the borders of what is kept fade."""
ROUNDS = 8
"""Evaluations of the classifier: the share of pixels that is kept is found to 1/256."""


def changed_region(x: torch.Tensor, other: torch.Tensor, dilation: int, threshold: float) -> torch.Tensor:
    """Where two images [-1, 1] (N, 3, H, W) differ: booleans (N, 1, H, W) (FastDiME, section 3.3).

    The difference is summed over channels, divided by its largest value in the image, and widened to squares of
    `dilation` pixels; what then reaches the threshold has changed. Equal images have no such place, and an image that
    is not finite has changed everywhere, so that it stays visible as such.
    """
    difference = ((x + 1) / 2 - (other + 1) / 2).abs().sum(dim=1, keepdim=True)
    largest = difference.amax(dim=(2, 3), keepdim=True)
    relative = difference / largest.clamp_min(torch.finfo(x.dtype).tiny)
    return ~(_dilated(relative, dilation) < threshold)


def worth(x: torch.Tensor, other: torch.Tensor, pull: Pull, width: int) -> torch.Tensor:
    """How far the change of each pixel from x to `other` serves the target, (N, 1, H, W), averaged over squares.

    The class gradient midway times the change: at either end a sure classifier may have no gradient left.
    """
    served = -(pull.class_gradient((x + other) / 2) * (other - x)).sum(dim=1, keepdim=True)
    return averaged(served, width)


def largest(values: torch.Tensor, share: torch.Tensor | float) -> torch.Tensor:
    """The `share` of pixels, from 0 to 1, with the largest values (N, 1, H, W): booleans of that shape."""
    ranked = values.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).view_as(values)
    return ranked < share * values[0].numel()


def averaged(image: torch.Tensor, width: int) -> torch.Tensor:
    """Means over squares of odd `width`, of the pixels that lie in the image."""
    return F.avg_pool2d(image, width, stride=1, padding=width // 2, count_include_pad=False)


def shrunk(cf: torch.Tensor, pull: Pull) -> torch.Tensor:
    """The counterfactuals (N, C, H, W) of pull.x, without what they change and the decision does not need.

    Regions are ordered by what their change is worth to the classifier, and a bisection finds the fewest that keep the
    decision. It asks the classifier alone, never the diffusion model. Every image that reaches its target, at the
    confidence of the guidance, still does; where nothing can be undone it is returned as it is.
    """
    change, served = cf - pull.x, worth(pull.x, cf, pull, WIDTH)
    low, kept = torch.zeros(len(cf), 1, 1, 1, device=cf.device), cf
    high = torch.ones_like(low)
    for _ in range(ROUNDS):
        share = (low + high) / 2
        candidate = pull.x + averaged(largest(served, share).to(cf.dtype), WIDTH) * change
        enough = pull.reached(candidate).view_as(share)
        kept = torch.where(enough, candidate, kept)
        low, high = torch.where(enough, low, share), torch.where(enough, share, high)
    return kept


@dataclass(frozen=True)
class SelfOptimisedMask:
    """FastDiME: from outer step number `warmup_step` on, the region in which the prediction differs from the input."""

    warmup_step: int = 30
    dilation: int = 5
    threshold: float = 0.15
    own_noise = True
    paste_input = True

    def __call__(self, step: Step, g_class: torch.Tensor | None) -> Region | None:
        """See core.sampler.Mask."""
        if step.number < self.warmup_step:
            return None
        changed = changed_region(step.x, step.p.pred_xstart.detach(), self.dilation, self.threshold)
        return Region(changed, changed)


@dataclass(frozen=True)
class FixedMask:
    """One region for every step, booleans (N, 1, H, W)."""

    changed: torch.Tensor
    own_noise = True
    paste_input = True

    def __call__(self, step: Step, g_class: torch.Tensor | None) -> Region | None:
        """See core.sampler.Mask."""
        return Region(self.changed, self.changed)


@dataclass(frozen=True)
class GradientMask:
    """MaskDiME: the pixels with the largest class gradients, widened to squares; for the estimate, fewer of them.

    Args:
        topk_ratio: share of the pixels of z_t that may change. x_t_rate: share of those for x_t.
        width: side of the squares. per_channel: each channel has a mask of its own.
    """

    topk_ratio: float = 0.4
    x_t_rate: float = 0.05
    width: int = 7
    per_channel: bool = True
    own_noise = False
    paste_input = False

    def __call__(self, step: Step, g_class: torch.Tensor | None) -> Region | None:
        """See core.sampler.Mask; an image without any gradient may change everywhere."""
        if g_class is None:
            return None
        magnitude = g_class.abs() if self.per_channel else g_class.abs().mean(dim=1, keepdim=True)
        pixels = magnitude.shape[2] * magnitude.shape[3]
        k = max(1, int(self.topk_ratio * pixels))
        ranked = magnitude.flatten(2).topk(k).indices  # (N, C, k), the largest first
        everywhere = (magnitude == 0).all(dim=(1, 2, 3), keepdim=True)
        regions = []
        for count in (k, max(1, int(self.x_t_rate * k))):
            chosen = torch.zeros_like(magnitude).flatten(2).scatter_(2, ranked[..., :count], 1.0).view_as(magnitude)
            regions.append((_dilated(chosen, self.width) > 0) | everywhere)
        return Region(*regions)


@dataclass(frozen=True)
class SpreadLimit:
    """Clamp a gradient to mean ± sigma · std (MaskDiME), of each image or, as published, of the whole tensor."""

    sigma: float = 3.0
    per_image: bool = True

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> the same shape."""
        dims = (1, 2, 3) if self.per_image else (0, 1, 2, 3)
        std, mean = torch.std_mean(gradient, dim=dims, keepdim=True)
        return gradient.clamp(mean - self.sigma * std, mean + self.sigma * std)


def _dilated(image: torch.Tensor, width: int) -> torch.Tensor:
    return F.max_pool2d(image, width, stride=1, padding=width // 2)
