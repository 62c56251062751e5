"""Images drawn from a diffusion model, by one process or many, as 8-bit arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from dime.core.datasets import ATTRIBUTES, CelebA
from dime.core.files import write_atomically
from dime.core.images import from_image, grid_png, to_uint8
from guided_diffusion import dist_util
from guided_diffusion.gaussian_diffusion import GaussianDiffusion

GRID_IMAGES = 64
GRID_COLUMNS = 8


@dataclass(frozen=True)
class Sampler:
    """How images are drawn: DDPM, or DDIM with noise `eta` (0: none)."""

    network: nn.Module
    diffusion: GaussianDiffusion
    image_size: int
    use_ddim: bool = False
    eta: float = 0.0
    clip_denoised: bool = True

    def draw(self, count: int, labels: torch.Tensor | None = None) -> torch.Tensor:
        """`count` images, uint8 (count, H, W, 3), on the device; labels (count, 40) for a conditional network."""
        shape = (count, 3, self.image_size, self.image_size)
        kwargs = {} if labels is None else {"y": labels.to(dist_util.dev())}
        settings = {"clip_denoised": self.clip_denoised, "model_kwargs": kwargs, "device": dist_util.dev()}
        if self.use_ddim:
            x = self.diffusion.ddim_sample_loop(self.network, shape, eta=self.eta, **settings)
        else:
            x = self.diffusion.p_sample_loop(self.network, shape, **settings)
        return to_uint8(x).movedim(1, -1).contiguous()


def draw_samples(sampler: Sampler, labels: torch.Tensor | None, count: int, batch_size: int) -> np.ndarray:
    """`count` images, uint8 (count, H, W, 3), in every process; batches go round among the processes.

    labels: (count, 40) for a conditional network. Image n does not depend on the batches that come after its own.
    """
    world_size = dist_util.world_size()
    images: list[torch.Tensor] = []
    starts = range(0, count, batch_size * world_size)
    for start in tqdm(starts, unit="batch", disable=None if dist_util.rank() == 0 else True):
        rows = range(start + dist_util.rank() * batch_size, start + (dist_util.rank() + 1) * batch_size)
        batch_labels = None if labels is None else labels[[row % count for row in rows]]
        own = sampler.draw(batch_size, batch_labels)  # what lies beyond count is cut off below
        parts = [torch.empty_like(own) for _ in range(world_size)]
        dist.all_gather(parts, own)
        images += [part.cpu() for part in parts]
    return torch.cat(images)[:count].numpy()


def label_rows(count: int, attributes: Sequence[int] | None, data_dir: str, seed: int) -> torch.Tensor:
    """Labels (count, 40) to draw images with: the attributes named and no others, or rows of a train partition.

    Raises InputError for a damaged folder.
    """
    if attributes is not None:
        labels = torch.zeros(count, len(ATTRIBUTES))
        labels[:, list(attributes)] = 1
        return labels
    table = CelebA(data_dir, "train", 1).table
    rows = np.random.default_rng(seed).integers(len(table), size=count)
    return torch.from_numpy(table[list(ATTRIBUTES)].to_numpy(np.float32)[rows])


def write_samples(folder: Path, images: np.ndarray, labels: torch.Tensor | None) -> Path:
    """Write samples_COUNTxHxWx3.npz (arr_0: images, arr_1: labels, if any) and a PNG of the first; returns the npz."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [images] if labels is None else [images, labels.numpy()]
    content = io.BytesIO()
    np.savez(content, *arrays)
    path = folder / f"samples_{'x'.join(map(str, images.shape))}.npz"
    write_atomically(path, content.getvalue())
    write_atomically(path.with_suffix(".png"), grid_png(from_image(images[:GRID_IMAGES]), GRID_COLUMNS))
    return path
