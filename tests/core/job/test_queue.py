"""The queue that the processes of a run share: each item once, nothing lost with the dead, nobody held up."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dime.core.errors import InputError
from dime.core.job.queue import BUSY, Queue, Start
from dime.core.job.world import World
from guided_diffusion.launch import Launch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "exp" / "running"


def beginning(items: int) -> Callable[[list], Start]:
    return lambda found: Start(list(range(items)), {"found": found}, 0, 0)


@contextlib.contextmanager
def members(folder: Path, count: int, items: int) -> Iterator[list[Queue]]:
    """Several processes of one launch: locks of one process exclude each other as well."""
    queues = [Queue(folder, "launch", f"process {number}", speaks=number == 0) for number in range(count)]
    with contextlib.ExitStack() as joined:
        for queue in queues:
            joined.enter_context(queue.joined(beginning(items)))
        yield queues


def dead_member(folder: Path) -> None:
    """A process that takes an item, finishes it, takes another, and is killed."""
    if (pid := os.fork()) == 0:
        queue = Queue(folder, "launch", "the dead")
        with queue.joined(beginning(3)):
            queue.done(queue.take(), "its result", 1, 1)
            queue.take()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_every_item_is_done_once_and_one_process_ends_the_run(folder):
    with members(folder, 2, 5) as (first, second):
        taken = [first.take(), second.take(), first.take(), second.take(), second.take()]
        assert taken == [0, 1, 2, 3, 4] and first.take() == second.take() == BUSY
        for item in taken[1:]:
            second.done(item, item, 1, item % 2)
        assert second.take() == BUSY  # the first one lives and has not finished 0
        first.done(0, 0, 1, 0)
        assert second.take() == BUSY  # the first one is to end the run
        assert first.take() is None and first.ends_the_run
        state = first.peek()
        assert (state.done, state.flipped) == (5, 2)
        assert sorted(first.results(), key=str) == [0, 1, 2, 3, 4, {"found": []}] and not first.lost()
        first.close()
        assert second.take() is None and not second.ends_the_run
    assert not list(folder.parent.iterdir())


def test_nobody_hoards_what_is_left(folder):
    with members(folder, 2, 10) as (first, _):
        assert [first.take(ahead=True) for _ in range(3)] == [0, 1, None] and first.take() == 2
    with members(folder, 1, 2) as (alone,):
        assert [alone.take(ahead=True) for _ in range(3)] == [0, 1, None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for Unix")
def test_what_a_dead_process_had_begun_is_done_by_another(folder):
    """It dies among the living: its item is taken over, and it is named; even where it was to end the run."""
    with contextlib.ExitStack() as joined:
        folder.parent.mkdir()
        dead_member(folder)
        stale = Queue(folder, "other launch", "a stranger")  # all are dead: anybody may begin anew
        joined.enter_context(stale.joined(beginning(3)))
        assert stale.results() == [{"found": [{"found": []}, "its result"]}]
        stale.close()
    with members(folder, 1, 3) as (living,):
        dead_member(folder)
        assert living.take() == 2
        living.done(2, 2, 1, 0)
        assert living.take(ahead=True) is None and living.take() == 1
        assert living.lost() == ["the dead"]
        living.done(1, 1, 1, 0)
        assert living.take() is None and living.ends_the_run
        assert living.results().count("its result") == 1


def test_another_launch_is_refused_and_one_that_sees_another_folder(folder):
    with members(folder, 1, 3):
        for launch in ("another", ""):
            stranger = Queue(folder, launch, "a stranger")
            with pytest.raises(InputError, match="process 0 is working on the same images"), stranger.joined(None):
                pass
        assert stranger.at_work() == "process 0"
        blind = Queue(folder.parents[1] / "elsewhere" / "running", "launch", "process 1")
        with pytest.raises(InputError, match="cannot be seen from process 1"), blind.joined(None):
            pass
    assert not stranger.at_work()


def test_a_process_that_cannot_go_on_stops_the_others(folder):
    with members(folder, 2, 3) as (first, second):
        second.stop("process 1: the disk is full")
        with pytest.raises(InputError, match="stopped, as another process was: process 1: the disk is full"):
            first.take()
        with pytest.raises(SystemExit):
            second.peek()


def test_a_look_at_the_queue_costs_the_same_however_many_images_there_are(folder):
    """Files opened and bytes written by a member that takes an item and finishes it."""
    opened, costs = [], []
    sys.addaudithook(lambda event, given: opened.append(given[0]) if event in ("open", "os.listdir") else None)
    for items in (10, 10_000):
        with members(folder, 2, items) as (first, _):
            for _ in range(3):
                opened.clear()
                first.done(first.take(), None, 1, 1)
                costs.append((len(opened), (folder / "state.0").stat().st_size // 20))
            first.close()
    assert len(set(costs)) == 1, costs


def test_a_process_that_dies_while_it_writes_the_state_leaves_the_one_before(folder):
    with members(folder, 1, 3) as (queue,):
        assert queue.take() == 0 and queue.take() == 1
        latest = max(folder.glob("state.*"), key=lambda path: path.stat().st_mtime_ns)
        latest.write_text(latest.read_text()[:30])
        assert queue.take() == 1


@pytest.mark.parametrize(
    ("gpu", "place", "expected"),
    [
        ("0", 1, "cuda:1"),  # the default: each its own
        ("cpu,cpu", 1, "cpu"),
        ("0", 4, "--gpu 0: 5 processes: this machine has 4 GPU"),
        ("cpu,cpu", 2, "more processes on its machine than these"),
        ("first", 1, "--gpu first"),
    ],
)
def test_each_process_takes_the_device_of_its_place(monkeypatch, gpu, place, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    world = World()
    world.launch, world.alone = Launch("srun", place, 8, place, place + 1), False
    if expected.startswith("cuda") or expected == "cpu":
        assert world.device(gpu) == torch.device(expected)
    else:
        with pytest.raises(InputError, match=expected):
            world.device(gpu)
