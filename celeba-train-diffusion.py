"""Train the diffusion model (DDPM) on CelebA, in one process or many.

    python celeba-train-diffusion.py …                            one GPU, or the CPU
    mpiexec -n 4 python celeba-train-diffusion.py …               one process for each GPU
    torchrun --nproc-per-node 4 celeba-train-diffusion.py …       the same

Run the same command again to go on from the newest checkpoint in --output_path. docs/training.md has the details.
"""

from __future__ import annotations

import argparse
from typing import Any

from dime.core.cli import Parser, boolean, integer, number, run, say
from dime.core.datasets import ATTRIBUTES
from dime.core.training.data import seed_everything, training_batches
from dime.core.training.monitor import Monitor
from dime.core.training.script import PRECISIONS, add_training_flags, library_errors, open_log
from guided_diffusion import dist_util
from guided_diffusion.resample import SAMPLERS, create_named_schedule_sampler
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from guided_diffusion.train_util import TrainLoop

PASSED_ON = (
    "batch_size",
    "microbatch",
    "lr",
    "ema_rate",
    "log_interval",
    "save_interval",
    "resume_checkpoint",
    "use_fp16",
    "fp16_scale_growth",
    "weight_decay",
    "lr_anneal_steps",
    "lr_warmup_steps",
    "output_path",
    "max_steps",
    "grad_clip",
    "offset_noise",
    "keep_checkpoints",
)
"""Flags that are arguments of TrainLoop as they are."""


def main() -> None:
    """Train until the flags or a signal end it."""
    args = parse_args()
    with library_errors():
        dist_util.setup_dist(args.gpus)
        args.output_path = open_log(args.output_path)
        seed_everything(args.seed)
        loop = build_loop(args)
        if dist_util.rank() == 0:
            say(f"{loop.updates} updates done, checkpoints in {args.output_path}, training on {loop.device}")
        loop.run_loop()
        dist_util.close()
    finished = loop.last_update is not None and loop.updates >= loop.last_update
    if dist_util.rank() == 0:
        say(f"{loop.updates} updates done; " + ("finished" if finished else "run the same command again to go on"))


def parse_args() -> argparse.Namespace:
    """The flags of the command line, each one checked as far as it can be alone."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_training_flags(parser.add_argument_group("data, output and machine"))
    add_loop_flags(parser.add_argument_group("training"))
    add_picture_flags(parser.add_argument_group("pictures"))
    add_dict_to_argparser(parser.add_argument_group("diffusion model"), model_and_diffusion_defaults())
    return parser.parse_args()


def add_loop_flags(group: argparse._ArgumentGroup) -> None:
    """The arguments of TrainLoop."""
    add = group.add_argument
    add("--schedule_sampler", choices=tuple(SAMPLERS), default="uniform", help="which timesteps to train on")
    add("--lr", type=number(0), default=1e-4, help="learning rate of AdamW")
    add("--weight_decay", type=number(0), default=0.0, help="weight decay of AdamW")
    add("--lr_anneal_steps", type=integer(0), default=0, help="updates over which lr falls to 0; then training ends")
    add("--lr_warmup_steps", type=integer(0), default=0, help="first updates, over which lr grows linearly; 0: none")
    add("--batch_size", type=integer(1), default=1, help="images of one update, in each process")
    add("--microbatch", type=integer(-1), default=-1, help="images in memory at once; -1: the whole batch")
    add("--ema_rate", default="0.9999", help="rates of the averaged weights, separated by commas")
    add("--log_interval", type=integer(1), default=10, help="updates between two lines of the log")
    add("--save_interval", type=integer(1), default=10000, help="updates between two checkpoint sets")
    add("--keep_checkpoints", type=integer(0), default=1, help="sets of this training that stay; 0: all")
    add("--resume_checkpoint", default="", help="…/modelNNNNNN.pt to start from, with its siblings")
    add("--precision", choices=PRECISIONS, default=None, help="of the network; unset: fp16 with --use_fp16, else fp32")
    add("--fp16_scale_growth", type=number(0), default=1e-3, help="growth of log2(loss scale) with each update")
    add("--offset_noise", type=number(0), default=0.0, help="shift the noise of each image and channel; 0.1, say")
    add("--random_crop", type=boolean, default=False, help="crop 95 to 100 %% of the area at random")


def add_picture_flags(group: argparse._ArgumentGroup) -> None:
    """The grid of samples at each checkpoint."""
    add = group.add_argument
    add("--samples", type=integer(0), default=16, help="images in the grid drawn at each checkpoint; 0: no grid")
    add("--sample_steps", type=integer(1), default=50, help="evaluations of the network for each of them (DDIM)")


def build_loop(args: argparse.Namespace) -> TrainLoop:
    """Network, data and loop as the flags say."""
    flags = args_to_dict(args, model_and_diffusion_defaults())
    model, diffusion = create_model_and_diffusion(**flags, num_classes=len(ATTRIBUTES), multiclass=True)
    data = training_batches(
        args.data_dir,
        args.image_size,
        args.batch_size,
        range(len(ATTRIBUTES)) if args.class_cond else None,
        args.seed,
        args.num_workers,
        args.random_crop,
    )
    return TrainLoop(
        model=model,
        diffusion=diffusion,
        data=data,
        schedule_sampler=create_named_schedule_sampler(args.schedule_sampler, diffusion),
        precision=args.precision or "",
        observer=build_monitor(args, flags, data.dataset),
        **args_to_dict(args, PASSED_ON),
    )


def build_monitor(args: argparse.Namespace, flags: dict[str, Any], dataset) -> Monitor:
    """Progress and pictures; a conditional network draws with the labels of the first training images."""
    samples = min(args.samples, len(dataset)) if args.class_cond else args.samples
    labels = dataset.labels()[:samples] if args.class_cond else None
    return Monitor(flags, samples, args.sample_steps, labels, args.seed)


if __name__ == "__main__":
    run(main)
