"""The fault bench: what the main job promises, tried out with real processes, and the figures in one table.

usage: python tests/faults/bench.py [--share 1.0] [--seed 0] [--only NAME …]

Every trial runs main.py in forks of this process, on small drawn images and small networks. --share 0.1 makes a
tenth of the trials of each kind. Exits 0 when every trial survives.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import main as main_script
from tests.faults import trials
from tests.faults.trials import Bench
from tests.worlds import make_world, torchvision_weights_of


@dataclass(frozen=True)
class Kind:
    """One row of the table: count trials of `run`, each of which gives whether it survived and a figure in words."""

    fault: str
    count: int
    run: Callable[[Bench, int], trials.Outcome]
    summarise: Callable[[list[float]], str] = field(default=lambda figures: "")


KINDS = {
    "kill": Kind("kill -9 at a random moment, resumed: same bytes", 100, trials.kill_and_resume, trials.mean_share),
    "write-kill": Kind("kill -9 while writing: no damaged file", 300, trials.kill_while_writing, trials.total_files),
    "disk": Kind("full, read-only or failing disk: nothing lost", 30, trials.failing_disk, trials.no_figure),
    "writers": Kind("8 processes on 4 chunks: each image once", 50, trials.eight_writers, trials.no_figure),
    "signal": Kind("SIGTERM, SIGINT, SIGUSR1: ends in time, resumes", 60, trials.signalled, trials.slowest),
    "images": Kind("5 bad among 25 images: recorded, others the same", 8, trials.bad_images, trials.total_images),
    "nan": Kind("4 images turned into NaN: never flipped", 25, trials.not_a_number, trials.total_nan),
    "memory": Kind("memory for part of a batch: same results", 10, trials.out_of_memory, trials.worst_level),
}


def measure(bench: Bench, kind: Kind, count: int, show: Callable[[str], None] = lambda line: None) -> tuple[str, bool]:
    """One row of the table, and whether all trials survived."""
    began, survived, figures = time.monotonic(), 0, []
    for number in range(count):
        outcome = kind.run(bench, number)
        survived += outcome.survived
        figures.append(outcome.figure)
        if not outcome.survived:
            show(f"{kind.fault}, trial {number}: {outcome.reason}")
    seconds = time.monotonic() - began
    row = f"| {kind.fault} | {count} | {survived} | {kind.summarise(figures)} | {seconds:.0f} s |"
    return row, survived == count


def run_bench(share: float, seed: int, names: list[str], show: Callable[[str], None]) -> bool:
    """Show the table, row by row; whether every trial of it survived."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        with torchvision_weights_of(world), networks_loaded_once():
            bench = Bench(world, Path(folder) / "trials", random.Random(seed))
            show("| fault | trials | survived | figure | time |")
            show("|---|---|---|---|---|")
            good = True
            for name in names:
                kind = KINDS[name]
                row, all_survived = measure(bench, kind, max(1, round(share * kind.count)), show)
                show(row)
                good = good and all_survived
            return good


class networks_loaded_once:  # noqa: N801  reads like a function
    """Within it main.py's loaders keep what they have loaded; only forks may change it."""

    names = ("load_unet", "load_classifier")

    def __enter__(self) -> None:
        self.before = {name: getattr(main_script, name) for name in self.names}
        for name, load in self.before.items():
            setattr(main_script, name, _kept(load))

    def __exit__(self, *_: object) -> None:
        for name, load in self.before.items():
            setattr(main_script, name, load)


def _kept(load: Callable) -> Callable:
    kept: dict[str, torch.nn.Module] = {}

    @functools.wraps(load)
    def loading(path: str, *rest):
        if str(path) not in kept:
            kept[str(path)] = load(path, *rest)
        return kept[str(path)]

    return loading


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return int(not run_bench(args.share, args.seed, args.only, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    sys.exit(main())
