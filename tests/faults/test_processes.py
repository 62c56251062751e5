"""Real processes on one folder: signals, twins, chunks side by side, kills."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.faults.forks import EXIT_CONTINUE, Fork, comparable, images, slow_unet, wait_for
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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
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


def test_twins_started_together_do_the_work_once(world, expected, tmp_path):
    out = tmp_path / "out"
    twins = [Fork(world.command(out, SMALL_FLAGS), tmp_path / f"log{number}") for number in range(4)]
    codes = [twin.wait() for twin in twins]
    assert 0 in codes and set(codes) <= {0, 2}, [twin.said() for twin in twins]
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


def test_chunks_side_by_side_give_the_whole(world, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    flags = SMALL_FLAGS | {"num_chunks": 4, "pad_batches": True}
    forks = [Fork(world.command(out, flags | {"chunk": c}), tmp_path / f"log{c}") for c in range(4)]
    assert [fork.wait() for fork in forks] == [0] * 4, [fork.said() for fork in forks]
    finish(world.command(out, flags | {"merge_and_eval": True}), tmp_path)
    finish(world.command(alone, SMALL_FLAGS | {"pad_batches": True}), tmp_path)
    assert images(out) == images(alone)
    ours, whole = (yaml.safe_load((folder / "Results/exp/summary.yaml").read_text()) for folder in (out, alone))
    assert ours["n"] == whole["n"] == 15
    assert ours["bkl"] == pytest.approx(whole["bkl"], rel=1e-12)
