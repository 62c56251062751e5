"""Opening an image, for everybody; and endless batches of a data set, in an order that follows from a seed."""

import io
import itertools
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from guided_diffusion import dist_util
from guided_diffusion.files import is_remote, open_file, walk

_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif"}


def open_image(path: str | Path) -> Image.Image:
    """The first picture of a file, local or remote, as upright 8-bit RGB.

    Turned as its EXIF tag says; grey, palettes and CMYK converted; what is transparent lies on white. Raises
    ValueError, in one line that names the file, for anything else: missing, empty and damaged files, 16-bit and float
    pixels, whose range nobody states, and pictures large enough to exhaust the memory.
    """
    try:
        if not is_remote(path) and Path(path).exists() and not Path(path).is_file():
            raise OSError("it is not a file")  # a pipe would be waited for
        with open_file(path, "rb") as file:
            content = file.read()
        if not content:
            raise OSError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        if image.mode[0] in "IF":
            raise OSError(f"its pixels are {image.mode}, 16-bit or float; scale them to 8 bits and save it as PNG")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image") from None
    except Exception as error:  # Pillow's readers fail in nearly any way
        raise ValueError(f"{path}: not a readable image ({' '.join(str(error).split())})") from None


def load_data(
    *,
    data_dir: str,
    batch_size: int,
    image_size: int,
    class_cond: bool = False,
    deterministic: bool = False,
    random_crop: bool = False,
    random_flip: bool = True,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
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
    names = [PurePosixPath(path).name.split("_")[0] for path in paths]
    dataset = ImageDataset(
        image_size,
        paths,
        classes=np.unique(names, return_inverse=True)[1] if class_cond else None,
        shard=dist_util.rank(),
        num_shards=dist_util.world_size(),
        random_crop=random_crop,
        random_flip=random_flip,
    )
    return EndlessBatches(
        dataset,
        batch_size,
        shuffle=not deterministic,
        seed=(torch.initial_seed() + dist_util.rank()) % 2**63,
        num_workers=min(4, os.cpu_count() or 1),
    )


class ImageDataset(Dataset):
    """Items (image float32 (3, S, S) in [-1, 1], {'y': int64} or {}); random choices come from torch's generator.

    Every `num_shards`-th of the paths (and of their classes), from number `shard` on.
    """

    def __init__(
        self,
        resolution: int,
        image_paths: Sequence[str],
        classes: Sequence[int] | None = None,
        shard: int = 0,
        num_shards: int = 1,
        random_crop: bool = False,
        random_flip: bool = True,
    ) -> None:
        self.resolution = resolution
        self.local_images = image_paths[shard::num_shards]
        self.local_classes = None if classes is None else classes[shard::num_shards]
        self.random_crop = random_crop
        self.random_flip = random_flip

    def __len__(self) -> int:
        return len(self.local_images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        crop = random_crop_arr if self.random_crop else center_crop_arr
        pixels = crop(open_image(self.local_images[index]), self.resolution)
        if self.random_flip and torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1]
        pixels = pixels.astype(np.float32) / 127.5 - 1
        labels = {} if self.local_classes is None else {"y": np.array(self.local_classes[index], dtype=np.int64)}
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), labels


