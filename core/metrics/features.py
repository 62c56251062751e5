"""Features of image files: read in threads, computed in batches, each file once."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dime.core.datasets import read_image
from dime.core.errors import InputError, UndefinedError
from dime.core.files import write_atomically
from dime.core.images import from_image

Item = TypeVar("Item")
Value = TypeVar("Value")


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


class ImageFeatures:
    """What a network says of image files; a file that has been seen is not computed again.

    Args:
        network: a batch (N, …) of what `prepare` gives -> features (N, D).
        machine: the device that the network lies on, batch size, threads.
        prepare: an RGB image -> the network's input; (3, H, W) in [-1, 1] when not given.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        machine: Machine,
        prepare: Callable[[Image.Image], torch.Tensor] = from_image,
    ) -> None:
        self.network = network
        self.machine = machine
        self.prepare = prepare
        self._known: dict[Path, torch.Tensor] = {}

    def __call__(self, paths: Sequence[Path]) -> torch.Tensor:
        """Features (N, D) of the files, on the CPU in float32.

        Raises InputError for a damaged image, UndefinedError for one of which the network says NaN or infinity.
        """
        new = [path for path in dict.fromkeys(paths) if path not in self._known]
        rows: list[torch.Tensor] = []
        for images in batches(new, self._read, self.machine):
            with computing():
                rows.extend(self.network(torch.stack(images).to(self.machine.device)).float().cpu())
        for path, row in zip(new, rows, strict=True):
            if not row.isfinite().all():
                raise UndefinedError(f"{path}: the network gives no finite numbers for this image")
        self._known.update(zip(new, rows, strict=True))
        return torch.stack([self._known[path] for path in paths])

    def _read(self, path: Path) -> torch.Tensor:
        return self.prepare(read_image(str(path)))


class StoredFeatures:
    """Features that the next process finds again: one file that holds those of the images last asked for.

    Rows are looked up by the content of the image, and the whole file by the network's weights, so that
    nothing in it can be out of date.
    """

    def __init__(self, features: ImageFeatures, file: Path, weights: Path) -> None:
        self.features = features
        self.file = file
        self.network_digest = content_digest(weights)

    def __call__(self, paths: Sequence[Path]) -> torch.Tensor:
        """Features (N, D) of the files, on the CPU in float32. Raises InputError for a damaged image."""
        digests = [content_digest(path) for path in paths]
        known = self._load()
        new = {digest: path for digest, path in zip(digests, paths, strict=True) if digest not in known}
        if new:
            known |= dict(zip(new, self.features(list(new.values())), strict=True))
            self._save({digest: known[digest] for digest in digests})
        return torch.stack([known[digest] for digest in digests])

    def _load(self) -> dict[str, torch.Tensor]:
        try:
            with np.load(self.file) as stored:
                if str(stored["network"]) != self.network_digest:
                    return {}
                return dict(zip(stored["images"].tolist(), torch.from_numpy(stored["features"]), strict=True))
        except Exception:  # absent, damaged or of another program: computed anew
            return {}

    def _save(self, rows: dict[str, torch.Tensor]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, network=self.network_digest, images=list(rows), features=torch.stack([*rows.values()]).numpy())
        try:
            write_atomically(self.file, buffer.getvalue())
        except InputError:  # a tree that is read-only: the next run computes them again
            return


def batches(items: Sequence[Item], read: Callable[[Item], Value], machine: Machine) -> Iterator[list[Value]]:
    """What `read` gives for the items, in order, batch_size at a time, one batch ahead in num_workers threads."""
    groups = [items[start : start + machine.batch_size] for start in range(0, len(items), machine.batch_size)]
    with (
        ThreadPoolExecutor(max(machine.num_workers, 1)) as pool,
        tqdm(total=len(items), unit="image", leave=False, disable=None) as bar,
    ):
        ahead: deque[list[Future[Value]]] = deque()
        for group in (*groups, None):
            if group:
                ahead.append([pool.submit(read, item) for item in group])
            if len(ahead) > 1 or (ahead and not group):
                values = [future.result() for future in ahead.popleft()]
                bar.update(len(values))
                yield values


def read_images(paths: Sequence[Path]) -> torch.Tensor:
    """Several image files as one tensor (N, 3, H, W) in [-1, 1]. Raises InputError for a damaged image."""
    return torch.stack([from_image(read_image(str(path))) for path in paths])


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
