"""Single trials of the fault bench: arrange a fault, let it happen, look at what is left."""

import errno
import io
import itertools
import os
import random
import resource
import shutil
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn
from torch.distributed import TCPStore
from torch.nn.modules.module import register_module_forward_hook

from dime.core.files import write_atomically
from dime.core.job.queue import Queue
from guided_diffusion.unet import UNetModel
from tests.faults import forks
from tests.faults.forks import EXIT_OK, Fork, wait_for
from tests.worlds import SMALL_FLAGS, World, comparable, images, summary_of


class NotSurvivedError(Exception):
    """What was promised and did not happen."""


def require(kept: bool, reason: object) -> None:
    if not kept:
        raise NotSurvivedError(str(reason))


@dataclass
class Bench:
    """Where trials find their world, their randomness, and the undisturbed runs that they are compared with."""

    world: World
    folder: Path
    rng: random.Random
    batches: int = 4

    def __post_init__(self) -> None:
        self._undisturbed: dict[str, tuple[Path, float]] = {}
        self.folder.mkdir(exist_ok=True)

    @property
    def rows(self) -> list[range]:
        """The ids in each batch: four of the 15 images, the last one three."""
        return [range(first, min(first + 4, 15)) for first in range(0, 4 * self.batches, 4)]

    def place(self) -> Path:
        place = self.folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def start(self, place: Path, prepare: Callable[[], None] = lambda: None, log: str = "log", **flags: Any) -> Fork:
        flags = SMALL_FLAGS | {"num_batches": self.batches} | flags
        return Fork(self.world.command(place / "out", flags), place / log, prepare)

    def run(self, place: Path, expected: int, prepare: Callable[[], None] = lambda: None, **flags: Any) -> Path:
        """The same to its end, which must be this exit code; its results."""
        fork = self.start(place, prepare, **flags)
        code = fork.wait()
        require(code == expected, f"exit code {code} instead of {expected}: {fork.said()}")
        return place / "out"

    def undisturbed(self, **flags: Any) -> tuple[Path, float]:
        """The results of a run left alone, and how many seconds it took."""
        key = repr(sorted(flags.items()))
        if key not in self._undisturbed:
            place = self.folder / f"undisturbed-{len(self._undisturbed)}"
            place.mkdir()
            began = time.monotonic()
            out = self.run(place, EXIT_OK, **flags)
            self._undisturbed[key] = out, time.monotonic() - began
        return self._undisturbed[key]

    def finish(self, place: Path, **flags: Any) -> None:
        """The same command again must give every byte of the undisturbed run."""
        out = self.run(place, EXIT_OK, **flags)
        require_same(comparable(out), comparable(self.undisturbed(**flags)[0]))


def require_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    lacking, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = [name for name in expected.keys() & found.keys() if found[name] != expected[name]]
    for names, what in ((lacking, "missing"), (more, "too many"), (other, "different")):
        require(not names, f"{len(names)} {what} ({min(names, default='')})")


def kill_and_resume(bench: Bench, number: int) -> float:
    """The share of the images that was done when the kill came. Every third trial draws a stream of noise."""
    flags = {"noise": "stream"} if number % 3 == 2 else {}
    flags |= {"classifier_scales": "8,30", "query_label": 1, "save_z_t": True}
    _, seconds = bench.undisturbed(**flags)
    place = bench.place()
    fork = bench.start(place, **flags)
    time.sleep(bench.rng.uniform(0, seconds))
    fork.kill()
    fork.wait()
    done = len(list(place.glob("out/Results/exp/*/*/Info/*.txt"))) / sum(map(len, bench.rows))
    bench.finish(place, **flags)
    return done


