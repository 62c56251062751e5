"""How well do processes share a run? Two of them measured here, hundreds simulated on the real queue; and the start.

usage: python bench/scale.py [--part measured simulated start]
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from dime.core.explain import Explanations
from dime.core.job.queue import BUSY, POLL, Queue, Start
from dime.core.job.writer import write_explanations
from dime.core.results import ResultTree

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 20_000
SECONDS = 2.0
"""What an image costs at one scale: about that of the paper's network with short chains on one GPU."""
SCALES = {1: 0.75, 2: 0.17, 3: 0.08}
"""How many scales an image takes -> the share of images."""
DEMO = "--preset demo,fast --query_label Smiling --batch_size 2 --target_label -1"
WEIGHTS = ("ddpm", "classifier", "features")


def run(command: list[str], cores: set[int] | None = None) -> float:
    """Processor's seconds of a command, on these cores, with one thread in each process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


FIRST_IMAGE = """
import os, sys
from dime.core.job.recovery import RecoveringExplainer
RecoveringExplainer.__call__ = lambda *given: os._exit(0)
import main
sys.argv = ["main.py", *sys.argv[1:]]
main.main()
"""
LOADING = "import torch, safetensors.torch\nfor path in {}: safetensors.torch.load_file(path)"


def measured(folder: Path, images: int, repeats: int) -> None:
    """One process on one core and two on two, in turns: seconds and processor's seconds without the start, the best."""
    run(["make-drawn-faces.py", "--output_path", f"{folder}/data", "--num_train", "8", "--num_val", str(images)])
    flags = f"{DEMO} --num_batches {images // 2} --data_dir {folder}/data --exp_name e".split()
    begun = run(["-c", FIRST_IMAGE, *flags, "--output_path", f"{folder}/begun", "--gpu", "cpu"])
    cores, best = sorted(os.sched_getaffinity(0)), {count: [float("inf")] * 2 for count in (1, 2)}
    for repeat in range(repeats):
        for count in best:
            out = folder / f"out-{repeat}-{count}"
            command = ["main.py", *flags, "--output_path", str(out), "--gpu", ",".join(["cpu"] * count)]
            spent = run(command, set(cores[:count])) - begun * (count if count == 1 else count + 1)
            times = [(out / f"Results/e/{name}").stat().st_mtime for name in ("config.yaml", "summary.yaml")]
            best[count] = [min(pair) for pair in zip(best[count], (times[1] - times[0], spent), strict=True)]
    print("| processes | images | seconds | of one, times the processes | processor's seconds | of one |")
    print("|---|---|---|---|---|---|")
    for count, (seconds, spent) in best.items():
        share, cost = best[1][0] / seconds / count, best[1][1] / spent
        print(
            f"| {count} | {images} | {seconds:.1f} | {100 * share:.1f} % | {spent:.1f} | {100 * cost:.1f} % |",
            flush=True,
        )


@dataclass
class Member:
    """A simulated process: its view of the queue, and how many times as long as others it takes."""

    queue: Queue
    slowness: float
    item: int | None = None
    ahead: int | None = None
    waits: bool = False


