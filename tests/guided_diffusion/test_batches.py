"""Workers that fail: the batches come all the same, and a bad image's error arrives as it is."""

from __future__ import annotations

import os

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


def take(batches: EndlessBatches, count: int = 5) -> torch.Tensor:
    return torch.stack([next(batches) for _ in range(count)])


def test_where_workers_die_the_same_batches_are_read_without_them(capsys):
    found = take(EndlessBatches(Numbers(die_in_a_worker), 2, num_workers=2))
    assert torch.equal(found, take(EndlessBatches(Numbers(), 2)))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "images are read without them" in said[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_as_it_is(workers):
    with pytest.raises(OSError, match=r"^000007\.jpg: not a readable image$"):
        take(EndlessBatches(Numbers(bad_image), 2, num_workers=workers))


def test_an_incomplete_batch_is_dropped_or_not():
    batches = EndlessBatches(Numbers(), 4, shuffle=False, drop_last=False)
    whole_pass = torch.cat([next(batches) for _ in range(batches.batches_per_pass)])
    assert whole_pass.long().tolist() == list(range(10))
    dropping = EndlessBatches(Numbers(), 4, shuffle=False)
    assert torch.cat([next(dropping) for _ in range(3)]).long().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
