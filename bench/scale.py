"""How well do processes share a run? Two of them measured here, hundreds simulated on the real queue; and the start.

usage: python bench/scale.py [--part measured simulated start]
"""

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
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dime.core.cli import Parser, integer
from dime.core.job.queue import BUSY, POLL, Queue, Start
from dime.core.table import markdown_table

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
        capture_output=True,
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


def measured(folder: Path, images: int, repeats: int) -> str:
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
    rows = []
    for count, (seconds, spent) in best.items():
        shares = [f"{100 * share:.1f} %" for share in (best[1][0] / seconds / count, best[1][1] / spent)]
        rows.append([count, images, f"{seconds:.1f}", shares[0], f"{spent:.1f}", shares[1]])
    head = "processes, images, seconds, of one times the processes, processor's seconds, of one"
    return markdown_table(head.split(", "), rows)


def process(queue: Queue, costs: Sequence[float], slowness: float) -> Iterator[float]:
    """A simulated process of a run: the seconds until it looks at the queue again."""
    item = queue.take()
    while item is not None:
        if item == BUSY:
            yield POLL
            item = queue.take()
            continue
        ids, ahead = queue.todo[item], queue.take(ahead=True)
        yield slowness * sum(costs[id] for id in ids)
        queue.done(item, {"records": ids}, len(ids), len(ids))
        item = queue.take() if ahead is None else ahead
    if queue.ends_the_run:
        queue.close()


def shared(folder: Path, costs: Sequence[float], batch: int, slowness: Sequence[float]) -> float:
    """Seconds until the last process ends where all of them share the real queue, under a virtual clock.

    A look at the queue takes the processor's seconds that it really took, and others wait for it.
    """
    todo = [list(range(first, min(first + batch, len(costs)))) for first in range(0, len(costs), batch)]
    with contextlib.ExitStack() as until_the_end:
        members = []
        for rank, slow in enumerate(slowness):
            queue = Queue(folder, "simulation", f"process {rank}")
            until_the_end.enter_context(queue.joined(lambda _: Start(todo, {}, 0, 0)))
            members.append(process(queue, costs, slow))
        events, last, free_at = [(0.0, rank) for rank in range(len(members))], 0.0, 0.0
        while events:
            now, rank = heapq.heappop(events)
            began = time.process_time()
            seconds = next(members[rank], None)
            free_at = max(now, free_at) + time.process_time() - began
            if seconds is not None:
                last = max(last, free_at + seconds)
                heapq.heappush(events, (free_at + seconds, rank))
    return last


COUNTED = {"open": "opened", "os.listdir": "listed", "os.scandir": "listed", "fcntl.flock": "locked"}


def simulated(folder: Path, batch: int) -> str:
    """The table of 8, 64 and 256 processes, of which one is half as fast."""
    counts: Counter[str] = Counter()

    def count(event: str, arguments: tuple) -> None:
        if event in COUNTED and (event == "fcntl.flock" or str(folder) in str(arguments[0])):
            counts[COUNTED[event]] += 1

    sys.addaudithook(count)
    os.fsync = lambda descriptor: None  # the disk here is not the shared folder there
    chosen, rows = random.Random(0).choices(list(SCALES), list(SCALES.values()), k=IMAGES), []
    costs = [SECONDS * scales for scales in chosen]
    for processes in (8, 64, 256):
        slowness = [2.0 if rank == 1 else 1.0 for rank in range(processes)]
        ideal = sum(costs) / sum(1 / each for each in slowness)
        static = max(each * sum(costs[rank::processes]) for rank, each in enumerate(slowness))
        counts.clear()
        ends = shared(folder / f"{processes}/running", costs, batch, slowness), static
        figures = [text for end in ends for text in (f"{end:.0f} s", f"{100 * ideal / end:.1f} %")]
        load = [f"{counts[kind] / IMAGES:.2f}" for kind in ("opened", "listed", "locked")]
        rows.append([processes, f"{ideal:.0f} s", *figures, *load])
    columns = ["processes", "ideal", "shared: last ends", "of ideal", "static: last ends", "of ideal"]
    return markdown_table([*columns, "files opened", "listed", "locked, per image"], rows)


def start(folder: Path, repeats: int) -> str:
    """From the command to the first image, against importing torch and reading the weights; processor's seconds."""
    run(["make-drawn-faces.py", "--output_path", f"{folder}/faces", "--num_train", "8", "--num_val", "8"])
    flags = f"{DEMO} --data_dir {folder}/faces --output_path {folder}/start --gpu cpu --overwrite True".split()
    loading = LOADING.format([f"models/demo/{name}.safetensors" for name in WEIGHTS])
    commands = {
        "import torch, load the weights": ["-c", loading],
        "main.py, to its first image": ["-c", FIRST_IMAGE, *flags],
    }
    spent = [{name: run(command) for name, command in commands.items()} for _ in range(repeats)]
    best = {name: min(each[name] for each in spent) for name in commands}
    rows = [[name, f"{seconds:.2f}", f"{seconds / min(best.values()):.2f}"] for name, seconds in best.items()]
    return markdown_table(["start", "processor's seconds", "times"], rows)


def main() -> None:
    """Print the tables."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=("measured", "simulated", "start"), default=["simulated", "start"])
    parser.add_argument("--images", type=integer(1), default=32, help="of the measured part")
    parser.add_argument("--repeats", type=integer(1), default=3, help="the best one counts")
    parser.add_argument("--batch", type=integer(1), default=4, help="images of a batch, simulated")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "measured": lambda: measured(Path(folder), args.images, args.repeats),
            "simulated": lambda: simulated(Path(folder), args.batch),
            "start": lambda: start(Path(folder), args.repeats),
        }
        for part in args.part:
            print(parts[part](), flush=True)


if __name__ == "__main__":
    main()
