"""The quick part of the fault bench: every kind of fault once or twice. All of it: python tests/faults/bench.py."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.bench import KINDS, measure
from tests.faults.trials import Bench
from tests.worlds import World

QUICK = {"kill": 2, "write-kill": 10, "disk": 2, "nan": 2}
"""How often a kind is tried, if not once."""


@pytest.fixture(scope="module")
def bench(world: World, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(world, Path(tmp_path_factory.mktemp("bench")), random.Random(0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for Unix")
@pytest.mark.parametrize("name", KINDS)
def test_bench(bench, name):
    row, reasons = measure(bench, KINDS[name], QUICK.get(name, 1))
    assert not reasons, row
