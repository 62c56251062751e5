"""Draw a CelebA-like data set whose truth is known: every face can be drawn again with one attribute changed."""

import os
import time

from dime.core import cli
from dime.core.drawn_faces import Correlation
from dime.core.drawn_faces.drawing import contact_sheet, counterfactual_sheet
from dime.core.drawn_faces.folder import Plan, write_folder
from dime.core.errors import InputError


def main() -> None:
    """Draw the folder and the sheets that are asked for."""
    parser = cli.Parser(description=__doc__)
    add, count, workers = parser.add_argument, cli.integer(0, 999_999), min(os.cpu_count() or 1, 8)
    planting = (
        "plant a shortcut: FOLLOWER has LEADER's value with probability P, as in Smiling:Eyeglasses=0.9; may be given "
        "several times"
    )
    drawing = "processes that draw; the pictures do not depend on it"
    add("--output_path", required=True, help="folder to make, in CelebA's layout; new or empty")
    add("--num_train", type=count, default=4000, help="faces of the train partition")
    add("--num_val", type=count, default=1000, help="faces of the val partition")
    add("--num_test", type=count, default=0, help="faces of the test partition")
    add("--seed", type=cli.integer(0), default=0, help="another seed gives other faces")
    correlate = {"type": Correlation.parse, "action": "append", "default": [], "metavar": "LEADER:FOLLOWER=P"}
    add("--correlate", **correlate, help=planting)
    add("--num_workers", type=cli.integer(1), default=workers, help=drawing)
    add("--contact_sheet", default="", help="PNG to write: the first faces, as a network sees them")
    add("--counterfactual_sheet", default="", help="PNG to write: some faces beside their true counterfactuals")
    args = parser.parse_args()
    plan = Plan(args.seed, args.num_train, args.num_val, args.num_test, tuple(args.correlate))
    start = time.perf_counter()
    if write_folder(args.output_path, plan, args.num_workers, progress=True):
        seconds = time.perf_counter() - start
        speed = 60 * len(plan) / seconds
        cli.say(f"{args.output_path}: {len(plan)} faces in {seconds:.0f} s, {speed:.0f} per minute")
    else:
        cli.say(f"{args.output_path}: already there")
    sheets = (args.contact_sheet, contact_sheet, 60), (args.counterfactual_sheet, counterfactual_sheet, 4)
    for path, sheet, count in sheets:
        if path:
            try:
                sheet([plan.face(i) for i in range(min(count, len(plan)))]).save(path)
            except (OSError, ValueError) as error:
                problem = f"cannot be written ({error}); give a .png in an existing folder"
                raise InputError(f"{path}: {problem}") from None
            cli.say(f"{path}: written")


if __name__ == "__main__":
    cli.run(main)
