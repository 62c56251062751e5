"""The quick part of the fault bench: every kind of fault once or twice."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.bench import KINDS, measure, networks_loaded_once
from tests.faults.trials import Bench
from tests.worlds import World

QUICK = {"kill": 2, "write-kill": 10, "disk": 2, "writers": 1, "signal": 1, "images": 1, "nan": 1, "memory": 1}


@pytest.fixture(scope="module")
def bench(world: World, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    with networks_loaded_once():
        yield Bench(world, Path(folder), random.Random(0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for Unix")
@pytest.mark.parametrize("name", KINDS)
def test_bench(bench, name):
    said = []
    row, all_survived = measure(bench, KINDS[name], QUICK[name], said.append)
    assert all_survived, (row, said)
