"""Measure a diffusion model's negative log-likelihood of images: the variational bound in bits per dimension.

Started like the training: by python, mpiexec or torchrun.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from dime.core.cli import Parser, boolean, integer, run, say
from dime.core.datasets import ATTRIBUTES, PARTITIONS, CelebA
from dime.core.networks.diffusion import load_diffusion
from dime.core.training.data import own_share
from dime.core.training.likelihood import measure_likelihood
from dime.core.training.script import processes
from guided_diffusion import dist_util
from guided_diffusion.batches import EndlessBatches
from guided_diffusion.image_datasets import load_data
from guided_diffusion.script_util import add_dict_to_argparser, model_and_diffusion_defaults


def main() -> None:
    """Measure, print after each batch, and write the terms by timestep."""
    args = parse_args()
    with processes(args.gpus, args.seed):
        model = load_diffusion(args.model_path, args.diffusion, dist_util.dev())
        data = open_data(args, model.image_size)
        for result in measure_likelihood(model.network, model.process, data, args.num_samples, args.clip_denoised):
            if dist_util.rank() == 0:
                say(f"done {result.count} samples: bpd={result.total}")
        if dist_util.rank() == 0:
            say(str(result))
            Path(args.output_path).mkdir(parents=True, exist_ok=True)
            for name, values in result.terms.items():
                np.savez(Path(args.output_path) / f"{name}_terms.npz", values)


def parse_args() -> argparse.Namespace:
    """The flags of the command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument_group("images").add_argument
    add("--model_path", required=True, help="checkpoint of the diffusion model, such as ema_0.9999_100000.pt")
    add("--data_dir", default="", help="folder in CelebA's layout, or any folder of images; '' is the current one")
    add("--partition", choices=tuple(PARTITIONS), default="val", help="of a folder in CelebA's layout")
    add("--output_path", default=".", help="folder of vb_terms.npz, mse_terms.npz and xstart_mse_terms.npz")
    add("--num_samples", type=integer(1), default=1000, help="how many images, rounded up to whole batches")
    add("--batch_size", type=integer(1), default=1, help="images at once, in each process")
    add("--clip_denoised", type=boolean, default=True, help="clip each estimate of the clean image to [-1, 1]")
    add("--gpus", default="", help="GPU indices separated by commas, one for each process; '' means all in order")
    add("--seed", type=integer(0), default=0, help="of the noise")
    add_dict_to_argparser(parser.add_argument_group("diffusion model"), model_and_diffusion_defaults())
    args = parser.parse_args()
    args.diffusion = parser.model_flags()
    return args


def open_data(args: argparse.Namespace, image_size: int):
    """Batches of this process's images in their order, with labels for a conditional network."""
    folder = args.data_dir or "."
    if any(Path(folder, f"list_eval_partition.{suffix}").exists() for suffix in ("csv", "txt")):
        attributes = range(len(ATTRIBUTES)) if args.class_cond else None
        share = own_share(CelebA(folder, args.partition, image_size), attributes)
        return EndlessBatches(share, args.batch_size, shuffle=False)
    if args.class_cond:
        raise ValueError(f"{folder}: no list_eval_partition.csv or .txt; --class_cond needs CelebA's labels")
    return load_data(
        data_dir=folder, batch_size=args.batch_size, image_size=image_size, deterministic=True, random_flip=False
    )


if __name__ == "__main__":
    run(main)
