"""Features of image files: read in threads, computed in batches, each file once."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from tqdm import tqdm

from dime.core.datasets import read_image
from dime.core.errors import InputError, UndefinedError
from dime.core.files import write_atomically
from dime.core.images import from_image
from guided_diffusion.dist_util import gather

Item = TypeVar("Item")
Value = TypeVar("Value")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Machine:
    """Where and how networks run: the device, images at once, and threads that read images."""

    device: torch.device
    batch_size: int = 50
    num_workers: int = 4


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """No gradients, and convolutions in float32: by TF32's ten bits of mantissa, decisions depend on the batch size."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@dataclass(eq=False)
class ImageFeatures:
    """What a network says of image files; a file that has been seen is not computed again.

    network: a batch (N, …) of what `prepare` gives -> features (N, D). prepare: an RGB image -> the network's input.
    file: where features of the images below its own folder stay for the next experiment's metrics; None: nowhere. Rows
    are looked up by the content of the image, and the whole file by that of the network's `weights`, so that nothing
    in it can be out of date.
    """

    network: Callable[[torch.Tensor], torch.Tensor]
    machine: Machine
    prepare: Callable[[Image.Image], torch.Tensor] = from_image
    file: Path | None = None
    weights: Path | None = None

    def __call__(self, paths: Sequence[Path]) -> torch.Tensor:
        """Features (N, D) of the files, on the CPU in float32.

        Raises InputError for a damaged image, UndefinedError for one of which the network says NaN or infinity.
        """
        keys = [_digest(path) if self.file and self.file.parent in path.parents else path for path in paths]
        new = {key: path for key, path in zip(keys, paths, strict=True) if key not in self._known}

        def compute(images: list[torch.Tensor]) -> torch.Tensor:
            return self.network(torch.stack(images).to(self.machine.device)).float().cpu()

        parts = shared([*new.values()], lambda path: self.prepare(read_image(str(path))), compute, self.machine)
        rows = [row for part in parts for row in part]
        for path, row in zip(new.values(), rows, strict=True):
            if not row.isfinite().all():
                raise UndefinedError(f"{path}: the network gives no finite numbers for this image")
        self._known.update(zip(new, rows, strict=True))
        if any(isinstance(key, str) for key in new) and place_among_processes()[0] == 0:
            self._write()
        return torch.stack([self._known[key] for key in keys])

    @cached_property
    def _known(self) -> dict[Path | str, torch.Tensor]:
        """Read once, before anything is written: all processes then agree on what is new."""
        if self.file:
            with contextlib.suppress(Exception), np.load(self.file) as stored:  # absent, damaged or of another program
                if str(stored["network"]) == _digest(self.weights):
                    return dict(zip(stored["images"].tolist(), torch.from_numpy(stored["features"]), strict=True))
        return {}

    def _write(self) -> None:
        known = {key: row for key, row in self._known.items() if isinstance(key, str)}
        content = {"network": _digest(self.weights), "images": list(known)}
        content["features"] = torch.stack([*known.values()]).numpy()
        with contextlib.suppress(InputError):  # a tree that is read-only: the next run computes them again
            write_atomically(self.file, lambda file: np.savez(file, **content))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def place_among_processes() -> tuple[int, int]:
    """This process's number, and how many compute features together (evaluate.py)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shared(
    items: Sequence[Item], read: Callable[[Item], Value], compute: Callable[[list[Value]], Result], machine: Machine
) -> list[Result]:
    """What `compute` gives for every batch of what `read` gives for the items, in order.

    Several processes share the batches, which are those of one, and all of them get everything, or the first error.
    """
    own, count = place_among_processes()
    size, found, problem = machine.batch_size, [], None
    groups = [items[start : start + size] for start in range(0, len(items), size)]
    try:
        for values in batches([item for group in groups[own::count] for item in group], read, machine):
            with computing():
                found.append(compute(values))
    except (InputError, UndefinedError) as error:
        problem = error
    parts = gather((found, problem)) if count > 1 else [(found, problem)]
    for _, error in parts:
        if error:
            raise error
    return [parts[number % count][0][number // count] for number in range(len(groups))]


def batches(items: Sequence[Item], read: Callable[[Item], Value], machine: Machine) -> Iterator[list[Value]]:
    """What `read` gives for the items, in order, batch_size at a time, one batch ahead in num_workers threads."""
    groups = [items[start : start + machine.batch_size] for start in range(0, len(items), machine.batch_size)]
    with (
        ThreadPoolExecutor(max(machine.num_workers, 1)) as pool,
        tqdm(total=len(items), unit="image", leave=False, disable=None) as bar,
    ):
        ahead: Iterator[Value] = pool.map(read, groups[0] if groups else ())
        for following in (*groups[1:], ()) if groups else ():
            current, ahead = ahead, pool.map(read, following)
            values = list(current)
            bar.update(len(values))
            yield values


def read_images(paths: Sequence[Path]) -> torch.Tensor:
    """Several image files as one tensor (N, 3, H, W) in [-1, 1]. Raises InputError for a damaged image."""
    return torch.stack([from_image(read_image(str(path))) for path in paths])
