"""Clean estimates: the image x_t at which a step asks the classifier. Each takes a core.sampler.Step."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dime.core.sampler import Step, evenly_spread


@dataclass(frozen=True)
class InnerChain:
    """DiME: the end of an unguided chain from z_t down to a clean image; the input itself at first.

    Args:
        stochastic: the chain samples; else it follows the means.
        sampling_scale: multiplies its ε's.
        evaluations: K of every outer step: how many of the remaining indices the chain visits, evenly spread. It
            visits all of them where K is 0 or larger than their number, and everywhere when None. K = 1 is the
            network's prediction from z_t.
        ddim: the chain takes deterministic DDIM steps, whatever `stochastic` says.
    """

    stochastic: bool = True
    sampling_scale: float = 1.0
    evaluations: Sequence[int] | None = None
    ddim: bool = False

    def __call__(self, step: Step) -> torch.Tensor:
        """Starts from the step's own network output: its first evaluation has been made."""
        if step.number == 0:
            return step.x
        indices = evenly_spread(step.i, self.evaluations[step.number] if self.evaluations else 0)
        denoiser, z, output = step.denoiser.over(indices), step.z_t, step.output
        for k in reversed(range(len(indices))):
            p = denoiser.reverse(output, z, k)
            z = denoiser.ddim(p, z, k) if self.ddim else p.mean
            if self.stochastic and not self.ddim:
                eps = step.draw(z.shape)  # at index 0 too: the published order of draws
                z = z + p.std * (self.sampling_scale * eps) if k > 0 else z
            if k > 0:
                output = denoiser.output(z, k - 1)
        return z


def chain_lengths(text: str, tau: int) -> tuple[int, ...]:
    """K for each of τ outer steps, from a text such as "5" or "8:20,1": 8 in the first 20 steps, then 1.

    Raises ValueError for any other text.
    """
    if not re.fullmatch(r"(\d+:\d+,)*\d+", text, re.ASCII):
        raise ValueError(f"{text!r}: expected a count K, or K:STEPS before it, as in 8:20,1")
    *spans, last = text.split(",")
    pairs = [map(int, span.split(":")) for span in spans]
    lengths = [count for count, steps in pairs for _ in range(min(steps, tau))]
    return tuple([*lengths, *[int(last)] * tau][:tau])


def sharp_prediction(step: Step) -> torch.Tensor:
    """The input and what has changed in the network's prediction since: no blur where nothing changed (inverted)."""
    return step.x + (step.p.pred_xstart - step.own.pred_xstart)


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
