"""Draw images from a diffusion model: an .npz of all and a .png of the first, by DDPM or DDIM.

Started like the training: by python, mpiexec or torchrun.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from dime.core.cli import Parser, boolean, integer, number, run, say
from dime.core.errors import InputError
from dime.core.networks.diffusion import load_diffusion
from dime.core.training.sampling import draw_samples, label_rows, write_samples
from dime.core.training.script import attribute_list, processes
from guided_diffusion import dist_util
from guided_diffusion.script_util import add_dict_to_argparser, model_and_diffusion_defaults
from guided_diffusion.trainer import usable_precision


def main() -> None:
    """Load, draw, gather and write."""
    args = parse_args()
    with processes(args.gpus, args.seed):
        device, labels = dist_util.dev(), None
        model = load_diffusion(args.model_path, args.diffusion, device)
        if model.class_cond:
            labels = label_rows(args.num_samples, args.attributes, args.data_dir, args.seed)
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
    """The flags of the command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument_group("images").add_argument
    add("--model_path", required=True, help="checkpoint of the diffusion model, such as ema_0.9999_100000.pt")
    add("--output_path", default=".", help="folder of the files written")
    add("--num_samples", type=integer(1), default=10000, help="how many images")
    add("--batch_size", type=integer(1), default=16, help="images drawn at once, in each process")
    add("--use_ddim", type=boolean, default=False, help="DDIM in place of DDPM")
    add("--eta", type=number(0), default=0.0, help="noise of DDIM; 0: none")
    add("--clip_denoised", type=boolean, default=True, help="clip each estimate of the clean image to [-1, 1]")
    add("--attributes", type=attribute_list, default=None, metavar="NAMES", help="what images show, with --class_cond")
    add("--data_dir", default="", help="with --class_cond and no --attributes: CelebA, whose labels are drawn from")
    add("--gpus", default="", help="GPU indices separated by commas, one for each process; '' means all in order")
    add("--seed", type=integer(0), default=0, help="other numbers give other images")
    add_dict_to_argparser(parser.add_argument_group("diffusion model"), model_and_diffusion_defaults())
    args = parser.parse_args()
    args.diffusion = parser.model_flags()
    if args.class_cond and args.attributes is None and not args.data_dir:
        raise InputError("--class_cond True: say what to draw, by --attributes Smiling,Young or by --data_dir")
    return args


if __name__ == "__main__":
    run(main)
