"""Single trials of the fault bench: arrange a fault, let it happen, look at what is left."""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import main as main_script
from dime.core import files as core_files
from dime.core.images import to_uint8
from dime.core.job.preemption import EXIT_CONTINUE
from dime.core.job.writer import write_image
from dime.core.summary import ImageRecord
from tests.faults.forks import Fork, wait_for
from tests.faults.images import BAD
from tests.helpers import rnd
from tests.worlds import SMALL_FLAGS, World, tree_of

EXIT_OK, EXIT_ERROR, EXIT_SOME_FAILED = 0, 2, main_script.EXIT_SOME_FAILED


@dataclass(frozen=True)
class Outcome:
    """What a trial showed. reason: why it did not survive. figure: what the table sums up."""

    reason: str = ""
    figure: float = 0.0

    @property
    def survived(self) -> bool:
        return not self.reason


class Bench:
    """Where trials find their world, their randomness, and the undisturbed runs that they are compared with."""

    def __init__(self, world: World, folder: Path, rng: random.Random) -> None:
        self.world, self.folder, self.rng = world, folder, rng
        self._numbers = itertools.count()
        self._undisturbed: dict[str, tuple[dict[str, bytes], float]] = {}
        folder.mkdir(exist_ok=True)

    def place(self) -> Path:
        """A folder of its own for a trial; the one before it is removed."""
        number = next(self._numbers)
        shutil.rmtree(self.folder / str(number - 1), ignore_errors=True)
        place = self.folder / str(number)
        place.mkdir()
        return place

    def start(self, place: Path, prepare: Callable[[], None] = lambda: None, log: str = "log", **flags: Any) -> Fork:
        """main.py with its results in place/out."""
        return Fork(self.world.command(place / "out", SMALL_FLAGS | flags), place / log, prepare)

    def undisturbed(self, **flags: Any) -> tuple[dict[str, bytes], float]:
        """The files of a run left alone, and how many seconds it took."""
        key = repr(sorted(flags.items()))
        if key not in self._undisturbed:
            place = self.folder / f"undisturbed-{len(self._undisturbed)}"
            place.mkdir()
            for _ in range(2):  # the first time, caches are cold
                shutil.rmtree(place / "out", ignore_errors=True)
                fork = self.start(place, **flags)
                code = fork.wait()
                if code != EXIT_OK:
                    raise RuntimeError(f"the undisturbed run fails: {fork.said()}")
                seconds = time.monotonic() - fork.started
            self._undisturbed[key] = comparable(place / "out"), seconds
        return self._undisturbed[key]


def comparable(out: Path) -> dict[str, bytes]:
    """Every file; the configuration names the output folder, which is taken out."""
    return {
        name: content.replace(str(out).encode(), b"OUT") if name.endswith("config.yaml") else content
        for name, content in tree_of(out).items()
    }


def images(files: dict[str, bytes]) -> dict[str, bytes]:
    """All but the reports on a whole run."""
    return {name: content for name, content in files.items() if not name.endswith((".yaml", ".pth", ".lock"))}


