"""The scripts on a real Slurm: interrupted chunks, merge and evaluation give what one uninterrupted run gives."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dime.core.summary import read_stats
from tests.faults.forks import Fork
from tests.slurm.cluster import Cluster, missing_programs
from tests.test_main_resume import comparable
from tests.worlds import SMALL_FLAGS, World, as_arguments

SUBMIT = Path(__file__).parents[2] / "slurm/submit.sh"
SLOW_ENOUGH = {"start_step": 5, "pad_batches": True, "batch_size": 1, "save_z_t": True, "save_x_t": True}
"""Each chunk has five batches, so that it can be interrupted between two."""

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"needs Slurm and munge; missing here: {', '.join(missing_programs())}"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


def submit(cluster: Cluster, *arguments: str | Path, **environment: str) -> list[str]:
    """The ids of chunks, merge and evaluation."""
    said = cluster.run(SUBMIT, *arguments, **environment)
    return re.search(r"^Stop: +scancel (\d+) (\d+) (\d+)$", said, re.MULTILINE).groups()


def test_chunks_that_were_requeued_give_the_tree_of_one_run(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """Chunk 1 is requeued by Slurm, chunk 2 by itself on the signal that comes before the time limit."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    command = world.command(out, SMALL_FLAGS | SLOW_ENOUGH)
    networks = as_arguments({"inception-weights": tmp_path / "none", "batch-size": 5})
    machine = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    chunks, merge, evaluation = submit(cluster, "3", "--", *command, "--", *networks, **machine)

    def begun(chunk: int) -> bool:
        return (out / f"Results/exp/chunk-{chunk}_num-chunks-3_stats.pth").exists()

    interrupt = {1: ["scontrol", "requeue"], 2: ["scancel", "--batch", "--signal=USR1"]}
    while interrupt:
        cluster.wait_for(lambda: any(map(begun, interrupt)), "the first image", 300)
        for chunk in filter(begun, list(interrupt)):
            cluster.run(*interrupt.pop(chunk), f"{chunks}_{chunk}")
    assert len(list(out.rglob("Info/*.txt"))) < 15
    undisturbed = Fork(world.command(alone, SMALL_FLAGS | SLOW_ENOUGH), tmp_path / "alone.log")

    assert cluster.wait_for_end([chunks, merge, evaluation], 300) == ["COMPLETED"] * 3, logs(out)
    said = logs(out)
    assert "SIGTERM" in said["chunk-1"] and "restart 1" in said["chunk-1"]
    assert "SIGUSR1" in said["chunk-2"] and "restart 1" in said["chunk-2"]
    assert "restart 1" not in said["chunk-0"]
    assert undisturbed.wait(300) == 0, undisturbed.said()
    assert images(out) == images(alone) and len(images(out)) == 15 * (1 + 4 + 2 * 5)
    assert summary(out) == pytest.approx(summary(alone), rel=1e-12)  # means of means
    records = [record for path in out.rglob("chunk-*_stats.pth") for record in read_stats(path)]
    assert sorted(records, key=lambda record: record.id) == read_stats(alone / "Results/exp/stats.pth")
    evaluated = json.loads((out / "Results/exp/evaluation.json").read_text())["measurements"]["exp"]
    assert evaluated["flip rate"]["value"] == summary(out)["cf acc"] and evaluated["MAD"]["n"] == 15


def images(folder: Path) -> dict[str, bytes]:
    """All but the reports on a whole run and what Slurm wrote."""
    return {name: content for name, content in comparable(folder).items() if name.endswith((".jpg", ".txt"))}


def summary(folder: Path) -> dict[str, float]:
    """The figures of a run, those of its tables behind the tables' names."""
    return pd.json_normalize(yaml.safe_load((folder / "Results/exp/summary.yaml").read_text())).iloc[0].to_dict()


def logs(out: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in out.glob("Logs/exp/*.log")}


@pytest.mark.parametrize(
    ("code", "states"),
    [
        (2, ["COMPLETED+FAILED", "CANCELLED", "CANCELLED"]),
        (3, ["COMPLETED"] * 3),
    ],
)
def test_a_chunk_that_fails(cluster: Cluster, tmp_path: Path, code: int, states: list[str]) -> None:
    """An error cancels what depends on the chunks and is not tried again; failed images hold nobody up."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *check_flags.py*) printf "%s\\n" --output-path {tmp_path} --exp-name exp ;;'
        f' *"--chunk 1") exit {code} ;; esac\n'
    )
    python.chmod(0o755)
    jobs = submit(cluster, "2", "--time=5", "--", PYTHON=str(python))
    assert cluster.wait_for_end(jobs, 60) == states
    assert "restart 1" not in (tmp_path / "Logs/exp/chunk-1.log").read_text()
