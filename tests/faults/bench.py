"""The fault bench: what the main job promises, tried out with real processes, and the figures in one table.

usage: python tests/faults/bench.py [--share 1.0] [--seed 0] [--only NAME …]

Every trial runs main.py in forks of this process, on small drawn images and small networks. --share 0.1 makes a
tenth of the trials of each kind. Exits 0 when every trial survives.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.faults import trials
from tests.faults.trials import Bench, NotSurvivedError
from tests.worlds import make_world, torchvision_weights_of

KINDS = {
    "kill": ("kill -9 at a random moment, resumed: same bytes", 100, trials.kill_and_resume),
    "write-kill": ("kill -9 while writing: no damaged file", 300, trials.kill_while_writing),
    "disk": ("full, read-only or failing disk: nothing lost", 30, trials.failing_disk),
    "writers": ("8 processes on 4 chunks: each image once", 50, trials.eight_writers),
    "one of four": ("kill -9 of one of 4 processes: the others do its part", 20, trials.kill_one_of_four),
    "signal": ("SIGTERM, SIGINT, SIGUSR1: ends in time, resumes", 60, trials.signalled),
    "nan": ("4 images turned into NaN: never flipped", 25, trials.not_a_number),
    "memory": ("memory for part of a batch: same results", 10, trials.out_of_memory),
}
"""A row of the table: the fault, how many trials, and the trial, which gives a figure."""

IN_WORDS = {
    "kill": lambda found: f"{sum(0 < share < 1 for share in found)} kills between the first image and the last",
    "write-kill": lambda found: f"{sum(found):.0f} whole files",
    "one of four": lambda found: f"{sum(0 < share < 1 for share in found)} kills between the first batch and the last",
    "signal": lambda found: f"slowest {max(found, default=0):.1f} s",
    "nan": lambda found: f"0 of {sum(found):.0f} counted as flipped",
    "memory": lambda found: f"at most {max(found, default=0):.4f} grey levels apart",
}
"""What the figures of all trials are put into."""


def measure(bench: Bench, name: str, count: int) -> tuple[str, list[str]]:
    fault, _, trial = KINDS[name]
    began, figures, reasons = time.monotonic(), [], []
    for number in range(count):
        try:
            figures.append(trial(bench, number))
        except (NotSurvivedError, TimeoutError) as error:
            reasons.append(f"{fault}, trial {number}: {error}")
    words = IN_WORDS[name](figures) if name in IN_WORDS else ""
    return f"| {fault} | {count} | {len(figures)} | {words} | {time.monotonic() - began:.0f} s |", reasons


def main() -> int:
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
                row, reasons = measure(bench, name, max(1, round(args.share * KINDS[name][1])))
                print("\n".join([row, *reasons]), flush=True)
                failures += reasons
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