def kill_while_writing(bench: Bench, number: int) -> float:
    """How many whole files a process left that does nothing but write them, all of one known content each."""
    place = bench.place()
    contents = [bytes([seed]) * 10 ** (3 + seed % 3) for seed in range(50)]
    pid = os.fork()
    if pid == 0:
        for count in itertools.count():
            write_atomically(place / f"{count % 50}.bin", contents[count % 50])
    wait_for(lambda: any(place.glob("*.bin")))
    time.sleep(bench.rng.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    whole = [path for path in place.glob("*.bin") if path.read_bytes() == contents[int(path.stem)]]
    damaged = {path.name for path in place.glob("*.bin")} - {path.name for path in whole}
    require(not damaged, f"damaged: {damaged}")
    return len(whole)


def failing_disk(bench: Bench, number: int) -> float:
    """The kernel's own limit on a file's size, or any of three errors from the first, a later or the last write on."""
    place = bench.place()
    moment = bench.rng.randrange(len(comparable(bench.undisturbed()[0])))
    kind = ("EFBIG", "ENOSPC", "EROFS", "EIO")[number % 4]
    limit = bench.rng.choice([900, 3300, 4000])  # bytes; the log needs a few hundred

    def prepare() -> None:
        if kind == "EFBIG":
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return
        calls, fsync = itertools.count(), os.fsync

        def failing(descriptor: int) -> None:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and next(calls) >= moment:
                raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)))
            fsync(descriptor)

        os.fsync = failing

    fork = bench.start(place, prepare)
    code = fork.wait()
    ends = (forks.EXIT_ERROR, EXIT_OK) if kind == "EFBIG" else (forks.EXIT_ERROR,)  # no file may be that large
    said = fork.said()
    require(code in ends and "Traceback" not in said, f"{kind}: exit code {code}: {said}")
    require(code == EXIT_OK or "could not be written" in said.splitlines()[-1], f"{kind}: {said}")
    require(kind == "EFBIG" or os.strerror(getattr(errno, kind)) in said, f"{kind}: {said}")
    require(not list(place.glob("out/**/.*.tmp")), f"{kind}: temporary files stayed")
    bench.finish(place)
    return 0


def eight_writers(bench: Bench, number: int) -> float:
    """Four chunks, each started twice at the same time; then the merge."""
    flags = {"num_chunks": 4, "pad_batches": True}
    expected, _ = bench.undisturbed(pad_batches=True)
    place = bench.place()
    writers = [bench.start(place, log=f"log{n}", **flags, chunk=n % 4) for n in range(8)]
    codes = [writer.wait() for writer in writers]
    for chunk in range(4):
        pair = {codes[chunk], codes[chunk + 4]}
        said = writers[chunk].said() + writers[chunk + 4].said()
        require(EXIT_OK in pair and pair <= {EXIT_OK, forks.EXIT_ERROR}, f"chunk {chunk} ended with {pair}: {said}")
    out = bench.run(place, EXIT_OK, merge_and_eval=True, **flags)
    require(summary_of(out)["n"] == sum(map(len, bench.rows)), "the merged summary does not count all images")
    require_same(images(out), images(expected))
    return 0


def kill_one_of_four(bench: Bench, number: int) -> float:
    """The share of the batches that was given out when one of four processes was killed; the others do all of them."""
    flags = {"batch_size": 1, "num_batches": 4 * bench.batches - 1, "classifier_scales": "8,30", "query_label": 1}
    expected, seconds = bench.undisturbed(**flags)
    place, store = bench.place(), TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}

    def start(rank: int) -> Fork:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", **meeting}
        return bench.start(place, lambda: os.environ.update(own), log=f"log{rank}", **flags)

    forks, victim = [start(rank) for rank in range(4)], bench.rng.randrange(4)
    queue = Queue(place / "out/Results/exp/running")
    wait_for(lambda: (state := queue.peek()) and state.given)  # they have met
    time.sleep(bench.rng.uniform(0, seconds / 3))
    state, batches = queue.peek(), 4 * bench.batches - 1
    given = state.given if state else batches
    forks[victim].kill()
    codes = [fork.wait() for fork in forks]
    said = "".join(fork.said() for fork in forks)
    others = [code for rank, code in enumerate(codes) if rank != victim]
    require(others == [EXIT_OK] * 3 and "Traceback" not in said, f"{codes}: {said}")
    require_same(comparable(place / "out"), comparable(expected))
    told = codes[victim] == EXIT_OK or f"rank {victim}) has ended" in said or not given
    require(told, f"its end was not said: {said}")
    return given / batches


