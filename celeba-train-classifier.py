"""Train a classifier on CelebA or other images: the DenseNet-121 to be explained, a small CNN, or the metrics' oracle.

Started like celeba-train-diffusion.py: by python, mpiexec or torchrun; run again to go on. docs/training.md has more.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from dime.core.cli import Parser, boolean, integer, number, number_list, run
from dime.core.errors import InputError
from dime.core.networks.features import load_vggface2
from dime.core.training.classifier import ARCHITECTURES, ClassifierTraining, positive_weights
from dime.core.training.script import LabelledImages, Progress, add_training_flags, columns_of, open_part, train
from guided_diffusion import dist_util
from guided_diffusion.image_datasets import EndlessBatches
from guided_diffusion.script_util import args_to_dict
from guided_diffusion.trainer import PRECISIONS, usable_precision


def main() -> None:
    """Train until the flags or a signal end it."""
    train(parse_args(), build_training)


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_training_flags(parser.add_argument_group("data, output and machine"))
    add = parser.add_argument_group("training").add_argument
    add("--arch", choices=tuple(ARCHITECTURES), default="densenet", help="which network")
    add(
        "--widths",
        type=number_list(1, int),
        default=(),
        help="channels of each level of --arch small, such as 32,64,128",
    )
    add("--decision", choices=("binary", "multiclass"), default="binary", help="on each attribute, or between classes")
    add("--attributes", default="", metavar="NAMES", help="names separated by commas; unset: all of the data set")
    add("--image_size", type=integer(16), default=128, help="side of the images in pixels")
    add("--batch_size", type=integer(1), default=64, help="images of one update, in each process")
    add("--epochs", type=integer(1), default=10, help="passes over the training images")
    add("--lr", type=number(0), default=1e-4, help="learning rate of AdamW")
    add("--weight_decay", type=number(0), default=0.01, help="weight decay of AdamW")
    add("--pos_weight", type=boolean, default=False, help="positive and negative labels of an attribute weigh alike")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the network; the weights stay fp32")
    add("--log_interval", type=integer(1), default=10, help="updates between two lines of the log")
    add("--save_interval", type=integer(1), default=1000, help="updates between two files to resume from")
    add("--eval_interval", type=integer(0), default=0, help="updates between two validations; 0: one for each pass")
    add("--weights-path", default="models/resnet50_vggface2_model.pkl", help="VGGFace2 weights the oracle starts from")
    args = parser.parse_args()
    if args.image_channels == 1 and args.arch != "small":
        raise InputError(f"--image_channels 1: --arch {args.arch} sees colour, grey images too; leave it out")
    if args.widths and args.arch != "small":
        raise InputError(f"--widths: --arch {args.arch} has its own; leave it out")
    if args.decision == "multiclass" and (args.attributes or args.pos_weight):
        raise InputError("--attributes and --pos_weight choose and weigh attributes: not with --decision multiclass")
    return args


def build_training(args: argparse.Namespace) -> ClassifierTraining:
    """Network, data and training as the flags say."""
    place, exclusive = (args.dataset, args.data_dir), args.decision == "multiclass"
    augmentation = args_to_dict(args, ("random_flip", "random_crop"))
    images = open_part(*place, "train", args.image_size, args.image_channels, **augmentation)
    if images.exclusive != exclusive:
        found, wanted = ("classes", "multiclass") if images.exclusive else ("attributes", "binary")
        raise InputError(f"--decision {args.decision}: the images have {found}; give --decision {wanted}")
    class_names = images.names if exclusive else None
    lacking = set(range(len(images.names))) - set(images.targets(None)) if exclusive else ()
    if lacking:
        raise InputError(f"{args.data_dir}: there is no training image of class {images.names[min(lacking)]}")
    validation = open_part(*place, "val", args.image_size, args.image_channels, class_names)
    if args.dataset == "folder" and validation.folder == images.folder:
        raise InputError(f"{args.data_dir}: expected two folders in it, train and val, each with those of the classes")
    columns = columns_of(args.attributes, images.names)
    share = LabelledImages(validation, columns)
    if not len(share):
        raise InputError(f"{args.data_dir}: fewer validation images than processes; start fewer")
    seed = args.seed + dist_util.rank()
    batches = EndlessBatches(LabelledImages(images, columns), args.batch_size, seed=seed, num_workers=args.num_workers)

    shape = {"channels": 1} if args.image_channels == 1 else {}
    if args.widths:
        shape["widths"] = args.widths
    network = ARCHITECTURES[args.arch](len(columns), **shape)
    if args.arch == "oracle":
        network.trunk.load_state_dict(load_vggface2(args.weights_path, torch.device("cpu")).state_dict())
    labels = np.stack([images.targets(column) for column in columns], axis=1)  # of all processes' images
    last_update = args.epochs * batches.batches_per_pass
    return ClassifierTraining(
        network,
        [images.names[column] for column in columns],
        exclusive,
        batches,
        share,
        Path(args.output_path),
        pos_weight=positive_weights(labels) if args.pos_weight else None,
        last_update=min(last_update, args.max_steps or last_update),
        eval_interval=args.eval_interval or batches.batches_per_pass,
        precision=usable_precision(args.precision, dist_util.dev()),
        observer=Progress(),
        **args_to_dict(args, ("lr", "weight_decay", "grad_clip", "log_interval", "save_interval")),
    )


if __name__ == "__main__":
    run(main)
