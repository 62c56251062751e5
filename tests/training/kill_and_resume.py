"""Kill a training at random moments, resume it, and compare the last files with those of a training left alone.

usage: python -m tests.training.kill_and_resume [TRIALS [SEED [UPDATES]]]

Each trial starts celeba-train-diffusion.py in an empty folder, sends SIGKILL at a random moment between its first
checkpoint and its expected end, looks for a complete set, and runs the same command again to the end. Exits 0 when
every trial ends in the same bytes and no kill left less than a complete set.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from guided_diffusion.checkpoint_util import CheckpointFolder
from tests.faults.forks import wait_for
from tests.training.small import SMALL_UNET, environment
from tests.worlds import ROOT, as_arguments, unpack_celeba

FLAGS = {**SMALL_UNET, "channel_mult": "1", "dropout": 0.1, "schedule_sampler": "loss-second-moment", "batch_size": 2}
FLAGS |= {"ema_rate": "0.9,0.99", "save_interval": 2, "samples": 0, "num_workers": 0}
NAMES = ["model", "ema_0.9_", "ema_0.99_", "opt"]


def begin(data: Path, out: Path, updates: int) -> subprocess.Popen:
    """A training that has written its first checkpoint."""
    flags = {**FLAGS, "data_dir": data, "output_path": out, "max_steps": updates, "lr_anneal_steps": updates}
    command = [sys.executable, str(ROOT / "celeba-train-diffusion.py"), *as_arguments(flags)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    wait_for(lambda: any(out.glob("opt*.pt")), 120)
    return process


def last_set(out: Path) -> dict[str, bytes]:
    """The newest complete set, as the next start would find it; empty: there is none."""
    folder = CheckpointFolder(out, NAMES)
    folder.recover()
    newest = next(iter(folder.complete_sets().values()), {})
    return {name: Path(path).read_bytes() for name, path in newest.items()}


def trial(data: Path, out: Path, updates: int, delay: float, expected: dict[str, bytes]) -> str:
    """One kill, `delay` seconds after the first checkpoint, and what came of it: 'same' or what is wrong."""
    process = begin(data, out, updates)
    time.sleep(delay)
    process.kill()
    if process.wait() == 0:  # it was quicker than the one left alone
        return trial(data, out.with_name(f"{out.name}-again"), updates, delay / 2, expected)
    if not last_set(out):
        return "no complete set after the kill"
    if begin(data, out, updates).wait() != 0:
        return "the second run failed"
    return "same" if last_set(out) == expected else "other bytes"


def run_trials(trials: int, seed: int, updates: int) -> list[str]:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = unpack_celeba(folder / "data")
        process, began = begin(data, folder / "alone", updates), time.monotonic()
        assert process.wait() == 0
        seconds, expected = time.monotonic() - began, last_set(folder / "alone")
        return [trial(data, folder / f"{n}", updates, rng.uniform(0, seconds), expected) for n in range(trials)]


if __name__ == "__main__":
    outcomes = run_trials(*map(int, [*sys.argv[1:], *("20", "0", "40")[len(sys.argv) - 1 :]]))
    print("\n".join(f"trial {number}: {outcome}" for number, outcome in enumerate(outcomes)))
    same = outcomes.count("same")
    print(f"{same} of {len(outcomes)} killed trainings ended in the same bytes")
    sys.exit(same != len(outcomes))