def center_crop_arr(pil_image: Image.Image, image_size: int) -> np.ndarray:
    """The middle square, scaled to uint8 (S, S, 3)."""
    pixels = np.array(_with_shorter_side(pil_image, image_size))
    top, left = ((side - image_size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def random_crop_arr(
    pil_image: Image.Image, image_size: int, min_crop_frac: float = 0.8, max_crop_frac: float = 1.0
) -> np.ndarray:
    """A random square, scaled to uint8 (S, S, 3); its side is that fraction of the image's shorter one."""
    longest, shortest = math.ceil(image_size / min_crop_frac), math.ceil(image_size / max_crop_frac)
    pixels = np.array(_with_shorter_side(pil_image, int(torch.randint(shortest, longest + 1, ()))))
    top, left = (int(torch.randint(side - image_size + 1, ())) for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]


def _with_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Scale an image so that its shorter side is `size`; box halving first keeps fine patterns from aliasing."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    return image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)


class EndlessBatches:
    """Batches of a data set, pass after pass; the last incomplete batch of a pass is dropped, unless `drop_last` is no.

    Batch number n is always the same, whatever the number of workers: the order of a pass follows from (seed, pass),
    an item's augmentation from (seed, pass, item). The data set may draw from torch's global CPU generator, which is
    seeded for each item and then put back. Where workers fail, this process reads in their stead, and says so.
    Raises ValueError for a data set smaller than one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = True,
    ) -> None:
        if drop_last and len(dataset) < batch_size:
            raise ValueError(
                f"batch_size {batch_size}: the data set has only {len(dataset)} image(s) for this process; "
                "use a smaller batch or fewer processes"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers = num_workers
        self.batches_per_pass = (len(dataset) if drop_last else len(dataset) + batch_size - 1) // batch_size
        self._taken = 0
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> "EndlessBatches":
        return self

    def __next__(self) -> Any:
        try:
            batch = self._read()
        except Exception as error:
            if not self.num_workers:
                raise
            self.num_workers = 0
            self.close()
            batch = self._read()  # the same batch; where it was a bad image that failed, its own error arrives here
            reason = str(error).strip().partition("\n")[0]
            print(f"Worker processes failed ({reason}): images are read without them from here on.", flush=True)
        self._taken += 1
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._iterator = None

    def state_dict(self) -> dict[str, int]:
        """The position: what has been taken, not what workers have read ahead."""
        return {"batches_taken": self._taken, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; no image is read to get there."""
        self._taken, self.seed = state["batches_taken"], state["seed"]
        self.close()

    def _read(self) -> Any:
        if self._iterator is None:
            keys = _keys(
                len(self.dataset), self.batch_size, self.batches_per_pass, self.shuffle, self.seed, self._taken
            )
            loader = DataLoader(
                _Seeded(self.dataset),
                batch_sampler=keys,
                num_workers=self.num_workers,
                collate_fn=_stack,
                generator=torch.Generator(),  # else it draws from the global one whenever it starts
            )
            with _child_signal_kept():
                self._iterator = iter(loader)
        return default_convert(next(self._iterator))


def _keys(
    items: int, batch_size: int, batches_per_pass: int, shuffle: bool, seed: int, first: int
) -> Iterator[list[tuple[int, int]]]:
    """Lists of (item, seed of its augmentation): batch number `first` and all that follow.

    No method: PyTorch's workers end when their iterator is deleted, but not when the garbage collector finds it in a
    cycle of references.
    """
    for number in itertools.count(first // batches_per_pass):
        seeds = np.random.SeedSequence([seed, number]).generate_state(items + 1, np.uint64)
        order = np.random.Generator(np.random.PCG64(int(seeds[-1]))).permutation(items) if shuffle else range(items)
        for batch in range(max(first - number * batches_per_pass, 0), batches_per_pass):
            chosen = order[batch * batch_size : (batch + 1) * batch_size]
            yield [(int(item), int(seeds[item])) for item in chosen]


class _Seeded(Dataset):
    """The data set, each item read with the generator that its key names."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        item, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._dataset[item]


@contextmanager
def _child_signal_kept() -> Iterator[None]:
    """Torch's answer to the end of a child, an error wherever this process then is, is put off again.

    A cluster signals every process: what ends a worker must not disturb the training that saves and stops at it. That
    a worker is gone shows where its batch is wanted.
    """
    possible = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if possible else None
    yield
    if possible:
        signal.signal(signal.SIGCHLD, before)


def _stack(items: Sequence[Any]) -> Any:
    """A batch of arrays, which comes through a pipe: tensors need shared memory, and Docker gives 64 MB of that."""
    if isinstance(items[0], Mapping):
        return {key: _stack([item[key] for item in items]) for key in items[0]}
    if isinstance(items[0], (tuple, list)):
        return [_stack(parts) for parts in zip(*items, strict=True)]
    return np.stack([np.asarray(item) for item in items])
