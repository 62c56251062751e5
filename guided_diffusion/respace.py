"""Diffusion over a part of the timesteps that a network was trained on."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import numpy as np

from guided_diffusion.gaussian_diffusion import GaussianDiffusion


def space_timesteps(num_timesteps: int, section_counts: str | Iterable[int]) -> set[int]:
    """Choose timesteps from 0 … num_timesteps - 1.

    The range is cut into as many sections as there are counts, of equal length up to one step; each count says
    how many timesteps are taken from its section, evenly, the section's first and last among them. "ddimN" takes
    N timesteps with a fixed whole stride, from 0 (Song et al. 2021).

    Args:
        section_counts: the counts, or a text of them separated by commas, or "ddimN".

    Raises ValueError when there is no such choice.
    """
    if isinstance(section_counts, str):
        text, flag = section_counts, f"--timestep_respacing {section_counts!r}"
        if text.startswith("ddim"):
            for stride in range(1, num_timesteps):
                chosen = range(0, num_timesteps, stride)
                if str(len(chosen)) == text.removeprefix("ddim"):
                    return set(chosen)
            raise ValueError(f"{flag}: no whole stride gives that many of {num_timesteps} timesteps")
        try:
            section_counts = [int(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(f"{flag}: expected a count, counts separated by commas, or ddimN") from None
    counts = list(section_counts)
    if not counts:
        raise ValueError("--timestep_respacing: expected at least one count")

    length, longer = divmod(num_timesteps, len(counts))
    start, chosen = 0, set()
    for section, count in enumerate(counts):
        size = length + (section < longer)
        if not 1 <= count <= size:
            raise ValueError(
                f"--timestep_respacing: cannot take {count} timesteps from section {section + 1} of {len(counts)}, "
                f"which has {size} of the {num_timesteps} diffusion steps"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        positions = accumulate([0.0] + [stride] * (count - 1))  # a running sum, as published: products round otherwise
        chosen |= {start + round(position) for position in positions}
        start += size
    return chosen


class SpacedDiffusion(GaussianDiffusion):
    """A diffusion process that visits only some timesteps of a longer one.

    Its ᾱ are those of the longer process at the timesteps that are kept. Methods take indices of the short
    process; networks and cond_fn see the timesteps of the long one (Nichol and Dhariwal 2021, section 4).
    use_timesteps: those to keep; betas: β of the long process; settings: the other arguments of GaussianDiffusion.
    """

    def __init__(self, use_timesteps: Iterable[int], *, betas: np.ndarray, **settings: Any) -> None:
        self.use_timesteps = set(use_timesteps)
        kept = np.cumprod(1.0 - np.asarray(betas, dtype=np.float64))[sorted(self.use_timesteps)]
        super().__init__(betas=1 - kept / np.append(1.0, kept[:-1]), **settings)
        self.timestep_map, self.original_num_steps = sorted(self.use_timesteps), len(betas)
        self._long = {"betas": betas, **settings}
        self._subsets: dict[tuple[int, ...], SpacedDiffusion] = {}

    def subset(self, indices: Iterable[int]) -> "SpacedDiffusion":
        """The process that visits only these indices of this one, numbered anew from 0; each is made once.

        Posterior, and with it the bounds of a learned variance, are those between the indices that are kept. Of one
        index alone, the step back is the prediction of the clean image.
        """
        key = tuple(sorted(set(indices)))
        if key not in self._subsets:
            timesteps = [self.timestep_map[index] for index in key]
            self._subsets[key] = SpacedDiffusion(timesteps, **self._long)
        return self._subsets[key]
