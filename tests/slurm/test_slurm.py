"""The scripts on a real Slurm: interrupted jobs that share a run, and its evaluation, give what one process gives."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forks import Fork
from tests.slurm.cluster import Cluster, missing_programs
from tests.test_main_resume import comparable
from tests.worlds import SMALL_FLAGS, World, as_arguments

SUBMIT = Path(__file__).parents[2] / "slurm/submit.sh"
SLOW_ENOUGH = {"start_step": 5, "pad_batches": True, "batch_size": 1, "save_z_t": True, "save_x_t": True}
"""Fifteen batches, so that jobs can be interrupted between two."""

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"needs Slurm and munge; missing here: {', '.join(missing_programs())}"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


def submit(cluster: Cluster, *arguments: str | Path, **environment: str) -> list[str]:
    """The ids of the array and the evaluation."""
    said = cluster.run(SUBMIT, *arguments, **environment)
    return re.search(r"^Stop: +scancel (\d+) (\d+)$", said, re.MULTILINE).groups()


def test_jobs_that_were_requeued_give_the_tree_of_one_process(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """One is requeued by Slurm, one by itself on the signal before the time limit; each job has two tasks of srun."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    command = world.command(out, SMALL_FLAGS | SLOW_ENOUGH)
    networks = as_arguments({"inception-weights": tmp_path / "none", "batch-size": 5})
    machine = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    srun = "srun --ntasks=2 --overlap"
    jobs, evaluation = submit(cluster, "3", "--ntasks=2", "--", *command, "--", *networks, **machine, SRUN=srun)

    def begun(job: int) -> bool:
        """It is a member of the queue."""
        ids = "".join(path.read_text() for path in out.glob("Results/exp/running/state.*"))
        return f"array task {job}" in ids

    interrupt = {1: ["scontrol", "requeue"], 2: ["scancel", "--batch", "--signal=USR1"]}
    while interrupt:
        cluster.wait_for(lambda: any(map(begun, interrupt)), "the first batch", 300)
        for job in filter(begun, list(interrupt)):
            cluster.run(*interrupt.pop(job), f"{jobs}_{job}")
    assert len(list(out.rglob("Info/*.txt"))) < 15
    undisturbed = Fork(world.command(alone, SMALL_FLAGS | SLOW_ENOUGH), tmp_path / "alone.log")

    assert cluster.wait_for_end([jobs, evaluation], 300) == ["COMPLETED"] * 2, logs(out)
    said = logs(out)
    assert "SIGTERM" in said["explain-1"] and "restart 1" in said["explain-1"]
    assert "SIGUSR1" in said["explain-2"] and "restart 1" in said["explain-2"]
    assert "restart 1" not in said["explain-0"]
    assert undisturbed.wait(300) == 0, undisturbed.said()
    found, expected = comparable(out), comparable(alone)
    assert {name: content for name, content in found.items() if name in expected} == expected
    more = [name for name in found if name not in expected]
    assert all(re.search(r"Logs/|evaluation\.|features-", name) for name in more), more
    evaluated = json.loads((out / "Results/exp/evaluation.json").read_text())["measurements"]["exp"]
    assert evaluated["MAD"]["n"] == 15


def logs(out: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in out.glob("Logs/exp/*.log")}


@pytest.mark.parametrize(
    ("code", "states"),
    [
        (2, ["COMPLETED+FAILED", "CANCELLED"]),
        (3, ["COMPLETED"] * 2),
    ],
)
def test_a_job_that_fails(cluster: Cluster, tmp_path: Path, code: int, states: list[str]) -> None:
    """An error cancels what depends on the jobs and is not tried again; failed images hold nobody up."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *check_flags.py*) printf "%s\\n" --output-path {tmp_path} --exp-name exp ;;'
        f" *main.py*) [ $SLURM_ARRAY_TASK_ID != 1 ] || exit {code} ;; esac\n"
    )
    python.chmod(0o755)
    jobs = submit(cluster, "2", "--time=5", "--", PYTHON=str(python))
    assert cluster.wait_for_end(jobs, 60) == states
    assert "restart 1" not in (tmp_path / "Logs/exp/explain-1.log").read_text()
