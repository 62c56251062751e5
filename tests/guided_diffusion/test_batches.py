"""Endless batches: their position, their workers, and what fails there."""

from __future__ import annotations

import multiprocessing
import os
import subprocess

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from guided_diffusion.batches import EndlessBatches


class Numbers(Dataset):
    """Ten random numbers, drawn as augmentations are; `fail` is called for item 7 first."""

    def __init__(self, fail=lambda: None):
        self.fail = fail

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 7:
            self.fail()
        return torch.rand(()) + index


def die_in_a_worker():
    if get_worker_info():
        os._exit(1)


def bad_image():
    raise OSError("000007.jpg: not a readable image")


def take(batches: EndlessBatches, count: int = 5) -> list[list[float]]:
    return [next(batches).tolist() for _ in range(count)]


def test_where_workers_die_the_same_batches_are_read_without_them(capsys):
    found = take(EndlessBatches(Numbers(die_in_a_worker), 2, num_workers=2))
    assert found == take(EndlessBatches(Numbers(), 2))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "images are read without them" in said[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_as_it_is(workers):
    with pytest.raises(OSError, match=r"^000007\.jpg: not a readable image$"):
        take(EndlessBatches(Numbers(bad_image), 2, num_workers=workers))


def test_an_incomplete_batch_is_dropped_or_not():
    for drop_last, expected in ((False, [*range(10), 0, 1]), (True, [*range(8), *range(4)])):
        batches = EndlessBatches(Numbers(), 4, shuffle=False, drop_last=drop_last)
        drawn = torch.tensor([number for batch in take(batches, 4) for number in batch])
        assert drawn.long().tolist()[:12] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_any_position_can_be_resumed(workers):
    before = torch.get_rng_state()
    whole = take(EndlessBatches(Numbers(), 3, seed=5), 8)
    first = EndlessBatches(Numbers(), 3, seed=5, num_workers=workers)
    assert take(first, 4) == whole[:4]
    second = EndlessBatches(Numbers(), 3, seed=0, num_workers=workers)
    second.load_state_dict(first.state_dict())
    assert take(second, 4) == whole[4:]
    assert torch.equal(torch.get_rng_state(), before)  # reading leaves the global generator alone


def test_workers_end_with_their_batches():
    before = set(multiprocessing.active_children())
    data = EndlessBatches(Numbers(), 2, num_workers=2)
    next(data)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del data  # at once: there is no cycle for the garbage collector to find
    assert not set(multiprocessing.active_children()) - before


def test_a_signal_to_every_process_disturbs_no_reading():
    """As clusters send it. Were it for torch, an error would be raised wherever this process is when a worker ends."""
    data = EndlessBatches(Numbers(), 2, num_workers=2)
    begun = take(data, 2)
    for worker in multiprocessing.active_children():
        subprocess.run(["bash", "-c", f"kill -TERM {worker.pid}"], check=True)
        worker.join(10)
    assert begun + take(data, 20) == take(EndlessBatches(Numbers(), 2), 22)
