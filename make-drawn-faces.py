"""Draw a CelebA-like data set whose truth is known: every face can be drawn again with one attribute changed."""

from __future__ import annotations

import os
import time
from argparse import ArgumentTypeError, Namespace

from PIL import Image

from dime.core import cli
from dime.core.drawn_faces import Correlation
from dime.core.drawn_faces.drawing import contact_sheet, counterfactual_sheet
from dime.core.drawn_faces.folder import Plan, write_folder
from dime.core.errors import InputError

SHEET_FACES = 60
PAIR_FACES = 4


def correlation(text: str) -> Correlation:
    """Flag type: a planted correlation, LEADER:FOLLOWER=P."""
    try:
        return Correlation.parse(text)
    except InputError as error:
        raise ArgumentTypeError(str(error)) from None


def parse_arguments() -> Namespace:
    """The flags."""
    parser = cli.Parser(description=__doc__)
    count = cli.integer(0, 999_999)
    parser.add_argument("--output_path", required=True, help="folder to make, in CelebA's layout; new or empty")
    parser.add_argument("--num_train", type=count, default=4000, help="faces of the train partition")
    parser.add_argument("--num_val", type=count, default=1000, help="faces of the val partition")
    parser.add_argument("--num_test", type=count, default=0, help="faces of the test partition")
    parser.add_argument("--seed", type=cli.integer(0), default=0, help="another seed gives other faces")
    parser.add_argument(
        "--correlate",
        type=correlation,
        action="append",
        default=[],
        metavar="LEADER:FOLLOWER=P",
        help="plant a shortcut: FOLLOWER has LEADER's value with probability P, as in Smiling:Eyeglasses=0.9; "
        "may be given several times",
    )
    parser.add_argument(
        "--num_workers",
        type=cli.integer(1),
        default=min(os.cpu_count() or 1, 8),
        help="processes that draw; the pictures do not depend on it",
    )
    parser.add_argument("--contact_sheet", default="", help="PNG to write: the first faces, as a network sees them")
    parser.add_argument(
        "--counterfactual_sheet", default="", help="PNG to write: some faces beside their true counterfactuals"
    )
    return parser.parse_args()


def main() -> None:
    """Draw the folder and the sheets that are asked for."""
    args = parse_arguments()
    plan = Plan(args.seed, args.num_train, args.num_val, args.num_test, tuple(args.correlate))
    start = time.perf_counter()
    if write_folder(args.output_path, plan, args.num_workers, progress=True):
        seconds = time.perf_counter() - start
        speed = 60 * len(plan) / seconds
        cli.say(f"{args.output_path}: {len(plan)} faces in {seconds:.0f} s, {speed:.0f} per minute")
    else:
        cli.say(f"{args.output_path}: already there")
    if args.contact_sheet:
        save_sheet(contact_sheet([plan.face(i) for i in range(min(SHEET_FACES, len(plan)))]), args.contact_sheet)
    if args.counterfactual_sheet:
        faces = [plan.face(i) for i in range(min(PAIR_FACES, len(plan)))]
        save_sheet(counterfactual_sheet(faces), args.counterfactual_sheet)


def save_sheet(sheet: Image.Image, path: str) -> None:
    """Write a sheet in the format that its name ends with."""
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error}); give a .png in an existing folder") from None
    cli.say(f"{path}: written")


if __name__ == "__main__":
    cli.run(main)
