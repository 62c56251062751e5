"""Endless batches of a data set whose order and augmentation follow from a seed, so that a run can resume anywhere."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from guided_diffusion import dist_util


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
            dataset = _Seeded(self.dataset)
            self.num_workers = _fitting_workers(dataset, self.batch_size, self.num_workers)
            loader = DataLoader(
                dataset,
                batch_sampler=_keys(
                    len(dataset), self.batch_size, self.batches_per_pass, self.shuffle, self.seed, first=self._taken
                ),
                num_workers=self.num_workers,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_ignore_foreign_signals,
                generator=torch.Generator(),  # else it draws from the global one whenever it starts
            )
            self._iterator = iter(loader)
        return next(self._iterator)


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


def _fitting_workers(dataset: Dataset, batch_size: int, wanted: int) -> int:
    """As many of the workers as the shared memory has room for (Docker gives 64 MB); says so where some go."""
    if not wanted or not Path("/dev/shm").is_dir():
        return wanted
    room = shutil.disk_usage("/dev/shm").free * 3 // 4 // dist_util.world_size()
    in_flight = room // (batch_size * len(pickle.dumps(dataset[0, 0])))  # two of each worker, and the one in use
    fitting = max(0, min(wanted, (in_flight - 1) // 2))
    if fitting < wanted:
        advice = "docker run --shm-size 2g gives more, --num_workers 0 needs none"
        print(f"/dev/shm has room for {fitting} of {wanted} worker processes that read images; {advice}.", flush=True)
    return fitting


def _ignore_foreign_signals(worker: int) -> None:
    """A worker_init_fn: SIGTERM, SIGINT and SIGUSR1 end a worker only if its own training process sends them.

    A cluster and torchrun signal every process; if that killed a worker, the training would crash before its last
    save. Its own process ends its workers by SIGTERM at exit, and waits. Where the system does not tell who sent a
    signal, workers stay as torch made them.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # and so in every thread that this one starts

    def wait() -> None:
        while signal.sigwaitinfo(signals).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
