"""The fault bench: what the main job promises, tried out with real processes, and the figures in one table.

usage: python tests/faults/bench.py [--share 1.0] [--seed 0] [--only NAME …]

Every trial runs main.py in forks of this process, on small drawn images and small networks. --share 0.1 makes a
tenth of the trials of each kind. Exits 0 when every trial survives.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.faults import trials
from tests.faults.trials import Bench, NotSurvivedError
from tests.worlds import make_world, torchvision_weights_of

Figures = list[float]


@dataclass(frozen=True)
class Kind:
    """One row of the table: count trials of `run`, whose figures are put into words."""

    fault: str
    count: int
    run: Callable[[Bench, int], float]
    in_words: Callable[[Figures], str] = lambda figures: ""


def kills(figures: Figures) -> str:
    return f"{sum(0 < figure < 1 for figure in figures)} kills between the first image and the last"


KINDS = {
    "kill": Kind("kill -9 at a random moment, resumed: same bytes", 100, trials.kill_and_resume, kills),
    "write-kill": Kind(
        "kill -9 while writing: no damaged file", 300, trials.kill_while_writing, lambda f: f"{sum(f):.0f} whole files"
    ),
    "disk": Kind("full, read-only or failing disk: nothing lost", 30, trials.failing_disk),
    "writers": Kind("8 processes on 4 chunks: each image once", 50, trials.eight_writers),
    "signal": Kind(
        "SIGTERM, SIGINT, SIGUSR1: ends in time, resumes",
        60,
        trials.signalled,
        lambda f: f"slowest {max(f, default=0):.1f} s",
    ),
    "images": Kind(
        "5 bad among 25 images: recorded, others the same",
        8,
        trials.bad_images,
        lambda f: f"{sum(f):.0f} bad recorded, {20 * len(f)} good unchanged",
    ),
    "nan": Kind(
        "4 images turned into NaN: never flipped",
        25,
        trials.not_a_number,
        lambda f: f"0 of {sum(f):.0f} counted as flipped",
    ),
    "memory": Kind(
        "memory for part of a batch: same results",
        10,
        trials.out_of_memory,
        lambda f: f"at most {max(f, default=0):.4f} grey levels apart",
    ),
}


def measure(bench: Bench, kind: Kind, count: int) -> tuple[str, list[str]]:
    """One row of the table, and why trials did not survive."""
    began, figures, reasons = time.monotonic(), [], []
    for number in range(count):
        try:
            figures.append(kind.run(bench, number))
        except (NotSurvivedError, TimeoutError) as error:
            reasons.append(f"{kind.fault}, trial {number}: {error}")
    seconds = time.monotonic() - began
    row = f"| {kind.fault} | {count} | {len(figures)} | {kind.in_words(figures)} | {seconds:.0f} s |"
    return row, reasons


def main() -> int:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        bench = Bench(world, Path(folder) / "trials", random.Random(args.seed))
        print("| fault | trials | survived | figure | time |\n|---|---|---|---|---|", flush=True)
        with torchvision_weights_of(world):
            for name in args.only:
                row, reasons = measure(bench, KINDS[name], max(1, round(args.share * KINDS[name].count)))
                print("\n".join([row, *reasons]), flush=True)
                failures += reasons
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
