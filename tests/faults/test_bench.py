"""The quick part of the fault bench, on eight images, a twin and signals. All of it: python tests/faults/bench.py."""

import os
import random
import time
from pathlib import Path
from signal import Signals

import pytest

from tests.faults.bench import measure
from tests.faults.forks import EXIT_CONTINUE, slow_unet, wait_for
from tests.faults.trials import Bench
from tests.worlds import SMALL_FLAGS, World, refusal, run_main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for Unix")


@pytest.fixture(scope="module")
def bench(world: World, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(world, Path(tmp_path_factory.mktemp("bench")), random.Random(0), batches=2)


@pytest.mark.parametrize(
    ("name", "count"),
    [("kill", 1), ("write-kill", 10), ("disk", 4), ("writers", 1), ("one of four", 2), ("nan", 2), ("memory", 1)],
)
def test_bench(bench, name, count):
    row, reasons = measure(bench, name, count)  # a kind of failing disk each; nan: the network's and the classifier's
    assert not reasons, (row, reasons)


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])  # SIGTERM: tests/test_main_resume.py
def test_a_twin_is_refused_and_a_signal_ends_the_run_which_then_continues(bench, name):
    place = bench.place()
    out = place / "out"
    first = bench.start(place, lambda: slow_unet(1.0))
    wait_for(lambda: any(out.rglob("Info/*.txt")))
    twin = refusal(run_main(*bench.world.command(out, SMALL_FLAGS | {"num_batches": bench.batches})))
    assert f"process {first.pid} on " in twin and "same images" in twin
    asked = time.monotonic()
    first.kill(Signals[name])
    assert first.wait() == EXIT_CONTINUE, first.said()
    assert time.monotonic() - asked < 5
    last = first.said().splitlines()[-1]
    assert name in last and "run the same command again" in last
    assert not list(out.rglob("*.tmp")) and 0 < len(list(out.rglob("Info/*.txt"))) < 8
    bench.finish(place)
