"""What the training scripts share: their common flags, errors in one line, and how progress is shown."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from dime.core.cli import integer, number, say
from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from guided_diffusion import dist_util, logger

PRECISIONS = ("fp32", "fp16", "bf16")


def add_training_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of every training script."""
    add = group.add_argument
    add("--data_dir", default="", help="folder in CelebA's layout; '' is the current directory")
    add("--output_path", default="", help="folder of checkpoints and log; training goes on from what it holds")
    add("--max_steps", type=integer(0), default=0, help="updates, over resumes, after which training ends; 0: no limit")
    add("--grad_clip", type=number(0), default=0.0, help="largest norm of the gradient; 0: any")
    add("--gpus", default="", help="GPU indices separated by commas, one for each process; '' means all in order")
    add("--seed", type=integer(0), default=0, help="start of every random generator")
    add("--num_workers", type=integer(0), default=_default_workers(), help="processes that read images, per process")


def attribute_list(text: str) -> tuple[int, ...]:
    """Flag type: attributes of CelebA by name, separated by commas, each once."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in ATTRIBUTES]
    if unknown or len(set(names)) != len(names):
        problem = f"no attribute of CelebA is called {unknown[0]!r}" if unknown else "an attribute is named twice"
        raise argparse.ArgumentTypeError(f"{problem}; the names are {', '.join(ATTRIBUTES)}")
    return tuple(ATTRIBUTES.index(name) for name in names)


def _default_workers() -> int:
    return min(4, (os.cpu_count() or 1) // 2)


@contextmanager
def library_errors() -> Iterator[None]:
    """Turn what the libraries raise about a user's files, flags and data into InputError."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        named = isinstance(error, OSError) and error.filename
        raise InputError(f"{error.filename}: {error.strerror}" if named else str(error)) from error


def open_log(output_path: str) -> str:
    """Let the log go to files in the output folder and return its name (the logger's own where none is given)."""
    formats = ["log", "csv"]
    if importlib.util.find_spec("tensorboard"):
        formats.append("tensorboard")
    logger.configure(dir=output_path or None, format_strs=formats if dist_util.rank() == 0 else None)
    return logger.get_dir()


class Progress:
    """A bar at a terminal, else one line at each call of `report`; silent except on rank 0."""

    def __init__(self, total: int | None, done: int) -> None:
        self.visible = dist_util.rank() == 0
        on_terminal = self.visible and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit="update", disable=not on_terminal)
        self._total = total
        self._has_bar = on_terminal

    def advance(self) -> None:
        """One more update."""
        self._bar.update()

    def report(self, done: int, values: dict[str, float], images_per_update: int) -> None:
        """Show the figures of the log: loss, speed, time left."""
        speed = values["images_per_second"]
        figures = f"loss {values['loss']:.4g}, {speed:.4g} images/s"
        if self._has_bar:
            self._bar.set_postfix_str(figures)
        elif self.visible:
            left = "" if self._total is None else f", {_clock((self._total - done) * images_per_update / speed)} left"
            say(f"update {done}: {figures}{left}")

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def _clock(seconds: float) -> str:
    return tqdm.format_interval(max(seconds, 0))
