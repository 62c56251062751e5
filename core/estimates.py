"""Clean estimates: the image x_t at which a step asks the classifier. Each takes a core.sampler.Step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.sampler import Step


@dataclass(frozen=True)
class InnerChain:
    """DiME: the end of an unguided chain from z_t over all remaining indices; the input itself at first.

    stochastic: the chain samples; else it follows the means. sampling_scale: multiplies its ε's.
    """

    stochastic: bool = True
    sampling_scale: float = 1.0

    def __call__(self, step: Step) -> torch.Tensor:
        """Starts from the step's own network output: its first evaluation has been made."""
        if step.number == 0:
            return step.x
        z, i, output = step.z_t, step.i, step.output
        while True:
            p = step.denoiser.reverse(output, z, i)
            z = p.mean
            if self.stochastic:
                eps = step.draw(z.shape)  # at index 0 too: the published order of draws
                z = z + p.std * (self.sampling_scale * eps) if i > 0 else z
            if i == 0:
                return z
            i -= 1
            output = step.denoiser.output(z, i)


def noisy_image(step: Step) -> torch.Tensor:
    """The noisy image itself ("direct" in the paper's ablation)."""
    return step.z_t


def input_image(step: Step) -> torch.Tensor:
    """The input, in every step ("naive" in the paper's ablation)."""
    return step.x


def this_prediction(step: Step) -> torch.Tensor:
    """The network's one-step prediction from the current z_t (GMD)."""
    return step.p.pred_xstart


def last_prediction(step: Step) -> torch.Tensor:
    """The prediction of the step before, the input outside its region; the input at first (FastDiME)."""
    return _within_last_region(step, step.last_prediction)


def masked_prediction(step: Step) -> torch.Tensor:
    """The current prediction, the input outside the last step's region; the input at first (MaskDiME)."""
    return _within_last_region(step, step.p.pred_xstart)


def _within_last_region(step: Step, image: torch.Tensor | None) -> torch.Tensor:
    if step.number == 0:
        return step.x
    return image if step.region is None else torch.where(step.region.x_t, image, step.x)
