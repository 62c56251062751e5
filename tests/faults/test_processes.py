"""Real processes on one folder: signals, a twin, a kill. The bench has chunks side by side and twins at one moment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.forks import EXIT_CONTINUE, Fork, comparable, slow_unet, wait_for
from tests.worlds import SMALL_FLAGS, World, run_main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for Unix")


@pytest.fixture(scope="module")
def expected(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    finish(world.command(folder / "out", SMALL_FLAGS), folder)
    return comparable(folder / "out")


def finish(command: list[str], folder: Path) -> None:
    """Run a command to its end; like the disturbed one in a fork, which has one thread."""
    fork = Fork(command, folder / "finish")
    assert fork.wait() == 0, fork.said()


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])  # the bench tries SIGTERM
def test_a_signal_ends_the_run_which_then_continues(world, expected, tmp_path, name):
    out = tmp_path / "out"
    command = world.command(out, SMALL_FLAGS)
    fork = Fork(command, tmp_path / "log", lambda: slow_unet(0.1))
    wait_for(lambda: any(out.rglob("Info/*.txt")))
    asked = time.monotonic()
    fork.kill(getattr(signal, name))
    assert fork.wait() == EXIT_CONTINUE, fork.said()
    assert time.monotonic() - asked < 5
    last = fork.said().splitlines()[-1]
    assert name in last and "run the same command again" in last
    assert not list(out.rglob("*.tmp"))
    assert 0 < len(list(out.rglob("Info/*.txt"))) < 15
    finish(command, tmp_path)
    assert comparable(out) == expected


def test_the_second_of_two_twins_is_refused(world, expected, tmp_path):
    out = tmp_path / "out"
    command = world.command(out, SMALL_FLAGS)
    first = Fork(command, tmp_path / "log", lambda: slow_unet(0.05))
    wait_for(lambda: any(out.rglob("config.yaml")))
    second = run_main(*command)
    assert second.code == 2 and second.err.count("\n") == 1
    assert f"process {first.pid} on " in second.err and "same images" in second.err
    assert first.wait() == 0, first.said()
    assert comparable(out) == expected


def test_a_lock_of_a_killed_process_holds_nobody_up(world, expected, tmp_path):
    out = tmp_path / "out"
    command = world.command(out, SMALL_FLAGS)
    fork = Fork(command, tmp_path / "log", lambda: slow_unet(0.05))
    wait_for(lambda: any(out.rglob("Info/*.txt")))
    fork.kill(signal.SIGKILL)
    assert fork.wait() == -signal.SIGKILL
    finish(command, tmp_path)
    assert comparable(out) == expected
