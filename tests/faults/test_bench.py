"""The quick part of the fault bench. All of it: python tests/faults/bench.py.

Kills and signals are tried in test_processes.py, bad images in test_bad_images.py.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.bench import KINDS, measure
from tests.faults.trials import Bench
from tests.worlds import World

QUICK = {"write-kill": 10, "disk": 1, "writers": 1, "nan": 2, "memory": 1}
"""How often each kind is tried; nan alternates between the network and the classifier."""


@pytest.fixture(scope="module")
def bench(world: World, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(world, Path(tmp_path_factory.mktemp("bench")), random.Random(0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for Unix")
@pytest.mark.parametrize("name", QUICK)
def test_bench(bench, name):
    row, reasons = measure(bench, KINDS[name], QUICK[name])
    assert not reasons, row
