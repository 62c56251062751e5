"""Train an attribute classifier on CelebA: the DenseNet-121 to be explained, a small CNN, or the metrics' oracle.

Started like celeba-train-diffusion.py: by python, mpiexec or torchrun; run again to go on. docs/training.md has more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dime.core.cli import Parser, boolean, integer, number, run
from dime.core.datasets import ATTRIBUTES, CelebA
from dime.core.errors import InputError
from dime.core.training.classifier import ClassifierTraining, positive_weights
from dime.core.training.classifier_files import ARCHITECTURES, initialise_oracle
from dime.core.training.data import own_share, training_batches
from dime.core.training.script import Progress, add_training_flags, attribute_list, train
from guided_diffusion import dist_util
from guided_diffusion.trainer import PRECISIONS, usable_precision


def main() -> None:
    """Train until the flags or a signal end it."""
    train(parse_args(), build_training)


def parse_args() -> argparse.Namespace:
    """The flags of the command line, each one checked as far as it can be alone."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_training_flags(parser.add_argument_group("data, output and machine"))
    add = parser.add_argument_group("training").add_argument
    add("--arch", choices=tuple(ARCHITECTURES), default="densenet", help="which network")
    add("--attributes", type=attribute_list, default=tuple(range(40)), metavar="NAMES", help="names; unset: all 40")
    add("--image_size", type=integer(16), default=128, help="side of the images in pixels")
    add("--batch_size", type=integer(1), default=64, help="images of one update, in each process")
    add("--epochs", type=integer(1), default=10, help="passes over the training images")
    add("--lr", type=number(0), default=1e-4, help="learning rate of AdamW")
    add("--weight_decay", type=number(0), default=0.01, help="weight decay of AdamW")
    add("--pos_weight", type=boolean, default=False, help="positive and negative labels of an attribute weigh alike")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the network; the weights stay fp32")
    add("--random_crop", type=boolean, default=False, help="crop 95 to 100 %% of the area at random")
    add("--log_interval", type=integer(1), default=10, help="updates between two lines of the log")
    add("--save_interval", type=integer(1), default=1000, help="updates between two files to resume from")
    add("--eval_interval", type=integer(0), default=0, help="updates between two validations; 0: one for each pass")
    add("--weights-path", default="models/resnet50_vggface2_model.pkl", help="VGGFace2 weights the oracle starts from")
    return parser.parse_args()


def build_training(args: argparse.Namespace) -> ClassifierTraining:
    """Network, data and training as the flags say."""
    architecture = ARCHITECTURES[args.arch]
    network = architecture.build(len(args.attributes))
    if args.arch == "oracle":
        initialise_oracle(network, args.weights_path)
    data = (args.data_dir, args.image_size, args.batch_size, args.attributes)
    batches = training_batches(*data, seed=args.seed, num_workers=args.num_workers, random_crop=args.random_crop)
    validation = own_share(CelebA(args.data_dir, "val", args.image_size), args.attributes)
    if not len(validation):
        raise InputError(f"{args.data_dir}: fewer validation images than processes; start fewer")
    names = [ATTRIBUTES[attribute] for attribute in args.attributes]
    labels = batches.dataset.dataset.table[names].to_numpy()  # of all processes' images
    last_update = args.epochs * batches.batches_per_pass
    return ClassifierTraining(
        network,
        architecture,
        names,
        batches,
        validation,
        positive_weights(labels) if args.pos_weight else None,
        Path(args.output_path),
        last_update=min(last_update, args.max_steps or last_update),
        eval_interval=args.eval_interval or batches.batches_per_pass,
        save_interval=args.save_interval,
        log_interval=args.log_interval,
        lr=args.lr,
        weight_decay=args.weight_decay,
        precision=usable_precision(args.precision, dist_util.dev()),
        grad_clip=args.grad_clip,
        observer=Progress(),
    )


if __name__ == "__main__":
    run(main)
