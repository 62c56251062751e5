"""Digits whose true counterfactuals are known: MNIST's, and each with thicker, thinner or otherwise leaning strokes.

Of the digits in MNIST's order, the third that has least of the property is one class, the third that has most is the
other. A digit's counterfactual has as much of it as the digit of the mirrored rank: the thickest becomes the thinnest.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dime.core.cli import Parser, integer, run, say
from dime.core.digits import list_mnist
from dime.core.errors import InputError
from dime.core.folders import LABEL, Source
from dime.core.strokes import CHANGES, Change, alike
from dime.core.truth.world import TRUTH_FOLDER


def main() -> None:
    """Write train/, of digits and their counterfactuals, val/, of digits alone, and truth/, of what val's would be."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", required=True, help="MNIST's files, as for --dataset mnist")
    add("--output_path", type=Path, required=True, help="folder to make, with train/, val/ and truth/; new or empty")
    add("--change", choices=tuple(CHANGES), default="thickness", help="the property that counterfactuals change")
    add("--num_train", type=integer(3), default=6000, help="training digits to look at")
    add("--num_val", type=integer(3), default=1000, help="test digits to look at")
    args = parser.parse_args()
    if args.output_path.exists() and any(args.output_path.iterdir()):
        raise InputError(f"{args.output_path}: is not empty; give a new folder, or remove it")
    change = CHANGES[args.change]
    train, test = list_mnist(args.data_dir, use_train=True), list_mnist(args.data_dir)
    known = np.sort([change.measure(digit) for digit in train.pixels[: args.num_train]])
    counts = [
        write(train, known, change, args.num_train, args.output_path / "train", args.output_path / "train"),
        write(test, known, change, args.num_val, args.output_path / "val", args.output_path / TRUTH_FOLDER),
    ]
    low, high = np.quantile(known, (1 / 3, 2 / 3))
    names = f"{change.classes[0]} up to {low:.2f}, {change.classes[1]} from {high:.2f}"
    say(f"{args.output_path}: {args.change}, {names}; {counts[0]} digits to learn from, {counts[1]} to explain")


def write(digits: Source, known: np.ndarray, change: Change, count: int, folder: Path, others: Path) -> int:
    """Write those of the first `count` digits that belong to a class to a folder, and their counterfactuals to another;
    returns how many they are. Left out is a digit whose counterfactual is not of the other class, or came apart.

    known: the property of the training digits, sorted.
    """
    low, high = np.quantile(known, (1 / 3, 2 / 3))
    written = 0
    for number, digit in enumerate(tqdm(digits.pixels[:count], unit="digit", leave=False, disable=None)):
        has = change.measure(digit)
        if low < has < high:
            continue
        mirrored = np.quantile(known, 1 - np.searchsorted(known, has) / len(known))
        other, label = change.changed(digit, float(mirrored) - has), int(has >= high)
        reached = change.measure(other) <= low if label else change.measure(other) >= high
        if not reached or not alike(digit, other):
            continue
        # to explain, it lies beside the digits of its own class; to learn from, among those of the other
        labels = label, 1 - label if folder == others else label
        for image, place, where in zip((digit, other), (folder, others), labels, strict=True):
            path = place / change.classes[where] / f"{number:05d}-{digits.table[LABEL].iat[number]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        written += 1
    return written


if __name__ == "__main__":
    run(main)
