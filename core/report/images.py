"""The pictures of a report: small copies for the page, a contact sheet, and the animation of one denoising."""

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dime.core.datasets import read_image
from dime.core.images import difference_map, encoded
from dime.core.report.data import ImageResult
from dime.core.results import FRAME_KINDS

STRIP_FRAMES, STRIP_PIXELS = 12, 96
SHEET_COLUMNS, SHEET_PIXELS = 8, 128
GIF_FRAMES, GIF_PIXELS, GIF_MS, GIF_PAUSE_MS = 30, 128, 5000, 1500
GAP, LABEL, PAPER = 6, 88, "#ffffff"


def embedded(image: Image.Image, pixels: int | None = None, quality: int = 80) -> str:
    """The image as base64 of a WebP file, reduced to sides of at most `pixels`; never enlarged.

    quality: WebP's; at 80 and 128 pixels a face takes two to three kilobytes.
    """
    if pixels is not None:
        image = image.copy()
        image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return base64.b64encode(encoded(image, ".webp", quality=quality)).decode("ascii")


def difference_image(result: ImageResult) -> Image.Image:
    """The saved difference map; made from the saved images where a tree has none. Raises InputError."""
    if result.difference is not None:
        return read_image(str(result.difference))
    x, cf = _pair(result)
    return Image.fromarray(difference_map(np.asarray(x), np.asarray(cf.resize(x.size))))


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` of the indices below `count`, evenly spaced, first and last among them."""
    return list(range(count)) if count <= limit else [round(i) for i in np.linspace(0, count - 1, limit)]


def film_strip(paths: Sequence[Path]) -> Image.Image:
    """Some of the frames, from the first to the last, side by side in one image. Raises InputError."""
    chosen = [read_image(str(paths[i])) for i in evenly(len(paths), STRIP_FRAMES)]
    return _row(chosen, STRIP_PIXELS)


def contact_sheet(results: Sequence[ImageResult]) -> Image.Image:
    """Input, counterfactual and difference map below each other, eight images in a row of columns.

    Raises InputError for a damaged image.
    """
    cell = SHEET_PIXELS + GAP
    columns, line = min(len(results), SHEET_COLUMNS), 3 * cell + 20
    sheet = Image.new("RGB", (LABEL + columns * cell, -(-len(results) // columns) * line + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, result in enumerate(results):
        left, top = LABEL + index % columns * cell, index // columns * line + GAP
        caption, info = f"{result.pair.id}", result.info
        if "orig_conf" in info and "cf_conf" in info:
            caption += f":  {info['orig_conf']:.2f} to {info['cf_conf']:.2f}"
        draw.text((left, top), caption, "#66707d", font)
        images = [*_pair(result), difference_image(result)]
        for image, name in zip(images, ("input", "counter-\nfactual", "difference"), strict=True):
            top += 18 if image is images[0] else cell
            sheet.paste(_square(image, SHEET_PIXELS), (left, top))
            if index % columns == 0:
                draw.multiline_text((GAP * 2, top + SHEET_PIXELS // 2 - 8), name, "#1c2430", font)
    return sheet


def denoising_animation(result: ImageResult) -> bytes:
    """A GIF of the input, z_t and x_t side by side: at most 30 of the saved steps, at the end the counterfactual.

    Takes five seconds, then rests. Raises InputError for a damaged image.
    """
    x, cf = _pair(result)
    films = [result.frames[kind] for kind in reversed(FRAME_KINDS) if kind in result.frames]
    steps = evenly(min(map(len, films)), GIF_FRAMES)
    frames = [[x, *(read_image(str(film[step])) for film in films)] for step in steps] + [[x, *(cf for _ in films)]]
    first, *rest = (_row(f, GIF_PIXELS, GAP).quantize(256, method=Image.Quantize.MEDIANCUT) for f in frames)
    durations = [max(round(GIF_MS / len(steps)), 20)] * len(steps) + [GIF_PAUSE_MS]
    return encoded(first, ".gif", save_all=True, append_images=rest, duration=durations, loop=0)


def _pair(result: ImageResult) -> tuple[Image.Image, Image.Image]:
    return read_image(str(result.pair.original)), read_image(str(result.pair.counterfactual))


def _row(images: Sequence[Image.Image], pixels: int, gap: int = 0) -> Image.Image:
    """Squares side by side."""
    whole = Image.new("RGB", ((pixels + gap) * len(images) - gap, pixels), PAPER)
    for index, image in enumerate(images):
        whole.paste(_square(image, pixels), (index * (pixels + gap), 0))
    return whole


def _square(image: Image.Image, pixels: int) -> Image.Image:
    return image.resize((pixels, pixels), Image.Resampling.LANCZOS)
