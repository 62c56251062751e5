"""CelebA as a stream of training batches, and as the share of one process."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from dime.core.datasets import ATTRIBUTES, CelebA, image_transform
from guided_diffusion import dist_util
from guided_diffusion.batches import EndlessBatches

Item = tuple[torch.Tensor, dict[str, torch.Tensor]]


class LabelledImages(Dataset):
    """Rows of a CelebA partition as (image (3, H, W) in [-1, 1], {'y': labels} or {}).

    Args:
        dataset: the partition.
        rows: which of its images.
        attributes: columns of the 40 labels that y holds, in this order; None: no labels.
    """

    def __init__(self, dataset: CelebA, rows: Sequence[int], attributes: Sequence[int] | None) -> None:
        self.dataset = dataset
        self.rows = rows
        self.attributes = None if attributes is None else list(attributes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        sample = self.dataset[self.rows[index]]
        return sample.image, {} if self.attributes is None else {"y": sample.labels[self.attributes]}

    def labels(self) -> torch.Tensor:
        """All labels (n, attributes), float32 0 or 1, without reading an image."""
        columns = [ATTRIBUTES[index] for index in self.attributes or ()]
        return torch.from_numpy(self.dataset.table[columns].to_numpy(np.float32)[list(self.rows)])


def own_share(dataset: CelebA, attributes: Sequence[int] | None) -> LabelledImages:
    """The rows r, r + R, r + 2 R, … of rank r of R. Raises InputError when an image of the partition is missing."""
    dataset.require_images(range(len(dataset)))
    return LabelledImages(dataset, range(dist_util.rank(), len(dataset), dist_util.world_size()), attributes)


def training_batches(
    data_dir: str,
    image_size: int,
    batch_size: int,
    attributes: Sequence[int] | None,
    *,
    seed: int,
    num_workers: int,
    random_crop: bool = False,
) -> EndlessBatches:
    """Shuffled, flipped batches of this process's share of the train partition, without end.

    Raises InputError for a damaged folder and ValueError when the share is smaller than one batch.
    """
    transform = image_transform(image_size, random_flip=True, random_crop=random_crop)
    share = own_share(CelebA(data_dir, "train", image_size, transform), attributes)
    return EndlessBatches(share, batch_size, seed=seed + dist_util.rank(), num_workers=num_workers)


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python, each process with a number of its own."""
    random.seed(seed + dist_util.rank())
    torch.manual_seed(seed + dist_util.rank())
    np.random.seed((seed + dist_util.rank()) % 2**32)
