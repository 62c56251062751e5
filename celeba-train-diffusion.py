"""Train the diffusion model (DDPM) on CelebA or other images, in one process or many.

    python celeba-train-diffusion.py …                            one GPU, or the CPU
    mpiexec -n 4 python celeba-train-diffusion.py …               one process for each GPU
    torchrun --nproc-per-node 4 celeba-train-diffusion.py …       the same

Run the same command again to go on from the newest checkpoint in --output_path. docs/training.md has the details.
"""

import argparse
import inspect

import torch

from dime.core.cli import Parser, integer, number, run
from dime.core.training.monitor import Monitor
from dime.core.training.script import LabelledImages, add_training_flags, open_part, train
from guided_diffusion import dist_util
from guided_diffusion.image_datasets import EndlessBatches
from guided_diffusion.resample import SAMPLERS, create_named_schedule_sampler
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from guided_diffusion.train_util import TrainLoop
from guided_diffusion.trainer import PRECISIONS, Trainer, usable_precision


def main() -> None:
    """Train until the flags or a signal end it."""
    train(parse_args(), build_loop)


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_training_flags(parser.add_argument_group("data, output and machine"))
    add = parser.add_argument_group("training").add_argument
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
    add = parser.add_argument_group("pictures").add_argument
    add("--samples", type=integer(0), default=16, help="images in the grid drawn at checkpoints; 0: no grid")
    add("--sample_steps", type=integer(1), default=50, help="evaluations of the network for each of them (DDIM)")
    add_dict_to_argparser(parser.add_argument_group("diffusion model"), model_and_diffusion_defaults())
    return parser.parse_args()


def build_loop(args: argparse.Namespace) -> TrainLoop:
    """Network, data and loop as the flags say; a conditional network's pictures have the first images' labels."""
    flags = args_to_dict(args, [*model_and_diffusion_defaults(), "image_channels"])
    augmentation = args_to_dict(args, ("random_flip", "random_crop"))
    source = open_part(args.dataset, args.data_dir, "train", args.image_size, args.image_channels, **augmentation)
    images = LabelledImages(source, range(len(source.names)) if args.class_cond else None)
    first = range(min(args.samples, len(images)))
    labels = torch.stack([images.labels(index)["y"] for index in first]) if args.class_cond and first else None
    samples = args.samples if labels is None else len(labels)
    model, diffusion = create_model_and_diffusion(
        **flags, num_classes=len(source.names), multiclass=not source.exclusive
    )
    own = {
        "model": model,
        "diffusion": diffusion,
        "data": EndlessBatches(
            images, args.batch_size, seed=args.seed + dist_util.rank(), num_workers=args.num_workers
        ),
        "schedule_sampler": create_named_schedule_sampler(args.schedule_sampler, diffusion),
        "precision": usable_precision(args.precision, dist_util.dev()) if args.precision else "",
        "observer": Monitor(flags, samples, args.sample_steps, labels, args.seed),
    }
    known = {**inspect.signature(Trainer).parameters, **inspect.signature(TrainLoop).parameters}
    return TrainLoop(**own, **args_to_dict(args, [name for name in known if hasattr(args, name) and name not in own]))


if __name__ == "__main__":
    run(main)
