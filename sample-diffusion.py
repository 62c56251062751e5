"""Draw images from a diffusion model: an .npz of all and a .png of the first, by DDPM or DDIM.

Started like the training: by python, mpiexec or torchrun.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from dime.core.cli import Parser, boolean, integer, number, run, say
from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.networks.diffusion import load_diffusion
from dime.core.training.sampling import draw_samples, labels_to_draw, write_samples
from dime.core.training.script import columns_of, parse_model_args, processes
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


if __name__ == "__main__":
    run(main)
