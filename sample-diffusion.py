"""Draw images from a diffusion model: an .npz of all and a .png of the first, by DDPM or DDIM.

Started like the training: by python, mpiexec or torchrun.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dime.core.cli import Parser, boolean, integer, number, run, say
from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.images import to_uint8
from dime.core.networks.diffusion import DiffusionModel, load_diffusion
from dime.core.training.script import columns_of, open_part, parse_model_args, processes, write_samples
from guided_diffusion import dist_util
from guided_diffusion.trainer import usable_precision


def main() -> None:
    """Load, draw, gather and write."""
    args = parse_args()
    with processes(args.gpus, args.seed):
        device, labels = dist_util.dev(), None
        model = load_diffusion(args.model_path, args.diffusion, device)
        if model.class_cond:
            if model.network.multiclass and not args.attributes and not args.data_dir:
                raise InputError("--class_cond True: say what to draw, by --attributes Smiling,Young or by --data_dir")
            named = columns_of(args.attributes, ATTRIBUTES) if args.attributes else None
            labels = labels_to_draw(model, args.num_samples, named, args.data_dir, args.seed)
        if args.use_fp16 and usable_precision("fp16", device) == "fp16":
            model.network.convert_to(torch.float16)
        process = model.process
        method = partial(process.ddim_sample_loop, eta=args.eta) if args.use_ddim else process.p_sample_loop
        draw = partial(method, model.network, clip_denoised=args.clip_denoised, device=device)
        shape = (args.batch_size, model.channels, model.image_size, model.image_size)
        images = draw_samples(draw, shape, args.num_samples, labels)
        if dist_util.rank() == 0:
            say(f"{len(images)} images: {write_samples(Path(args.output_path), images, labels)}")


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument_group("images").add_argument
    add("--output_path", default=".", help="folder of the files written")
    add("--num_samples", type=integer(1), default=10000, help="how many images")
    add("--batch_size", type=integer(1), default=16, help="images drawn at once, in each process")
    add("--use_ddim", type=boolean, default=False, help="DDIM in place of DDPM")
    add("--eta", type=number(0), default=0.0, help="noise of DDIM; 0: none")
    add("--attributes", default="", metavar="NAMES", help="what images show, with --class_cond")
    add("--data_dir", default="", help="with --class_cond and no --attributes: CelebA, whose labels are drawn from")
    return parse_model_args(parser)


def draw_samples(
    sample_loop: Callable[..., torch.Tensor], shape: tuple[int, ...], count: int, labels: torch.Tensor | None
) -> np.ndarray:
    """`count` images, uint8 (count, H, W, C), in every process; batches go round among the processes.

    sample_loop: draws images of `shape`, (batch size, C, H, W), in [-1, 1]; it is given model_kwargs.
    labels: (count, …) for a conditional network. Image n does not depend on the batches that come after its own.
    """
    batch_size, world_size = shape[0], dist_util.world_size()
    images: list[torch.Tensor] = []
    starts = range(0, count, batch_size * world_size)
    for start in tqdm(starts, unit="batch", disable=None if dist_util.rank() == 0 else True):
        first = start + dist_util.rank() * batch_size
        rows = [row % count for row in range(first, first + batch_size)]  # what lies beyond count is cut off below
        model_kwargs = {} if labels is None else {"y": labels[rows].to(dist_util.dev())}
        images += dist_util.gather(to_uint8(sample_loop(shape=shape, model_kwargs=model_kwargs)).movedim(1, -1).cpu())
    return torch.cat(images)[:count].numpy()


def labels_to_draw(
    model: DiffusionModel, count: int, attributes: Sequence[int] | None, data_dir: str, seed: int
) -> torch.Tensor:
    """What the images of a conditional model are to show.

    Of attributes (count, K): those named and no others, or as random images of CelebA's train partition have them.
    Classes (count,): all alike likely. Raises InputError for a damaged folder.
    """
    rng, num_labels = np.random.default_rng(seed), model.network.num_classes
    if not model.network.multiclass:
        return torch.from_numpy(rng.integers(num_labels, size=count))
    if attributes is not None:
        labels = torch.zeros(count, num_labels)
        labels[:, list(attributes)] = 1
        return labels
    table = open_part("CelebA", data_dir, "train", 1).table
    return torch.from_numpy(table.iloc[rng.integers(len(table), size=count), 1:].to_numpy(np.float32))


if __name__ == "__main__":
    run(main)
