"""Endless batches of a data set whose order and augmentation follow from a seed, so that a run can resume anywhere."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_convert


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

    def __iter__(self) -> EndlessBatches:
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
            loader = DataLoader(
                _Seeded(self.dataset),
                batch_sampler=_keys(
                    len(self.dataset),
                    self.batch_size,
                    self.batches_per_pass,
                    self.shuffle,
                    self.seed,
                    first=self._taken,
                ),
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
    first_pass, skip = divmod(first, batches_per_pass)
    for number in itertools.count(first_pass):
        seeds = np.random.SeedSequence([seed, number]).generate_state(items + 1, np.uint64)
        order = np.random.Generator(np.random.PCG64(int(seeds[-1]))).permutation(items) if shuffle else range(items)
        for batch in range(skip, batches_per_pass):
            chosen = order[batch * batch_size : (batch + 1) * batch_size]
            yield [(int(item), int(seeds[item])) for item in chosen]
        skip = 0


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
