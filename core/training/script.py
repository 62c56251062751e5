"""What the training scripts share: flags, data, the frame of a run in one process or many, what is shown of it."""

import argparse
import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blobfile as bf
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from dime.core.cli import Parser, boolean, integer, number, say
from dime.core.datasets import DATASETS, Source, download, image_transform, list_celeba, open_dataset
from dime.core.errors import InputError
from dime.core.files import write_atomically
from dime.core.images import from_image, grid_png
from dime.core.photos import BadImageError
from guided_diffusion import dist_util, logger
from guided_diffusion.script_util import add_dict_to_argparser, create_diffusion, model_and_diffusion_defaults
from guided_diffusion.train_util import TrainLoop
from guided_diffusion.trainer import Trainer, TrainObserver

DAMAGED_SHARE = 0.01
"""Of the images; where more cannot be read, something else is wrong than a file."""
GRID_SECONDS = 10.0
"""For drawing a grid of samples; where the images are not done by then, it has fewer."""
GRID_SHARE = 0.03
"""Of the time that training takes; where grids would take more, some checkpoints have none."""
GPUS = "GPU indices separated by commas, one for each process; '' means all in order"


def add_training_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of every training script."""
    workers = min(4, (os.cpu_count() or 1) // 2)
    add = group.add_argument
    add("--data_dir", default="", help="folder of the images; '' is the current directory")
    add("--dataset", choices=tuple(DATASETS), default="CelebA", help="layout of data_dir, as for main.py")
    add("--download", type=boolean, default=False, help="fetch the data set into data_dir first (mnist)")
    add("--image_channels", type=int, choices=(1, 3), default=3, help="3: colour, 1: grey")
    add("--random_flip", type=boolean, default=True, help="mirror every second image")
    add("--random_crop", type=boolean, default=False, help="crop 95 to 100 %% of the area at random")
    add("--output_path", default="", help="folder of checkpoints and log; training goes on from what it holds")
    add("--max_steps", type=integer(0), default=0, help="updates, over resumes, after which training ends; 0: no limit")
    add("--grad_clip", type=number(0), default=0.0, help="largest norm of the gradient; 0: any")
    add("--gpus", default="", help=GPUS)
    add("--seed", type=integer(0), default=0, help="start of every random generator")
    add("--num_workers", type=integer(0), default=workers, help="processes that read images, per process")


def parse_model_args(parser: Parser) -> argparse.Namespace:
    """Add the flags of every script that uses a diffusion model, and parse; `diffusion`: its flags that are given."""
    add = parser.add_argument_group("model and machine").add_argument
    add("--model_path", required=True, help="checkpoint of the diffusion model, such as ema_0.9999_100000.pt")
    add("--clip_denoised", type=boolean, default=True, help="clip each estimate of the clean image to [-1, 1]")
    add("--gpus", default="", help=GPUS)
    add("--seed", type=integer(0), default=0, help="other numbers give other noise")
    flags = model_and_diffusion_defaults()
    add_dict_to_argparser(parser.add_argument_group("diffusion model"), flags)
    args = parser.parse_args()
    # what is not given is read from the model's own file
    args.diffusion = {name: value for name, value in parser.given().items() if name in flags}
    return args


def columns_of(attributes: str, known: Sequence[str]) -> list[int]:
    """Where attributes, named and separated by commas, stand among those known; '' means all. Raises InputError."""
    names = [name.strip() for name in attributes.split(",")] if attributes else list(known)
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) != len(names):
        problem = f"no attribute is called {unknown[0]!r}" if unknown else "an attribute is named twice"
        raise InputError(f"--attributes: {problem}; the names are {', '.join(known)}")
    return [known.index(name) for name in names]


def open_part(
    dataset: str,
    data_dir: str,
    part: str,
    image_size: int,
    channels: int = 3,
    class_names: Sequence[str] | None = None,
    **augmentation: bool,
) -> Source:
    """The part (train, val or test) of a data set: CelebA's partition, or what lies in a folder of that name.

    A folder without `train/` and `val/` is whole in every part. augmentation: as in image_transform. Raises InputError.
    """
    if dataset == "CelebA":
        source = list_celeba(data_dir or ".", part)
    else:
        is_split = dataset == "folder" and all(bf.isdir(bf.join(data_dir, name)) for name in ("train", "val"))
        place = bf.join(data_dir, part) if is_split else data_dir
        source = open_dataset(dataset, place, image_size, use_train=part == "train", class_names=class_names)
    source.transform, source.channels = image_transform(image_size, **augmentation), channels
    return source


class LabelledImages(Dataset):
    """This process's images, r, r + R, r + 2 R, … for rank r of R, as (image (C, H, W) in [-1, 1], {'y': labels}).

    columns: those of the attributes that y holds (or any, where y is a class); None: nothing in place of {'y': …}.

    The next one stands in for a damaged image, which is said once. Raises InputError when an image is missing, or the
    labels, and where more than one image in a hundred is damaged.
    """

    def __init__(self, source: Source, columns: Sequence[int] | None = None) -> None:
        source.require_images(range(len(source)))
        if columns is not None and source.conditions(0) is None:
            raise InputError(f"{source.folder}: its images have no labels; use folders of classes, or a labels.csv")
        self.source = source
        self.columns = None if columns is None else list(columns)
        self.rows = range(dist_util.rank(), len(source), dist_util.world_size())
        self._damaged: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        try:
            return self.source.load(self.rows[index]), self.labels(index)
        except BadImageError as error:
            if index not in self._damaged:
                self._damaged.add(index)
                if len(self._damaged) > max(1, len(self) * DAMAGED_SHARE):
                    raise
                say(f"{error}; the next image stands in for it")
            return self[(index + 1) % len(self)]

    def labels(self, index: int) -> dict[str, torch.Tensor]:
        """The second half of an item, without reading the image."""
        if self.columns is None:
            return {}
        y = self.source.conditions(self.rows[index])
        return {"y": y[self.columns] if y.ndim else y}


def write_samples(folder: Path, images: np.ndarray, labels: torch.Tensor | None) -> Path:
    """Write samples_COUNTxHxWxC.npz (arr_0: images, arr_1: labels, if any) and a PNG of the first; returns the npz."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [images] if labels is None else [images, labels.numpy()]
    path = folder / f"samples_{'x'.join(map(str, images.shape))}.npz"
    write_atomically(path, lambda file: np.savez(file, *arrays))
    write_atomically(path.with_suffix(".png"), grid_png(from_image(images[:64]), columns=8))
    return path