def difference(found: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """In words; '' when they are the same."""
    lacking, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = [name for name in expected.keys() & found.keys() if found[name] != expected[name]]
    return ", ".join(
        f"{len(names)} {what} ({min(names)})"
        for names, what in ((lacking, "missing"), (more, "too many"), (other, "different"))
        if names
    )


def finish(bench: Bench, place: Path, **flags: Any) -> str:
    """Run the same command to its end, and compare with the undisturbed run."""
    again = bench.start(place, **flags)
    if again.wait() != EXIT_OK:
        return f"the second run failed: {again.said()}"
    return difference(comparable(place / "out"), bench.undisturbed(**flags)[0])


# The trials


def kill_and_resume(bench: Bench, number: int) -> Outcome:
    """Figure: the share of the images that was done when the kill came. Every third trial draws a stream of noise."""
    flags = {"noise": "stream"} if number % 3 == 2 else {}
    flags |= {"classifier_scales": "8,30", "query_label": 1, "save_z_t": True}
    _, seconds = bench.undisturbed(**flags)
    place = bench.place()
    fork = bench.start(place, **flags)
    time.sleep(bench.rng.uniform(0, seconds))
    fork.kill()
    fork.wait()
    done = len(list(place.glob("out/Results/exp/*/*/Info/*.txt"))) / 15
    return Outcome(finish(bench, place, **flags), done)


def kill_while_writing(bench: Bench, number: int) -> Outcome:
    """A process that does nothing but write images and texts. Figure: how many whole files it left."""
    place = bench.place()
    pictures = [to_uint8(rnd(seed, 64, 64, 3)).numpy() for seed in range(4)]
    record = ImageRecord(0, 1, 1, 0, 0, bkl=0.25, l_1=0.125, orig_conf=0.75, cf_conf=0.25, scale=8.0)
    pid = os.fork()
    if pid == 0:
        for count in itertools.count():
            write_image(place / f"{count % 50:07d}.{('jpg', 'png')[count % 2]}", pictures[count % 4])
            core_files.write_atomically(place / f"{count % 50:07d}.txt", record.text())
    wait_for(lambda: any(place.glob("*.txt")))
    time.sleep(bench.rng.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    damaged, whole = [], 0
    for path in place.iterdir():
        if path.suffix == ".tmp":
            continue
        try:
            if path.suffix == ".txt":
                ImageRecord.from_text(0, path.read_text())
            else:
                Image.open(io.BytesIO(path.read_bytes())).load()
            whole += 1
        except (OSError, ValueError) as error:
            damaged.append(f"{path.name}: {error}")
    core_files.remove_orphans([place])
    damaged += [f"{path.name} stayed" for path in place.glob(".*.tmp")]
    return Outcome("; ".join(damaged), whole)


def failing_disk(bench: Bench, number: int) -> Outcome:
    """The kernel's own limit on a file's size, or any of three errors from the first, a later or the last write on."""
    place = bench.place()
    expected, _ = bench.undisturbed()
    moment = bench.rng.randrange(len(expected))
    kind = ("EFBIG", "ENOSPC", "EROFS", "EIO")[number % 4]
    limit = bench.rng.choice([900, 3300, 4000])  # bytes; the log needs a few hundred

    def prepare() -> None:
        if kind == "EFBIG":
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return
        calls, fsync = itertools.count(), os.fsync

        def failing(descriptor: int) -> None:
            if next(calls) >= moment:
                raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)))
            fsync(descriptor)

        os.fsync = failing

    fork = bench.start(place, prepare)
    code = fork.wait()
    if code != EXIT_ERROR and not (kind == "EFBIG" and code == EXIT_OK):  # no file may be that large
        return Outcome(f"{kind}: exit code {code}: {fork.said()}")
    if "Traceback" in fork.said():
        return Outcome(f"{kind}: {fork.said()}")
    if list(place.glob("out/**/.*.tmp")):
        return Outcome(f"{kind}: temporary files stayed")
    return Outcome(finish(bench, place))


def eight_writers(bench: Bench, number: int) -> Outcome:
    """Four chunks, each started twice at the same time; then the merge."""
    flags = {"num_chunks": 4, "pad_batches": True}
    expected, _ = bench.undisturbed(pad_batches=True)
    place = bench.place()
    forks = [bench.start(place, log=f"log{n}", **flags, chunk=n % 4) for n in range(8)]
    codes = [fork.wait() for fork in forks]
    for chunk in range(4):
        pair = {codes[chunk], codes[chunk + 4]}
        if EXIT_OK not in pair or not pair <= {EXIT_OK, EXIT_ERROR}:
            return Outcome(f"chunk {chunk} ended with {pair}: {forks[chunk].said()} {forks[chunk + 4].said()}")
    merge = bench.start(place, merge_and_eval=True, **flags)
    if merge.wait() != EXIT_OK:
        return Outcome(f"the merge failed: {merge.said()}")
    if yaml.safe_load((place / "out/Results/exp/summary.yaml").read_text())["n"] != 15:
        return Outcome("the merged summary does not count 15 images")
    return Outcome(difference(images(comparable(place / "out")), images(expected)))


def signalled(bench: Bench, number: int) -> Outcome:
    """Figure: seconds from the signal to the end."""
    name = ("SIGTERM", "SIGINT", "SIGUSR1")[number % 3]
    _, seconds = bench.undisturbed()
    place = bench.place()
    ready = place / "ready"

    def prepare() -> None:
        enter = main_script.Preemption.__enter__

        def entering(self):
            result = enter(self)
            ready.touch()
            return result

        main_script.Preemption.__enter__ = entering

    fork = bench.start(place, prepare)
    wait_for(ready.exists)
    time.sleep(bench.rng.uniform(0, seconds))
    asked = time.monotonic()
    fork.kill(getattr(signal, name))
    code, took = fork.wait(), time.monotonic() - asked
    if code not in (EXIT_CONTINUE, EXIT_OK):  # it may have been about to end
        return Outcome(f"{name}: exit code {code}: {fork.said()}", took)
    if code == EXIT_CONTINUE and "run the same command again" not in fork.said():
        return Outcome(f"{name}: does not say how to continue: {fork.said()}", took)
    if took >= 10:
        return Outcome(f"{name}: took {took:.1f} s", took)
    return Outcome(finish(bench, place), took)


