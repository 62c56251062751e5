"""One HTML file that shows experiments image by image, with a contact sheet and an animation beside it."""

from pathlib import Path

from dime.core.cli import Parser, integer, run, say
from dime.core.errors import InputError
from dime.core.images import encoded
from dime.core.metrics.mnac import oracle_logits
from dime.core.metrics.scripts import add_machine_flags, machine, write_file
from dime.core.report.data import read_experiment, with_changes
from dime.core.report.images import contact_sheet, denoising_animation
from dime.core.report.page import Limits, chosen_ids, render
from dime.core.results import ResultTree


def main() -> None:
    """Read the experiments, make the page, the sheet and the animation, then write them."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("output_path", type=Path, help="folder of the result tree (main.py's --output_path)")
    add("exp_name", nargs="+", help="the experiments to show side by side (main.py's --exp_name)")
    add("--file", type=Path, help="the page to write; unset: report.html in the first experiment's folder")
    add("--max-images", type=integer(1), default=Limits.images, help="images shown at most, those with the lowest ids")
    add("--film-strips", type=integer(0), default=Limits.strips, help="first images whose saved steps are embedded")
    add("--pixels", type=integer(16, 1024), default=Limits.pixels, help="longest side of an embedded image")
    add("--contact-sheet", type=integer(0), default=16, help="images on contact-sheet.png, flips first; 0 for none")
    add("--gif", type=integer(0), help="id of the image in denoising.gif; unset: the first flip with saved steps")
    add("--oracle-path", type=Path, help="the attribute oracle: shows which attributes each counterfactual changes")
    add_machine_flags(parser)
    args = parser.parse_args()
    limits = Limits(args.max_images, args.film_strips, args.pixels)
    experiments = [read_experiment(ResultTree(args.output_path, name)) for name in dict.fromkeys(args.exp_name)]
    first, name = experiments[0], experiments[0].tree.exp_name
    flips_first = sorted(first.images.values(), key=lambda image: (not image.pair.flipped, image.pair.id))
    filmed = [image for image in flips_first if image.frames and args.gif in (None, image.pair.id)]
    if args.gif is not None and not filmed:
        raise InputError(f"--gif {args.gif}: {name} holds no saved steps of this image")
    if args.oracle_path:
        logits, (ids, _) = oracle_logits(args.oracle_path, machine(args)), chosen_ids(experiments, limits)
        experiments = [with_changes(experiment, ids, logits) for experiment in experiments]
    page = render(experiments, limits, args.num_workers)
    file = args.file or first.tree.report("report.html")
    contents = {file.name: page.encode(errors="replace")}
    if args.contact_sheet:
        sheet = contact_sheet(flips_first[: args.contact_sheet])
        contents["contact-sheet.png"] = encoded(sheet, ".png", optimize=True)
    if filmed:
        contents["denoising.gif"] = denoising_animation(filmed[0])
    else:
        say(f"{name} has no saved steps to animate (main.py --save_x_t True --save_z_t True saves them).")
    for name, content in contents.items():
        try:
            write_file(file.with_name(name), content)
        except InputError as error:
            raise InputError(f"{error}; --file PAGE writes them elsewhere") from None
        say(f"{file.with_name(name)}: {len(content) / 1e6:.2f} MB")


if __name__ == "__main__":
    run(main)
