"""One HTML file that shows experiments image by image, with a contact sheet and an animation beside it."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.cli import Parser, integer, run, say
from core.errors import InputError
from core.evaluation import oracle_logits
from core.html_report import Limits, render
from core.metric_cli import DEFAULT_BATCH_SIZE, DEFAULT_WORKERS, machine, write_file
from core.report_data import Experiment, ImageResult, attribute_changes, read_experiment
from core.report_images import contact_sheet, denoising_animation
from core.results import ResultTree


def main() -> None:
    """Read the experiments, then write the page, the sheet and the animation."""
    args = parse_arguments()
    names = dict.fromkeys(args.exp_name)
    experiments = [read_experiment(ResultTree(args.output_path, name)) for name in names]
    sheet_images, animated = sheet_order(experiments[0])[: args.contact_sheet], animated_image(experiments[0], args.gif)
    if args.oracle_path:
        experiments = with_changes(experiments, args)
    file = args.file or experiments[0].tree.report("report.html")
    page = render(experiments, Limits(args.max_images, args.film_strips, args.pixels), args.num_workers)
    save(file, page.encode())
    if sheet_images:
        buffer = io.BytesIO()
        contact_sheet(sheet_images).save(buffer, format="PNG", optimize=True)
        save(file.with_name("contact-sheet.png"), buffer.getvalue())
    if animated:
        save(file.with_name("denoising.gif"), denoising_animation(animated))
    else:
        say("No animation: no image of this experiment has saved steps (main.py --save_x_t True --save_z_t True).")


def parse_arguments() -> argparse.Namespace:
    """The flags."""
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
    add("--gpu", "--device", default="0", help="where the oracle runs: index of the CUDA GPU, or cpu")
    add("--batch-size", type=integer(1), default=DEFAULT_BATCH_SIZE, help="images that the oracle sees at once")
    add("--num-workers", type=integer(1), default=DEFAULT_WORKERS, help="threads that read and encode images")
    return parser.parse_args()


def with_changes(experiments: Sequence[Experiment], args: argparse.Namespace) -> list[Experiment]:
    """The experiments with the attributes that each counterfactual changes."""
    logits = oracle_logits(args.oracle_path, machine(args))
    return [replace(e, changes=attribute_changes(list(e.images.values()), logits)) for e in experiments]


def sheet_order(experiment: Experiment) -> list[ImageResult]:
    """Flips first, then by id."""
    return sorted(experiment.images.values(), key=lambda image: (not image.pair.flipped, image.pair.id))


def animated_image(experiment: Experiment, id: int | None) -> ImageResult | None:
    """The image that is animated; None when no image has saved steps. Raises InputError for one without them."""
    if id is None:
        return next((image for image in sheet_order(experiment) if image.frames), None)
    if id not in experiment.images or not experiment.images[id].frames:
        raise InputError(f"--gif {id}: {experiment.tree.exp_name} holds no saved steps of this image")
    return experiment.images[id]


def save(path: Path, content: bytes) -> None:
    """Write a file and say so."""
    write_file(path, content)
    say(f"{path}: {len(content) / 1e6:.1f} MB" if len(content) > 1e5 else f"{path}: {len(content) / 1e3:.0f} kB")


if __name__ == "__main__":
    run(main)