@contextmanager
def processes(gpus: str, seed: int) -> Iterator[None]:
    """The frame of a script in one process or many: their group, their generators; library errors as InputError."""
    try:
        dist_util.setup_dist(gpus)
        own_seed = seed + dist_util.rank()
        random.seed(own_seed)
        torch.manual_seed(own_seed)
        np.random.seed(own_seed % 2**32)
        yield
        dist_util.close()
    except (ValueError, OSError, FloatingPointError) as error:
        named = isinstance(error, OSError) and error.filename
        raise InputError(f"{error.filename}: {error.strerror}" if named else str(error)) from error


def train(args: argparse.Namespace, build: Callable[[argparse.Namespace], Trainer]) -> None:
    """Build a training in its processes and run it, the log in files in the output folder."""
    with processes(args.gpus, args.seed):
        formats = ["log", "csv", *(["tensorboard"] if importlib.util.find_spec("tensorboard") else [])]
        logger.configure(dir=args.output_path or None, format_strs=formats if dist_util.rank() == 0 else None)
        args.output_path = logger.get_dir()
        if args.download:
            dist_util.on_rank_0(lambda: download(args.dataset, args.data_dir))
        training = build(args)
        if dist_util.rank() == 0:
            say(f"{training.updates} updates done, checkpoints in {args.output_path}, training on {training.device}")
        training.run_loop()
    if dist_util.rank() == 0:
        outcome = "finished" if training.finished else "run the same command again to go on"
        say(f"{training.updates} updates done; {outcome}")


