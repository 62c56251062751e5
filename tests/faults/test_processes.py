"""Real processes on one folder: signals, twins, chunks side by side, kills."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

import main as main_script
from dime.core.job import preemption
from dime.core.job.preemption import EXIT_CONTINUE
from tests.faults.forks import Fork, wait_for
from tests.test_main_resume import comparable
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


def slow_unet(seconds: float) -> None:
    """In a fork: every evaluation takes so long, as large images do."""
    load = main_script.load_unet

    def loading(*args):
        unet = load(*args)
        unet.register_forward_hook(lambda *_: time.sleep(seconds))
        return unet

    main_script.load_unet = loading


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
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*running.lock"))
    assert 0 < len(list(out.rglob("Info/*.txt"))) < 15
    finish(command, tmp_path)
    assert comparable(out) == expected


def test_a_computation_that_reaches_no_safe_point_is_ended_all_the_same(world, expected, tmp_path):
    """PATIENCE is shortened; time.sleep of the main thread stands for a convolution that takes minutes."""

    def prepare() -> None:
        preemption.PATIENCE = 0.5
        signal.siginterrupt(signal.SIGTERM, False)
        slow_unet(0)
        load = main_script.load_unet

        def loading(*args):
            unet = load(*args)
            unet.register_forward_hook(lambda *_: _busy(30))
            return unet

        main_script.load_unet = loading

    out = tmp_path / "out"
    command = world.command(out, SMALL_FLAGS)
    fork = Fork(command, tmp_path / "log", prepare)
    wait_for(lambda: any(out.rglob("config.yaml")))
    time.sleep(0.3)
    asked = time.monotonic()
    fork.kill(signal.SIGTERM)
    assert fork.wait() == EXIT_CONTINUE, fork.said()
    assert time.monotonic() - asked < 5
    assert "run the same command again" in fork.said()
    finish(command, tmp_path)
    assert comparable(out) == expected


def _busy(seconds: float) -> None:
    """Work inside one call into C, which Python's own signal handlers have to wait for."""
    deadline = time.monotonic() + seconds
    matrix = torch.ones(1500, 1500)
    while time.monotonic() < deadline:
        matrix = (matrix @ matrix).clamp(max=1)


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
    assert list(out.rglob("*running.lock"))
    finish(command, tmp_path)
    assert comparable(out) == expected


def test_chunks_side_by_side_give_the_whole(world, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    flags = SMALL_FLAGS | {"num_chunks": 4, "pad_batches": True}
    forks = [Fork(world.command(out, flags | {"chunk": c}), tmp_path / f"log{c}") for c in range(4)]
    assert [fork.wait() for fork in forks] == [0] * 4, [fork.said() for fork in forks]
    finish(world.command(out, flags | {"merge_and_eval": True}), tmp_path)
    finish(world.command(alone, SMALL_FLAGS | {"pad_batches": True}), tmp_path)

    def images(folder: Path) -> dict[str, bytes]:
        return {name: content for name, content in comparable(folder).items() if name.endswith((".jpg", ".txt"))}

    assert images(out) == images(alone)
    ours, whole = (yaml.safe_load((folder / "Results/exp/summary.yaml").read_text()) for folder in (out, alone))
    assert ours["n"] == whole["n"] == 15
    assert ours["bkl"] == pytest.approx(whole["bkl"], rel=1e-12)
