"""Measure a diffusion model's negative log-likelihood of images: the variational bound in bits per dimension.

Started like the training: by python, mpiexec or torchrun.
"""

import argparse
from pathlib import Path

import numpy as np

from dime.core.cli import Parser, integer, run, say
from dime.core.datasets import DATASETS, PARTITIONS
from dime.core.networks.diffusion import load_diffusion
from dime.core.training.script import LabelledImages, open_part, parse_model_args, processes
from guided_diffusion import dist_util
from guided_diffusion.image_datasets import EndlessBatches

TERMS = ("prior_bpd", "vb", "mse", "xstart_mse")
"""In bits per dimension L_T and, by timestep from the highest, the L_t and at last L_0; errors by timestep."""


def main() -> None:
    """Measure, print after each batch, and write the terms by timestep."""
    args = parse_args()
    with processes(args.gpus, args.seed):
        model, folder = load_diffusion(args.model_path, args.diffusion, dist_util.dev()), args.data_dir or "."
        is_celeba = any(Path(folder, f"list_eval_partition.{suffix}").exists() for suffix in ("csv", "txt"))
        dataset = args.dataset or ("CelebA" if is_celeba else "folder")
        source = open_part(dataset, folder, args.partition, model.image_size, model.channels)
        images = LabelledImages(source, range(len(source.names)) if model.class_cond else None)
        data = EndlessBatches(images, args.batch_size, shuffle=False)
        at_once, sums = args.batch_size * dist_util.world_size(), dict.fromkeys(TERMS, 0)
        for seen in range(at_once, args.num_samples + at_once, at_once):
            x, cond = next(data)
            cond = {key: value.to(model.device) for key, value in cond.items()}
            out = model.process.calc_bpd_loop(model.network, x.to(model.device), args.clip_denoised, cond)
            for name in TERMS:
                mean = dist_util.sum_over_ranks(out[name].mean(0)) / dist_util.world_size()
                sums[name] = sums[name] + mean.cpu().double().numpy()
            prior, vb, *errors = (total / (seen // at_once) for total in sums.values())
            total = float(prior + vb.sum())
            if dist_util.rank() == 0:
                say(f"done {seen} samples: bpd={total}")
        if dist_util.rank() == 0:
            parts = f"L_T {prior:.4g} + L_t {vb[:-1].sum():.4g} + L_0 {vb[-1]:.4g}"
            say(f"{total:.4f} bits per dimension = {parts} ({seen} images)")
            Path(args.output_path).mkdir(parents=True, exist_ok=True)
            for name, values in zip(TERMS[1:], (vb, *errors), strict=True):
                np.savez(Path(args.output_path) / f"{name}_terms.npz", values)


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument_group("images").add_argument
    add("--data_dir", default="", help="folder in CelebA's layout, or any folder of images; '' is the current one")
    add("--dataset", choices=("", *DATASETS), default="", help="layout of data_dir; '': CelebA's where it is, or any")
    add("--partition", choices=tuple(PARTITIONS), default="val", help="of data_dir, where it has parts")
    add("--output_path", default=".", help="folder of vb_terms.npz, mse_terms.npz and xstart_mse_terms.npz")
    add("--num_samples", type=integer(1), default=1000, help="how many images, rounded up to whole batches")
    add("--batch_size", type=integer(1), default=1, help="images at once, in each process")
    return parse_model_args(parser)


if __name__ == "__main__":
    run(main)