class Simulation:
    """The real queue and, where it `writes`, the real files under a virtual clock: only the sampler is replaced.

    A look at the queue takes the processor's seconds that it really took, and others wait for it.
    """

    def __init__(self, folder: Path, processes: int, batch: int, writes: bool) -> None:
        self.tree = ResultTree(folder, "exp")
        self.tree.create()
        chosen = random.Random(0).choices(list(SCALES), list(SCALES.values()), k=IMAGES)
        self.costs, self.batch, self.processes = [SECONDS * scales for scales in chosen], batch, processes
        self.writes = writes
        self.slowness = [2.0 if rank == 1 else 1.0 for rank in range(processes)]
        self.ideal = sum(self.costs) / sum(1 / slowness for slowness in self.slowness)
        self.free_at = 0.0

    def static(self) -> float:
        """Seconds until the last process ends where process r takes images r, r + R, ..."""
        return max(slowness * sum(self.costs[rank :: self.processes]) for rank, slowness in enumerate(self.slowness))

    def shared(self) -> float:
        """Seconds until the last process ends where all of them share the queue."""
        todo = [list(range(first, min(first + self.batch, IMAGES))) for first in range(0, IMAGES, self.batch)]
        folder = self.tree.results / "running"
        with contextlib.ExitStack() as until_the_end:
            members = []
            for rank, slowness in enumerate(self.slowness):
                members.append(Member(Queue(folder, "simulation", f"process {rank}"), slowness))
                until_the_end.enter_context(members[-1].queue.joined(lambda _: Start(todo, {}, 0, 0)))
            events = [(0.0, rank) for rank in range(self.processes)]
            last = 0.0
            while events:
                now, rank = heapq.heappop(events)
                if (later := self.step(members[rank], now)) is not None:
                    heapq.heappush(events, (later, rank))
                    last = max(last, later)
        return last

    def step(self, member: Member, now: float) -> float | None:
        """What a process does when it has finished a batch, or waited: when it is next heard of; None: never."""
        began = time.process_time()
        if member.item is not None:
            ids = member.queue.todo[member.item]
            if self.writes:  # by a thread, beside the next batch
                list(write_explanations(explanations(ids), self.tree))
                began = time.process_time()
            member.queue.done(member.item, {"records": ids}, len(ids), len(ids))
        if not member.waits:
            member.item = member.queue.take() if member.ahead is None else member.ahead
            member.ahead = None if member.item is None else member.queue.take(ahead=True)
            member.waits = member.item is None
        if member.waits:
            member.item = member.queue.left_behind()
        self.free_at = max(now, self.free_at) + time.process_time() - began
        if member.item == BUSY:
            member.item = None
            return self.free_at + POLL
        if member.item is None:
            if member.queue.ends_the_run:
                member.queue.close()
            return None
        return self.free_at + member.slowness * sum(self.costs[id] for id in member.queue.todo[member.item])


def explanations(ids: list[int]) -> Explanations:
    """What is written of a batch, on small images."""
    x, whole = torch.zeros(len(ids), 3, 8, 8), torch.zeros(len(ids), dtype=torch.long)
    share, true = torch.zeros(len(ids)), torch.ones(len(ids), dtype=torch.bool)
    return Explanations(ids, x, whole, whole, whole + 1, share, x, x, whole + 1, share, share, true)


COUNTED = {"open": "opened", "os.listdir": "listed", "os.scandir": "listed", "fcntl.flock": "locked"}


def simulated(folder: Path, batch: int) -> None:
    """The table of 8, 64 and 256 processes; the images' own files are written once, in the first row."""
    counts: Counter[str] = Counter()

    def count(event: str, arguments: tuple) -> None:
        if event in COUNTED and (event == "fcntl.flock" or str(folder) in str(arguments[0])):
            counts[COUNTED[event]] += 1

    sys.addaudithook(count)
    os.fsync = lambda descriptor: None  # the disk here is not the shared folder there
    columns = ["processes", "ideal", "shared: last ends", "of ideal", "static: last ends", "of ideal"]
    columns += ["files opened", "listed", "locked, per image"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for processes in (8, 64, 256):
        simulation = Simulation(folder / str(processes), processes, batch, writes=processes == 8)
        counts.clear()
        shared, static, ideal = simulation.shared(), simulation.static(), simulation.ideal
        load = " | ".join(f"{counts[kind] / IMAGES:.2f}" for kind in ("opened", "listed", "locked"))
        print(
            f"| {processes} | {ideal:.0f} s | {shared:.0f} s | {100 * ideal / shared:.1f} % | {static:.0f} s | "
            f"{100 * ideal / static:.1f} % | {load} |",
            flush=True,
        )


def start(folder: Path, repeats: int) -> None:
    """From the command to the first image, against importing torch and reading the weights; processor's seconds."""
    run(["make-drawn-faces.py", "--output_path", f"{folder}/faces", "--num_train", "8", "--num_val", "8"])
    flags = f"{DEMO} --data_dir {folder}/faces --output_path {folder}/start --gpu cpu".split()
    commands = {
        "import torch, load the weights": [
            "-c",
            LOADING.format([f"models/demo/{name}.safetensors" for name in WEIGHTS]),
        ],
        "main.py, to its first image": ["-c", FIRST_IMAGE, *flags, "--overwrite", "True"],
    }
    best = {name: float("inf") for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            best[name] = min(best[name], run(command))
    print("| start | processor's seconds | times |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {seconds:.2f} | {seconds / min(best.values()):.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=("measured", "simulated", "start"), default=["simulated", "start"])
    parser.add_argument("--images", type=int, default=32, help="of the measured part")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="images of a batch in the simulation")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "measured" in args.part:
            measured(folder, args.images, args.repeats)
        if "start" in args.part:
            start(folder, args.repeats)
        if "simulated" in args.part:
            simulated(folder, args.batch)


if __name__ == "__main__":
    main()
