"""Images of a folder as an endless stream of batches."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
import torch
from torch.utils.data import Dataset

from guided_diffusion import dist_util
from guided_diffusion.batches import EndlessBatches
from guided_diffusion.files import open_file, walk

_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif"}
_MOST_WORKERS = 4
_SMALLEST_CROP = 0.8  # of the shorter side


def load_data(
    *,
    data_dir: str,
    batch_size: int,
    image_size: int,
    class_cond: bool = False,
    deterministic: bool = False,
    random_crop: bool = False,
    random_flip: bool = True,
) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Endless batches (images float32 (N, 3, S, S) in [-1, 1], {'y': int64 (N,)} or {}) of this process's share.

    jpg, jpeg, png and gif files are found recursively and sorted. With `class_cond` a file's class is its name up to
    the first underscore; classes are numbered in sorted order. `deterministic` keeps the order of the files.
    Raises ValueError when no folder is named, or when it holds less than one batch for this process.
    """
    if not data_dir:
        raise ValueError("data_dir: no folder of images was named")
    paths = [path for path in walk(data_dir) if PurePosixPath(path).suffix.lower() in _SUFFIXES]
    if not paths:
        raise ValueError(f"data_dir {data_dir}: no jpg, jpeg, png or gif file in it or below it")
    rank, world_size = dist_util.rank(), dist_util.world_size()
    dataset = ImageDataset(
        paths[rank::world_size],
        image_size,
        classes=_classes(paths)[rank::world_size] if class_cond else None,
        random_crop=random_crop,
        random_flip=random_flip,
    )
    return EndlessBatches(
        dataset,
        batch_size,
        shuffle=not deterministic,
        seed=(torch.initial_seed() + rank) % 2**63,
        num_workers=min(_MOST_WORKERS, os.cpu_count() or 1),
    )


class ImageDataset(Dataset):
    """Items (image float32 (3, S, S) in [-1, 1], {'y': int64} or {}); random choices come from torch's generator."""

    def __init__(
        self,
        paths: list[str],
        image_size: int,
        classes: list[int] | None = None,
        random_crop: bool = False,
        random_flip: bool = True,
    ) -> None:
        self.paths = paths
        self.image_size = image_size
        self.classes = classes
        self.random_crop = random_crop
        self.random_flip = random_flip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        from PIL import Image

        with open_file(self.paths[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        crop = random_crop_arr if self.random_crop else center_crop_arr
        pixels = crop(image, self.image_size)
        if self.random_flip and torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1]
        pixels = pixels.astype(np.float32) / 127.5 - 1
        labels = {} if self.classes is None else {"y": np.array(self.classes[index], dtype=np.int64)}
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), labels


def center_crop_arr(image, image_size: int) -> np.ndarray:
    """The middle square of a PIL image, scaled to uint8 (S, S, 3)."""
    pixels = np.array(_with_shorter_side(image, image_size))
    top, left = ((side - image_size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def random_crop_arr(image, image_size: int) -> np.ndarray:
    """A random square of at least 0.8 of the PIL image's shorter side, scaled to uint8 (S, S, 3)."""
    longest = math.ceil(image_size / _SMALLEST_CROP)
    pixels = np.array(_with_shorter_side(image, _draw(image_size, longest)))
    top, left = (_draw(0, side - image_size) for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def _with_shorter_side(image, size: int):
    """Scale a PIL image so that its shorter side is `size`; box halving first keeps fine patterns from aliasing."""
    from PIL import Image

    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    return image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)


def _draw(low: int, high: int) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, ()))


def _classes(paths: list[str]) -> list[int]:
    names = [PurePosixPath(path).name.split("_")[0] for path in paths]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return [numbers[name] for name in names]
