"""The quick part of the fault bench, on eight images. All of it: python tests/faults/bench.py.

Kills and signals are tried in test_processes.py.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.bench import measure
from tests.faults.trials import Bench
from tests.worlds import World


@pytest.fixture(scope="module")
def bench(world: World, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(world, Path(tmp_path_factory.mktemp("bench")), random.Random(0), batches=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for Unix")
@pytest.mark.parametrize(
    ("name", "count"), [("write-kill", 10), ("disk", 1), ("writers", 1), ("one of four", 2), ("nan", 2), ("memory", 1)]
)
def test_bench(bench, name, count):
    row, reasons = measure(bench, name, count)  # nan alternates between the network and the classifier
    assert not reasons, row
