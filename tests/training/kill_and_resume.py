"""Kill a training at random moments, resume it, and compare the last files with those of a training left alone.

usage: python -m tests.training.kill_and_resume [--trials 20] [--seed 0] [--updates 40]

Each trial starts celeba-train-diffusion.py in an empty folder, sends SIGKILL at a random moment between its first
checkpoint and its expected end, looks for a complete set, and runs the same command again to the end. Exits 0 when
every trial ends in the same bytes and no kill left less than a complete set.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from guided_diffusion.checkpoint_set import CheckpointFolder
from tests.helpers import GOLDEN
from tests.training.small import ROOT, environment

FLAGS = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1",
    "attention_resolutions": "8",
    "diffusion_steps": 100,
    "dropout": 0.1,
    "schedule_sampler": "loss-second-moment",
    "batch_size": 2,
    "ema_rate": "0.9,0.99",
    "save_interval": 2,
    "samples": 0,
    "num_workers": 0,
}
NAMES = ["model", "ema_0.9_", "ema_0.99_", "opt"]
START_LIMIT = 120.0


def training(data: Path, out: Path, updates: int) -> subprocess.Popen:
    """Start the script."""
    flags = {**FLAGS, "data_dir": data, "output_path": out, "max_steps": updates, "lr_anneal_steps": updates}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "celeba-train-diffusion.py"), *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
    )


def last_set(out: Path) -> dict[str, bytes] | None:
    """The newest complete set, as the next start would find it."""
    folder = CheckpointFolder(out, NAMES)
    folder.recover()
    sets = folder.complete_sets()
    return {name: Path(sets[0][name]).read_bytes() for name in NAMES} if sets else None


def wait_for_first_set(out: Path) -> None:
    """Return when the first file of a set has got its name."""
    deadline = time.monotonic() + START_LIMIT
    while not (out / "opt000000.pt").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{out}: no checkpoint within {START_LIMIT} seconds")
        time.sleep(0.005)


def undisturbed(data: Path, out: Path, updates: int) -> tuple[dict[str, bytes], float]:
    """A training left alone: its last set, and the seconds from its first checkpoint to its end."""
    process = training(data, out, updates)
    wait_for_first_set(out)
    began = time.monotonic()
    assert process.wait() == 0
    return last_set(out), time.monotonic() - began


def trial(data: Path, out: Path, updates: int, delay: float, expected: dict[str, bytes]) -> str:
    """One kill, `delay` seconds after the first checkpoint, and what came of it: 'same' or what is wrong."""
    process = training(data, out, updates)
    wait_for_first_set(out)
    time.sleep(delay)
    process.kill()
    if process.wait() == 0:  # it was quicker than the one left alone
        return trial(data, out.with_name(f"{out.name}-again"), updates, delay / 2, expected)
    if last_set(out) is None:
        return "no complete set after the kill"
    if training(data, out, updates).wait() != 0:
        return "the second run failed"
    got = last_set(out)
    different = [name for name in NAMES if got[name] != expected[name]]
    return f"other bytes in {', '.join(different)}" if different else "same"


def run_trials(trials: int, seed: int, updates: int) -> list[str]:
    """The outcome of every trial."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with tarfile.open(GOLDEN / "celeba_tiny.tar.gz") as archive:
            archive.extractall(data, filter="data")
        expected, seconds = undisturbed(data, Path(folder) / "alone", updates)
        return [
            trial(data, Path(folder) / f"{number}", updates, rng.uniform(0, seconds), expected)
            for number in range(trials)
        ]


def main() -> int:
    """Print every outcome and the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=40)
    args = parser.parse_args()
    outcomes = run_trials(args.trials, args.seed, args.updates)
    for number, outcome in enumerate(outcomes):
        print(f"trial {number}: {outcome}")
    same = sum(outcome == "same" for outcome in outcomes)
    print(f"{same} of {len(outcomes)} killed trainings ended in the same bytes")
    return int(same != len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
