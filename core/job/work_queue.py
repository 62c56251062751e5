"""Which images are tried together: the order of a run's work, which depends on nothing but its images and outcomes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Group(NamedTuple):
    """Images that are computed together: those to be tried again, and those whose turn has come."""

    again: list[int]
    new: list[int]

    @property
    def ids(self) -> list[int]:
        """All of them."""
        return self.again + self.new


class WorkQueue:
    """Groups of at most `size` images, until none is left. After each one, set `again` before asking for the next.

    Args:
        ids: the images, in the order of their first attempts.
        refill: the places of images that are finished go to new ones, so that a group is full while there are new
            ones; else the images of one batch are tried until all of them are finished.
    """

    def __init__(self, ids: Iterable[int], size: int, refill: bool) -> None:
        self.waiting = deque(ids)
        self.size = size
        self.refill = refill
        self.again: list[int] = []
        """The images of the last group that are to be tried with their next scale."""

    def __iter__(self) -> Iterator[Group]:
        while self.waiting or self.again:
            room = self.size - len(self.again) if self.refill or not self.again else 0
            new = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
            yield Group(self.again, new)
