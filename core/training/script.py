"""What the training scripts share: their common flags, errors in one line, the frame of a training, its progress."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from dime.core.cli import integer, number, say
from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.training.data import seed_everything
from guided_diffusion import dist_util, logger
from guided_diffusion.trainer import Trainer, TrainObserver


def add_training_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of every training script."""
    workers = min(4, (os.cpu_count() or 1) // 2)
    add = group.add_argument
    add("--data_dir", default="", help="folder in CelebA's layout; '' is the current directory")
    add("--output_path", default="", help="folder of checkpoints and log; training goes on from what it holds")
    add("--max_steps", type=integer(0), default=0, help="updates, over resumes, after which training ends; 0: no limit")
    add("--grad_clip", type=number(0), default=0.0, help="largest norm of the gradient; 0: any")
    add("--gpus", default="", help="GPU indices separated by commas, one for each process; '' means all in order")
    add("--seed", type=integer(0), default=0, help="start of every random generator")
    add("--num_workers", type=integer(0), default=workers, help="processes that read images, per process")


def attribute_list(text: str) -> tuple[int, ...]:
    """Flag type: attributes of CelebA by name, separated by commas, each once."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in ATTRIBUTES]
    if unknown or len(set(names)) != len(names):
        problem = f"no attribute of CelebA is called {unknown[0]!r}" if unknown else "an attribute is named twice"
        raise argparse.ArgumentTypeError(f"{problem}; the names are {', '.join(ATTRIBUTES)}")
    return tuple(ATTRIBUTES.index(name) for name in names)


@contextmanager
def processes(gpus: str, seed: int) -> Iterator[None]:
    """The frame of a script in one process or many: their group, their generators; library errors as InputError."""
    try:
        dist_util.setup_dist(gpus)
        seed_everything(seed)
        yield
        dist_util.close()
    except (ValueError, OSError, FloatingPointError) as error:
        named = isinstance(error, OSError) and error.filename
        raise InputError(f"{error.filename}: {error.strerror}" if named else str(error)) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(f"{error}; --num_workers 0 does without, docker's --shm-size gives them memory") from error


def train(args: argparse.Namespace, build: Callable[[argparse.Namespace], Trainer]) -> None:
    """Build a training in its processes and run it, the log in files in the output folder."""
    with processes(args.gpus, args.seed):
        formats = ["log", "csv", *(["tensorboard"] if importlib.util.find_spec("tensorboard") else [])]
        logger.configure(dir=args.output_path or None, format_strs=formats if dist_util.rank() == 0 else None)
        args.output_path = logger.get_dir()
        training = build(args)
        if dist_util.rank() == 0:
            say(f"{training.updates} updates done, checkpoints in {args.output_path}, training on {training.device}")
        training.run_loop()
    if dist_util.rank() == 0:
        outcome = "finished" if training.finished else "run the same command again to go on"
        say(f"{training.updates} updates done; {outcome}")


class Progress(TrainObserver):
    """A bar at a terminal, else one line with each line of the log; silent except on rank 0."""

    def on_start(self, trainer: Trainer) -> None:
        """Begin the bar."""
        self.visible = dist_util.rank() == 0
        self.has_bar = self.visible and sys.stderr.isatty()
        span = {"total": trainer.last_update, "initial": trainer.updates}
        self.bar = tqdm(**span, unit="update", disable=not self.has_bar)

    def on_update(self, trainer: Trainer) -> None:
        """Move the bar."""
        self.bar.update()
        if trainer.finished:
            self.bar.close()

    def on_log(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Show loss, speed and time left."""
        speed = values["images_per_second"]
        figures = f"loss {values['loss']:.4g}, {speed:.4g} images/s"
        if self.has_bar:
            self.bar.set_postfix_str(figures)
        elif self.visible:
            left = ""
            if trainer.last_update is not None:
                seconds = (trainer.last_update - trainer.updates) * trainer.images_per_update / speed
                left = f", {tqdm.format_interval(max(seconds, 0))} left"
            say(f"update {trainer.updates}: {figures}{left}")
