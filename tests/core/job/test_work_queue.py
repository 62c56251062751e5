"""Who is tried with whom: full groups while there are new images, everyone as often as needed, nobody lost."""

from __future__ import annotations

import random

import pytest

from dime.core.job.work_queue import WorkQueue


def work_off(queue: WorkQueue, attempts: dict[int, int]) -> list[list[int]]:
    """The groups of a queue when each image needs so many attempts."""
    left, groups = dict(attempts), []
    for group in queue:
        groups.append(group.ids)
        for id in group.ids:
            left[id] -= 1
        queue.again = [id for id in group.ids if left[id]]
    assert not any(left.values())
    return groups


TWELVE = {id: 2 if id % 3 == 0 else 1 for id in range(12)}
"""A third of the images need a second scale."""


def test_places_of_finished_images_are_filled():
    groups = work_off(WorkQueue(TWELVE, 4, refill=True), TWELVE)
    assert groups == [[0, 1, 2, 3], [0, 3, 4, 5], [6, 7, 8, 9], [6, 9, 10, 11]]


def test_without_refill_batches_keep_to_themselves():
    groups = work_off(WorkQueue(TWELVE, 4, refill=False), TWELVE)
    assert groups == [[0, 1, 2, 3], [0, 3], [4, 5, 6, 7], [6], [8, 9, 10, 11], [9]]


@pytest.mark.parametrize("refill", [True, False])
@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_everyone_is_tried_as_often_as_needed(size, refill):
    attempts = {id: random.Random(id).randint(1, 3) for id in range(50)}
    groups = work_off(WorkQueue(attempts, size, refill), attempts)
    tried = [id for group in groups for id in group]
    assert {id: tried.count(id) for id in attempts} == attempts
    assert max(map(len, groups)) <= size
    if refill:  # only the end, when nobody waits any more, has room
        assert all(len(group) == size for group in groups[:-3])


@pytest.mark.parametrize("refill", [True, False])
def test_nothing_to_do(refill):
    assert list(WorkQueue((), 4, refill)) == []
