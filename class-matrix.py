"""One picture for all classes: what would turn each into each other? (OUTPUT_PATH/class-matrix.png)

A row for each class: its first image that the classifier recognises, in the diagonal; its counterfactuals in the
columns of their targets, in a red frame where the target was not reached. Flags are those of main.py.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from dime.core.arithmetic import keep_freed_memory
from dime.core.cli import run, say, select_device
from dime.core.config import parse_config
from dime.core.errors import InputError
from dime.core.images import encoded, input_to_uint8, to_hwc, to_image, to_uint8
from dime.core.job.setup import Setup, set_up
from dime.core.metrics.scripts import write_file
from dime.core.report.images import GAP, PAPER

CELL, MARGIN = 64, 22


def main() -> None:
    """Explain an image of each class to all classes, and draw."""
    config = parse_config(__doc__.splitlines()[0])
    keep_freed_memory()
    setup = set_up(config, select_device(config.gpu))
    names = setup.question.classes
    if not names or setup.question.labels is None:
        raise InputError("a matrix of classes needs --decision multiclass, and images whose classes are known")
    ids = first_of_each_class(setup)
    batch, columns, reached = setup.batch(ids), [], []
    for target in tqdm(range(len(names)), unit="class", leave=False, disable=None):
        result = setup.explainer.explain(replace(batch, target=torch.full_like(batch.label, target)))
        asked = (result.pred != target).view(-1, 1, 1, 1)
        columns.append(to_hwc(torch.where(asked, to_uint8(result.cf), input_to_uint8(batch.x))))
        reached.append(result.flipped.tolist())
    path = Path(config.output_path, "class-matrix.png")
    write_file(path, encoded(matrix(np.stack(columns, axis=1), np.array(reached).T, names), ".png", optimize=True))
    asked = len(ids) * (len(ids) - 1)
    say(f"{path}: {np.sum(reached) - len(ids)} of {asked} counterfactuals reached their targets")


def first_of_each_class(setup: Setup) -> list[int]:
    """The id of the first image of every class that is classified as it. Raises InputError where there is none."""
    found: dict[int, int] = {}
    for id in setup.selection:
        label = int(setup.question.labels[id])
        if label not in found:
            with torch.no_grad():
                logits = setup.explainer.classifier(setup.source.load(id)[None].to(setup.device))
            if int(setup.question.decision.predict(logits)) == label:
                found[label] = id
    if lacking := [name for number, name in enumerate(setup.question.classes) if number not in found]:
        looked = f"the {len(setup.selection)} images looked at (--num_batches)"
        raise InputError(f"class {lacking[0]}: the classifier recognises none of {looked} as it, and labelled so")
    return [found[number] for number in sorted(found)]


def matrix(cells: np.ndarray, reached: np.ndarray, names: list[str]) -> Image.Image:
    """The picture of 8-bit images (K, K, H, W, C); reached: (K, K) bool, names: the classes'."""
    pitch = CELL + GAP
    sheet = Image.new("RGB", (MARGIN + len(cells) * pitch,) * 2, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, name in enumerate(names):
        middle = MARGIN + row * pitch + CELL // 2
        draw.text((MARGIN // 2, middle), name, "#1c2430", font, anchor="mm")
        draw.text((middle, MARGIN // 2), name, "#1c2430", font, anchor="mm")
        for column in range(len(names)):
            left, top = MARGIN + column * pitch, MARGIN + row * pitch
            colour = "#2a6fdb" if row == column else PAPER if reached[row, column] else "#d02020"
            draw.rectangle((left - 2, top - 2, left + CELL + 1, top + CELL + 1), fill=colour)
            sheet.paste(to_image(cells[row, column]).resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top))
    return sheet


if __name__ == "__main__":
    run(main)
