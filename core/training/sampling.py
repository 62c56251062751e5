"""Images drawn from a diffusion model, by one process or many, as 8-bit arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from dime.core.datasets import ATTRIBUTES, CelebA
from dime.core.files import write_atomically
from dime.core.images import from_image, grid_png, to_uint8
from guided_diffusion import dist_util

GRID_IMAGES = 64
GRID_COLUMNS = 8


def draw_samples(
    sample_loop: Callable[..., torch.Tensor], shape: tuple[int, ...], count: int, labels: torch.Tensor | None
) -> np.ndarray:
    """`count` images, uint8 (count, H, W, C), in every process; batches go round among the processes.

    sample_loop: draws images of `shape`, (batch size, C, H, W), in [-1, 1]; it is given model_kwargs.
    labels: (count, 40) for a conditional network. Image n does not depend on the batches that come after its own.
    """
    batch_size, world_size = shape[0], dist_util.world_size()
    images: list[torch.Tensor] = []
    starts = range(0, count, batch_size * world_size)
    for start in tqdm(starts, unit="batch", disable=None if dist_util.rank() == 0 else True):
        first = start + dist_util.rank() * batch_size
        rows = [row % count for row in range(first, first + batch_size)]  # what lies beyond count is cut off below
        model_kwargs = {} if labels is None else {"y": labels[rows].to(dist_util.dev())}
        own = to_uint8(sample_loop(shape=shape, model_kwargs=model_kwargs)).movedim(1, -1).contiguous()
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
    content = io.BytesIO()
    np.savez(content, images, *([] if labels is None else [labels.numpy()]))
    path = folder / f"samples_{'x'.join(map(str, images.shape))}.npz"
    write_atomically(path, content.getvalue())
    write_atomically(path.with_suffix(".png"), grid_png(from_image(images[:GRID_IMAGES]), GRID_COLUMNS))
    return path
