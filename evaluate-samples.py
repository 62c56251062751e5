"""Measure sets of generated images: Inception Score, FID, sFID, precision, recall, KID.

A set is a folder of image files or an .npz, of sample-diffusion.py or in guided-diffusion's layout (arr_0). Without a
reference there is the Inception Score alone. Numbers are those of pytorch-fid and torch-fidelity.
"""

import json
from pathlib import Path

from dime.core.cli import Parser, boolean, integer, run
from dime.core.datasets import DATASETS, PARTITIONS
from dime.core.errors import InputError
from dime.core.metrics.scripts import add_machine_flags, machine, write_file
from dime.core.samples import FeatureNetwork, open_images, table
from dime.core.training.script import open_part


def main() -> None:
    """Measure every set and print one table."""
    parser = Parser(description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add("samples", nargs="+", help="folders or .npz files of generated images")
    add("--reference", default="", help="folder or .npz of real images")
    add("--dataset", choices=tuple(DATASETS), default="", help="or a data set of real images, in --data_dir")
    add("--data_dir", default="", help="folder of the data set")
    add("--partition", choices=tuple(PARTITIONS), default="val", help="of the data set, where it has parts")
    add("--features", default="inception", help="inception, or a classifier: a file, or KIND:NAME as in main.py")
    add("--inception_weights", type=Path, help="pytorch-fid's; unset: models/, the torch hub cache, or a download")
    add("--trust_classifier", type=boolean, default=False, help="load a classifier whose file is a program")
    add("--splits", type=integer(1), default=10, help="parts for the Inception Score")
    add("--neighbours", type=integer(1), default=3, help="k, of precision and recall")
    add("--kid_subsets", type=integer(1), default=100, help="random subsets for KID")
    add("--kid_subset_size", type=integer(2), default=1000, help="images in each of them")
    add_machine_flags(parser)
    add("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    if args.dataset and args.reference:
        raise InputError("--reference and --dataset both name the real images; give one of them")
    sets, reference = [open_images(path) for path in args.samples], None
    if args.dataset:
        size, channels = sets[0].load(0).shape[-1], sets[0].channels
        reference = open_part(args.dataset, args.data_dir, args.partition, size, channels)
    elif args.reference:
        reference = open_images(args.reference)
    network = FeatureNetwork(args.features, machine(args), args.inception_weights, args.trust_classifier)
    known = network(reference) if reference else None
    settings = args.splits, args.neighbours, args.kid_subsets, args.kid_subset_size
    columns = {images.folder: network.figures(network(images), known, *settings) for images in sets}
    print(table(columns), end="")
    if args.json:
        write_file(args.json, json.dumps(columns, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
