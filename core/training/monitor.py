"""What is shown while the diffusion model trains: progress, and pictures drawn by the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dime.core.files import write_atomically
from dime.core.images import grid_png
from dime.core.networks.diffusion import differing_flags
from dime.core.training.script import Progress
from guided_diffusion import dist_util
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.script_util import create_diffusion
from guided_diffusion.train_util import TrainLoop, TrainObserver

GRID_COLUMNS = 4


class Monitor(TrainObserver):
    """Shows progress, refuses checkpoints of another configuration, and draws a grid at each checkpoint set.

    Args:
        flags: those that built the network.
        samples: images of the grid; 0: none.
        sample_steps: evaluations of the network for each (DDIM, without noise of its own).
        labels: (samples, 40) for a class-conditional network, else None.
        seed: of the noise that the images grow from, the same at every checkpoint.
    """

    def __init__(
        self, flags: Mapping[str, Any], samples: int, sample_steps: int, labels: torch.Tensor | None, seed: int
    ) -> None:
        self.flags = flags
        self.labels = labels
        self.diffusion = _shortened(flags, sample_steps)
        size = flags["image_size"]
        self.noise = torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(seed))
        self.progress: Progress | None = None

    def on_resume(self, path: str, config: dict[str, Any] | None) -> None:
        """Refuse a network that has the same shapes but another meaning, such as another number of heads."""
        for key in differing_flags(self.flags, config or {}):
            raise ValueError(f"{path}: trained with --{key} {config[key]}, not {self.flags[key]}")

    def on_update(self, loop: TrainLoop) -> None:
        """Move the bar."""
        if self.progress is None:
            self.progress = Progress(loop.last_update, loop.updates - 1)
        self.progress.advance()

    def on_log(self, loop: TrainLoop, values: dict[str, float]) -> None:
        """Say loss, speed and time left."""
        if self.progress is None:
            self.progress = Progress(loop.last_update, loop.updates)
        self.progress.report(loop.updates + 1, values, loop.batch_size * dist_util.world_size())

    def on_save(self, loop: TrainLoop, number: int) -> None:
        """Write samples/NUMBER.png beside the set, drawn with the first rate's averaged weights."""
        if not len(self.noise):
            return
        rate = next(iter(loop.state.ema))
        devices = [loop.device] if loop.device.type == "cuda" else []
        # sampling draws noise that it does not use: the training must not notice
        with torch.random.fork_rng(devices), loop.state.averaged(rate) as network, loop.autocast(), torch.no_grad():
            images = self._draw(network, loop.device, loop.microbatch)
        folder = Path(loop.folder.folder) / "samples"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{number:06d}.png", grid_png(images, GRID_COLUMNS))

    def _draw(self, network: torch.nn.Module, device: torch.device, batch_size: int) -> torch.Tensor:
        images = []
        for start in range(0, len(self.noise), batch_size):
            part = slice(start, start + batch_size)
            noise = self.noise[part].to(device)
            kwargs = {} if self.labels is None else {"y": self.labels[part].to(device)}
            images.append(self.diffusion.ddim_sample_loop(network, noise.shape, noise=noise, model_kwargs=kwargs).cpu())
        return torch.cat(images)


def _shortened(flags: Mapping[str, Any], steps: int) -> GaussianDiffusion:
    """The flags' process with `steps` of its timesteps, or all where it has fewer."""
    return create_diffusion({**flags, "timestep_respacing": str(min(steps, flags["diffusion_steps"]))})
