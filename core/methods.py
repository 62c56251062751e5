"""DiME and the methods that grew out of it: which estimate, which mask, which scaling."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from dime.core import estimates
from dime.core.guidance import Pull
from dime.core.masks import FixedMask, GradientMask, SelfOptimisedMask, SpreadLimit, changed_region, largest, worth
from dime.core.noise import Draw
from dime.core.sampler import Denoiser, Estimate, Inversion, Observer, Sampler
from dime.core.settings import Settings


def _inner_chain(s: Settings) -> estimates.InnerChain:
    """DiME's estimate. Raises ValueError for `inner_steps` that say nothing."""
    lengths = estimates.chain_lengths(s.inner_steps, s.steps)
    return estimates.InnerChain(s.use_sampling_on_x_t, s.sampling_scale, lengths, ddim=s.inner_sampler == "ddim")


def _sampler(s: Settings, estimate: Estimate, **parts: Any) -> Sampler:
    """A sampler with what all methods share."""
    return Sampler(
        tau=s.start_step,
        estimate=estimate,
        steps=s.outer_steps,
        clip_denoised=s.clip_denoised,
        guided_iterations=s.guided_iterations,
        sampling_scale=s.sampling_scale,
        **parts,
    )


@dataclass(frozen=True)
class TwoPasses:
    """A first pass finds a region, a second one starts again and changes only that (FastDiME-2).

    region: (x, what the first pass has made, its pull) -> booleans (N, 1, H, W). second: None: as the first pass.
    """

    first: Sampler
    region: Callable[[torch.Tensor, torch.Tensor, Pull], torch.Tensor]
    second: Sampler | None = None

    @property
    def tau(self) -> int:
        """The noise level of both passes."""
        return self.first.tau

    @property
    def indices(self) -> list[int]:
        """Those that either pass visits."""
        return self.first.indices

    def invert(self, denoiser: Denoiser, x: torch.Tensor, z_t: torch.Tensor, draw: Draw) -> Inversion | None:
        """See Sampler.invert."""
        return self.first.invert(denoiser, x, z_t, draw)

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
        """As Sampler.__call__; only the second pass is observed, and its random numbers are its own.

        Where the first pass is not finite, neither is the result.
        """
        inversion = inversion or self.invert(denoiser, x, z_t, noise(2 * self.tau))
        found = self.first(denoiser, x, z_t, pull, noise, inversion=inversion)
        mask = FixedMask(self.region(x, found, pull))
        second = replace(self.second or self.first, mask=mask)
        cf = second(denoiser, x, z_t, pull, lambda i: noise(self.tau + i), observe, inversion)
        return torch.where(found.isfinite().all(dim=(1, 2, 3), keepdim=True), cf, torch.nan)


Method = Sampler | TwoPasses


def _two_passes(s: Settings, first: Sampler, second: Sampler | None = None) -> Method:
    """FastDiME-2's: what the first pass has changed."""
    return TwoPasses(first, lambda x, found, pull: changed_region(x, found, s.dilation, s.masking_threshold), second)


def dime(s: Settings) -> Method:
    """Jeanneret et al. 2022; with `inner_steps` its chains visit a part of the indices only."""
    return _sampler(s, _inner_chain(s))


def maskdime2(s: Settings) -> Method:
    """MaskDiME finds where to change, DiME changes there, with the noise of ordinary denoising."""
    return _two_passes(s, maskdime(s), second=_sampler(s, _inner_chain(s)))


def direct(s: Settings) -> Method:
    """Ablation of DiME: gradients at the noisy image."""
    return _sampler(s, lambda step: step.z_t)


def naive(s: Settings) -> Method:
    """Ablation of DiME: gradients at the input."""
    return _sampler(s, lambda step: step.x)


def fastdime(s: Settings) -> Method:
    """Weng et al. 2024: gradients at the last step's prediction, and a self-optimised mask."""
    return replace(fastdimenomask(s), mask=SelfOptimisedMask(s.warmup_step, s.dilation, s.masking_threshold))


def fastdimenomask(s: Settings) -> Sampler:
    """FastDiME without its mask."""
    return _sampler(s, estimates.last_prediction, divide=s.scale_grads, class_unending=True)


def fastdime2(s: Settings) -> Method:
    """FastDiME-2: the first pass has no mask."""
    return _two_passes(s, fastdimenomask(s))


def fastdime2_plus(s: Settings) -> Method:
    """FastDiME-2+: the first pass has the self-optimised mask."""
    return _two_passes(s, fastdime(s))


def gmd(s: Settings) -> Method:
    """Guided diffusion in FastDiME's frame: the class gradient at the prediction, taken through the network."""
    mask = SelfOptimisedMask(s.warmup_step, s.dilation, s.masking_threshold)
    return _sampler(s, lambda step: step.p.pred_xstart, mask=mask, divide=False, through_network=True)


def maskdime(s: Settings) -> Method:
    """MaskDiME: only the pixels with the largest class gradients change."""
    return _sampler(
        s,
        estimates.masked_prediction,
        mask=GradientMask(s.topk_ratio, s.x_t_rate, s.blur_kernel, s.per_channel),
        limit=SpreadLimit(s.clip_sigma, s.noise == "per_image") if s.grads_clip else None,
        grad_scale=s.grad_scale,
    )


def inverted(s: Settings) -> Method:
    """The input's own residuals in the place of fresh noise: only what the classifier pulls changes.

    With `repaint`, that finds the part of the image that serves the target most, and only there is noise fresh.
    """
    if not s.repaint:
        return _sampler(s, estimates.sharp_prediction, inverted=True, fresh_noise=s.fresh_noise)
    return TwoPasses(
        _sampler(s, estimates.sharp_prediction, inverted=True),
        lambda x, found, pull: largest(worth(x, found, pull, s.blur_kernel), s.repaint),
        second=_sampler(s, estimates.masked_prediction, inverted=True, fresh_noise=s.fresh_noise),
    )


METHODS: dict[str, Callable[[Settings], Method]] = {
    "dime": dime,
    "maskdime2": maskdime2,
    "direct": direct,
    "naive": naive,
    "fastdime": fastdime,
    "fastdimenomask": fastdimenomask,
    "fastdime2": fastdime2,
    "fastdime2+": fastdime2_plus,
    "gmd": gmd,
    "maskdime": maskdime,
    "inverted": inverted,
}
"""The choices of --method."""

WITH_INNER_CHAIN = frozenset({"dime", "maskdime2"})
"""Those that know `inner_steps` and `inner_sampler`."""