def signalled(bench: Bench, number: int) -> float:
    """Seconds from the signal, after the run has begun to write, to the end."""
    name = ("SIGTERM", "SIGINT", "SIGUSR1")[number % 3]
    _, seconds = bench.undisturbed()
    place = bench.place()
    fork = bench.start(place)
    wait_for(lambda: any(place.glob("out/Results/exp/config.yaml")))
    time.sleep(bench.rng.uniform(0, seconds / 2))
    asked = time.monotonic()
    fork.kill(getattr(signal, name))
    code, took = fork.wait(), time.monotonic() - asked
    ends = (forks.EXIT_CONTINUE, EXIT_OK)  # it may be about to end
    require(code in ends, f"{name}: exit code {code}: {fork.said()}")
    said = f"{name}: nothing" if code == EXIT_OK else fork.said().splitlines()[-1]
    require(code == EXIT_OK or (name in said and "run the same command again" in said), said)
    require(not list(place.glob("out/**/.*.tmp")), f"{name}: temporary files stayed")
    require(took < 10, f"{name}: took {took:.1f} s")
    bench.finish(place)
    return took


def not_a_number(bench: Bench, number: int) -> float:
    """How many images failed: in each batch one's network output, or its last logit, turned NaN."""
    expected, _ = bench.undisturbed()
    place = bench.place()
    victims, step = [bench.rng.choice(ids) for ids in bench.rows], bench.rng.randrange(4)
    evaluations, decided = [], []

    def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor | None:
        spoils = False
        if isinstance(module, UNetModel):  # four evaluations a batch
            spoils = number % 2 == 0 and len(evaluations) % 4 == step
            batch = len(evaluations) // 4
            evaluations.append(module)
        elif isinstance(module, nn.Linear) and module.out_features == 40:  # the classifier: its final decision
            batch = len(decided)
            spoils = number % 2 == 1 and len(evaluations) == 4 * (batch + 1) and not torch.is_grad_enabled()
            decided.extend([module] * spoils)
        return output.index_fill(0, torch.tensor([victims[batch] % 4]), float("nan")) if spoils else None

    out = bench.run(place, forks.EXIT_SOME_FAILED, lambda: register_module_forward_hook(hook))
    recorded = yaml.safe_load((out / "Results/exp/failed.yaml").read_text())
    require(sorted(recorded) == victims, f"recorded {sorted(recorded)} instead of {victims}")
    require_same(images(out), forks.without(images(expected), set(victims)))
    return len(victims)


def out_of_memory(bench: Bench, number: int) -> float:
    """The largest mean difference in grey levels, where memory suffices for one, two or three of four images."""
    flags = {"image_format": "png"}
    expected = images(bench.undisturbed(**flags)[0])
    place, room = bench.place(), 1 + number % 3

    def change(x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if len(x) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return output

    out = bench.run(place, EXIT_OK, lambda: forks.around_unet(change), **flags)
    found = images(out)
    require(found.keys() == expected.keys(), "other files")
    pictures = [name for name in found if name.endswith(".png") and "/SM/" not in name]

    def pixels(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)), float)

    worst = max(np.abs(pixels(found[name]) - pixels(expected[name])).mean() for name in pictures)
    require(worst <= 0.01, f"images differ by {worst} grey levels")  # other kernels: single pixels round otherwise
    said = summary_of(out).get("batch size")
    require(said == max(1, min(2, room)), f"the summary says batch size {said}")
    return worst