def bad_images(bench: Bench, number: int) -> Outcome:
    """Five of the ten kinds in turn, at random places of 25 training images. Figure: how many were recorded."""
    flags = {"use_train": True, "batch_size": 5, "num_batches": 5}
    expected, _ = bench.undisturbed(**flags)
    place = bench.place()
    shutil.copytree(bench.world.data, place / "data")
    kinds = list(BAD)[:5] if number % 2 else list(BAD)[5:]
    victims = bench.rng.sample(range(25), len(kinds))
    for id, kind in zip(victims, kinds, strict=True):
        BAD[kind](place / f"data/img_align_celeba/{id + 1:06d}.jpg")
    fork = bench.start(place, data_dir=place / "data", on_bad_image="record", **flags)
    if fork.wait() != EXIT_SOME_FAILED:
        return Outcome(f"no exit code 3: {fork.said()}")
    recorded = yaml.safe_load((place / "out/Results/exp/failed.yaml").read_text())
    if sorted(recorded) != sorted(victims):
        return Outcome(f"recorded {sorted(recorded)} instead of {sorted(victims)}")
    good = {name: content for name, content in images(expected).items() if int(Path(name).stem) not in victims}
    return Outcome(difference(images(comparable(place / "out")), good), len(recorded))


def not_a_number(bench: Bench, number: int) -> Outcome:
    """In each batch one image's network output, or its logit, turns NaN at a random moment. Figure: how many."""
    expected, _ = bench.undisturbed()
    place = bench.place()
    rows = [bench.rng.randrange(length) for length in (4, 4, 4, 3)]
    step, loader = bench.rng.randrange(4), ("load_unet", "load_classifier")[number % 2]

    def prepare() -> None:
        calls = itertools.count()
        per_batch = {"load_unet": 4, "load_classifier": 5}[loader]  # a prediction, three steps, the final decision

        def hook(module, args, output):
            batch, call = divmod(next(calls), per_batch)
            wanted = step if loader == "load_unet" else per_batch - 1
            if call != wanted:
                return output
            return output.index_fill(0, torch.tensor([rows[batch]]), float("nan"))

        load = getattr(main_script, loader)

        def loading(*args):
            network = load(*args)
            network.register_forward_hook(hook)
            return network

        setattr(main_script, loader, loading)

    fork = bench.start(place, prepare)
    if fork.wait() != EXIT_SOME_FAILED:
        return Outcome(f"no exit code 3: {fork.said()}")
    victims = [4 * batch + row for batch, row in enumerate(rows)]
    recorded = yaml.safe_load((place / "out/Results/exp/failed.yaml").read_text())
    if sorted(recorded) != victims:
        return Outcome(f"recorded {sorted(recorded)} instead of {victims}")
    good = {name: content for name, content in images(expected).items() if int(Path(name).stem) not in victims}
    return Outcome(difference(images(comparable(place / "out")), good), len(victims))


def out_of_memory(bench: Bench, number: int) -> Outcome:
    """Memory suffices for one, two or three of four images. Figure: the largest mean difference in grey levels."""
    flags = {"image_format": "png"}
    expected, _ = bench.undisturbed(**flags)
    place, room = bench.place(), 1 + number % 3

    def prepare() -> None:
        load = main_script.load_unet

        def loading(*args):
            unet = load(*args)
            unet.register_forward_pre_hook(check)
            return unet

        main_script.load_unet = loading

    def check(module, args) -> None:
        if len(args[0]) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    fork = bench.start(place, prepare, **flags)
    if fork.wait() != EXIT_OK:
        return Outcome(f"failed: {fork.said()}")
    found = images(comparable(place / "out"))
    if found.keys() != images(expected).keys():
        return Outcome("other files: " + difference(found, images(expected)))
    worst = max(
        np.abs(_pixels(found[name]) - _pixels(expected[name])).mean()
        for name in found
        if name.endswith(".png") and "/SM/" not in name
    )
    if worst > 0.01:  # other shapes, other kernels: single pixels fall to the other side of a whole level
        return Outcome(f"images differ by {worst} grey levels", worst)
    said = yaml.safe_load((place / "out/Results/exp/summary.yaml").read_text()).get("batch size")
    return Outcome("" if said == max(1, min(2, room)) else f"the summary says batch size {said}", worst)


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)), float)


# The table's last column but one


def no_figure(figures: list[float]) -> str:
    return ""


def mean_share(figures: list[float]) -> str:
    between = sum(0 < figure < 1 for figure in figures)
    return f"{between} kills between the first image and the last"


def total_files(figures: list[float]) -> str:
    return f"{sum(figures):.0f} whole files"


def total_images(figures: list[float]) -> str:
    return f"{sum(figures):.0f} bad recorded, {20 * len(figures)} good unchanged"


def total_nan(figures: list[float]) -> str:
    return f"0 of {sum(figures):.0f} counted as flipped"


def slowest(figures: list[float]) -> str:
    return f"slowest {max(figures):.1f} s"


def worst_level(figures: list[float]) -> str:
    return f"at most {max(figures):.4f} grey levels apart"