class Progress(TrainObserver):
    """A bar at a terminal, else one line with each line of the log; silent except on rank 0."""

    bar: tqdm | None = None

    def on_update(self, trainer: Trainer) -> None:
        """Move the bar."""
        if self.bar is None:
            begun, hidden = trainer.updates - 1, dist_util.rank() != 0 or not sys.stderr.isatty()
            self.bar = tqdm(total=trainer.last_update, initial=begun, unit="update", disable=hidden)
        self.bar.update()
        if trainer.finished:
            self.bar.close()

    def on_log(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Show loss, speed and time left."""
        speed = values["images_per_second"]
        figures = f"loss {values['loss']:.4g}, {speed:.4g} images/s"
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(figures)
        elif dist_util.rank() == 0:
            left = ""
            if trainer.last_update is not None:
                seconds = (trainer.last_update - trainer.updates) * trainer.images_per_update / speed
                left = f", {tqdm.format_interval(max(seconds, 0))} left"
            say(f"update {trainer.updates}: {figures}{left}")


class Monitor(Progress):
    """Shows progress, and draws a grid at the checkpoint sets.

    Args:
        flags: those that built the network, image_channels among them.
        samples: images of the grid; 0: none.
        sample_steps: evaluations of the network for each (DDIM, without noise of its own).
        labels: (samples, …) for a class-conditional network, else None.
        seed: of the noise that the images grow from, the same at every checkpoint.
    """

    def __init__(
        self, flags: Mapping[str, Any], samples: int, sample_steps: int, labels: torch.Tensor | None, seed: int
    ) -> None:
        self.labels = labels
        steps = min(sample_steps, flags["diffusion_steps"])
        self.diffusion = create_diffusion({**flags, "timestep_respacing": str(steps)})
        size = flags["image_size"]
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(samples, flags["image_channels"], size, size, generator=generator)
        self.next_grid = 0.0

    def on_save(self, loop: TrainLoop, number: int) -> None:
        """Write samples/NUMBER.png beside the set, drawn with the first rate's averaged weights.

        Not while a stop is asked for, and not so often that it takes a part of the time to speak of. What fails here
        is said; training goes on.
        """
        began, wanted = time.monotonic(), len(self.noise)
        if loop.stopping or not wanted or (began < self.next_grid and not loop.finished):
            return
        path = loop.folder.folder / "samples" / f"{number:06d}.png"
        say(f"drawing {path.parent.name}/{path.name}, in {GRID_SECONDS:g} seconds at most")
        try:
            images = self._draw(loop, began + GRID_SECONDS)
            if len(images) < wanted:
                reason = "before the stop" if loop.stopping else "in time (fewer --sample_steps are quicker)"
                say(f"{len(images)} of {wanted} images were drawn {reason}")
            if len(images):
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, grid_png(images, columns=4))
        except Exception as error:
            say(f"{path}: not drawn ({' '.join(str(error).split())}); training goes on")
        self.next_grid = (now := time.monotonic()) + (now - began) / GRID_SHARE

    def _draw(self, loop: TrainLoop, deadline: float) -> torch.Tensor:
        """The images (n, C, H, W) in [-1, 1] that are done when the time is up or a stop is asked for.

        A few at first and more in each batch that follows: so the slowest network finishes some, the fastest all.
        """
        network, evaluations = next(iter(loop.ema.values())), self.diffusion.num_timesteps
        devices = [loop.device] if loop.device.type == "cuda" else []
        images = self.noise[:0]
        # sampling draws noise that it does not use: the training must not notice
        with torch.random.fork_rng(devices), loop.autocast():
            while len(images) < len(self.noise):
                part = slice(len(images), len(images) + min(loop.microbatch, max(1, 3 * len(images))))
                noise = self.noise[part].to(loop.device)
                labels = {} if self.labels is None else {"y": self.labels[part].to(loop.device)}
                sample = self.diffusion.ddim_sample_loop_progressive
                steps = sample(network, noise.shape, noise=noise, model_kwargs=labels)
                now = deadline  # the first evaluation of a shape may be slow, and foretells nothing
                for done, out in enumerate(steps, start=1):
                    x, before, now = out["sample"], now, time.monotonic()
                    if loop.stopping or now + max(now - before, 0) * (evaluations - done) > deadline:
                        return images
                images = torch.cat([images, x.cpu()])
        return images
