"""What is shown while the diffusion model trains: progress, and pictures drawn by the averaged weights."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from dime.core.cli import say
from dime.core.files import write_atomically
from dime.core.images import grid_png
from dime.core.training.script import Progress
from guided_diffusion.script_util import create_diffusion
from guided_diffusion.train_util import TrainLoop

TIME_LIMIT = 10.0
"""Seconds for a grid; where the images are not done by then, it has fewer."""
SHARE = 0.03
"""Of the time that training takes; where grids would take more, some checkpoints have none."""


class Monitor(Progress):
    """Shows progress, and draws a grid at the checkpoint sets.

    Args:
        flags: those that built the network, image_channels among them.
        samples: images of the grid; 0: none.
        sample_steps: evaluations of the network for each (DDIM, without noise of its own).
        labels: (samples, …) for a class-conditional network, else None.
        seed: of the noise that the images grow from, the same at every checkpoint.
    """

    def __init__(
        self, flags: Mapping[str, Any], samples: int, sample_steps: int, labels: torch.Tensor | None, seed: int
    ) -> None:
        self.flags = flags
        self.labels = labels
        steps = min(sample_steps, flags["diffusion_steps"])
        self.diffusion = create_diffusion({**flags, "timestep_respacing": str(steps)})
        size = flags["image_size"]
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(samples, flags["image_channels"], size, size, generator=generator)
        self.next_grid = 0.0

    def on_save(self, loop: TrainLoop, number: int) -> None:
        """Write samples/NUMBER.png beside the set, drawn with the first rate's averaged weights.

        Not while a stop is asked for, and not so often that it takes a part of the time to speak of. What fails here
        is said; training goes on.
        """
        began, wanted = time.monotonic(), len(self.noise)
        if loop.stopping or not wanted or (began < self.next_grid and not loop.finished):
            return
        path = loop.folder.folder / "samples" / f"{number:06d}.png"
        say(f"drawing {path.parent.name}/{path.name}, in {TIME_LIMIT:g} seconds at most")
        try:
            images = self._draw(loop, began + TIME_LIMIT)
            if len(images) < wanted:
                reason = "before the stop" if loop.stopping else "in time (fewer --sample_steps are quicker)"
                say(f"{len(images)} of {wanted} images were drawn {reason}")
            if len(images):
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, grid_png(images, columns=4))
        except Exception as error:
            say(f"{path}: not drawn ({' '.join(str(error).split())}); training goes on")
        self.next_grid = (now := time.monotonic()) + (now - began) / SHARE

    def _draw(self, loop: TrainLoop, deadline: float) -> torch.Tensor:
        """The images (n, C, H, W) in [-1, 1] that are done when the time is up or a stop is asked for.

        A few at first and more in each batch that follows: so the slowest network finishes some, the fastest all.
        """
        network, evaluations = next(iter(loop.ema.values())), self.diffusion.num_timesteps
        devices = [loop.device] if loop.device.type == "cuda" else []
        images = self.noise[:0]
        # sampling draws noise that it does not use: the training must not notice
        with torch.random.fork_rng(devices), loop.autocast():
            while len(images) < len(self.noise):
                part = slice(len(images), len(images) + min(loop.microbatch, max(1, 3 * len(images))))
                noise = self.noise[part].to(loop.device)
                labels = {} if self.labels is None else {"y": self.labels[part].to(loop.device)}
                sample = self.diffusion.ddim_sample_loop_progressive
                steps = sample(network, noise.shape, noise=noise, model_kwargs=labels)
                now = deadline  # the first evaluation of a shape may be slow, and foretells nothing
                for done, out in enumerate(steps, start=1):
                    x, before, now = out["sample"], now, time.monotonic()
                    if loop.stopping or now + max(now - before, 0) * (evaluations - done) > deadline:
                        return images
                images = torch.cat([images, x.cpu()])
        return images
