"""Where the random numbers of a run come from.

A noise source answers two questions: the ε of the first noising, and the ε's of one outer step, which are drawn one
after another. Two sources exist:

- `PerImageNoise` (default): an image's noise depends on (seed, its id, attempt, step) alone, so its result does not
  depend on batch size, chunks, order or a restart.
- `StreamNoise`: one generator, seeded once and running on through batches and scales, like the published code.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

Draw = Callable[[torch.Size], torch.Tensor]
"""shape (N, C, H, W) -> standard normal numbers of that shape, float32, on the source's device."""


class PerImageNoise:
    """One generator per image and outer step, seeded by (seed, id, attempt, step)."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)

    def noising(self, ids: Sequence[int]) -> Draw:
        """For q(z_τ | x) of the images with these ids, in this order; the same for every attempt at an image."""
        return self._draw([(id,) for id in ids])

    def step(self, ids: Sequence[int], attempt: int, index: int) -> Draw:
        """For outer step `index` of an attempt: first its inner chain's ε's, then its own."""
        return self._draw([(id, attempt, index) for id in ids])

    def _draw(self, keys: Sequence[tuple[int, ...]]) -> Draw:
        generators = [torch.Generator(self.device).manual_seed(self._seed(key)) for key in keys]

        def draw(shape: torch.Size) -> torch.Tensor:
            eps = torch.empty(shape, device=self.device)
            for image, generator in zip(eps, generators, strict=True):
                image.normal_(generator=generator)
            return eps

        return draw

    def _seed(self, key: tuple[int, ...]) -> int:
        # a CPU generator uses 32 of these bits: among a million steps a hundred pairs share their noise, harmlessly
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1, np.uint64)[0])


class StreamNoise:
    """One generator of its own: on a CPU it yields what `torch.manual_seed(seed)` and `randn_like` would."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def noising(self, ids: Sequence[int]) -> Draw:
        """As PerImageNoise.noising."""
        return self._draw

    def step(self, ids: Sequence[int], attempt: int, index: int) -> Draw:
        """As PerImageNoise.step."""
        return self._draw

    def _draw(self, shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)


NoiseSource = PerImageNoise | StreamNoise
NOISE_SOURCES = {"per_image": PerImageNoise, "stream": StreamNoise}
