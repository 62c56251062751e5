"""The pictures of a report: small copies for the page, a contact sheet, and the animation of one denoising."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dime.core.datasets import read_image
from dime.core.images import difference_map
from dime.core.report.data import ImageResult
from dime.core.results import FRAME_KINDS

QUALITY = 80
"""WebP's; at 128 pixels a face takes two to three kilobytes."""
STRIP_FRAMES = 12
STRIP_PIXELS = 96
SHEET_COLUMNS = 8
SHEET_PIXELS = 128
GIF_PIXELS = 128
GIF_FRAMES = 30
GIF_SECONDS = 5.0
GIF_PAUSE_MS = 1500

_GAP, _LABEL = 6, 88
_PAPER, _INK, _FAINT = "#ffffff", "#1c2430", "#66707d"


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """The image as a file of Pillow's format."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def embedded(image: Image.Image, quality: int = QUALITY) -> str:
    """The image as base64 of a WebP file."""
    return base64.b64encode(encoded(image, "WEBP", quality=quality)).decode("ascii")


def reduced(image: Image.Image, pixels: int) -> Image.Image:
    """The image with no side longer than `pixels`; smaller ones stay as they are."""
    image = image.copy()
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return image


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
    chosen = [paths[i] for i in evenly(len(paths), STRIP_FRAMES)]
    return _row([read_image(str(path)) for path in chosen], STRIP_PIXELS)


def contact_sheet(results: Sequence[ImageResult]) -> Image.Image:
    """Input, counterfactual and difference map below each other, eight images in a row of columns.

    Raises InputError for a damaged image.
    """
    cell = SHEET_PIXELS + _GAP
    columns = min(len(results), SHEET_COLUMNS)
    line = 3 * cell + 20
    sheet = Image.new("RGB", (_LABEL + columns * cell, -(-len(results) // columns) * line + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for index, result in enumerate(results):
        left, top = _LABEL + index % columns * cell, index // columns * line + _GAP
        x, cf = _pair(result)
        named = {"input": x, "counter-\nfactual": cf, "difference": difference_image(result)}
        draw.text((left, top), _caption(result), _FAINT, font)
        for k, (name, image) in enumerate(named.items()):
            sheet.paste(_square(image, SHEET_PIXELS), (left, top + 18 + k * cell))
            if index % columns == 0:
                draw.multiline_text((_GAP * 2, top + 18 + k * cell + SHEET_PIXELS // 2 - 8), name, _INK, font)
    return sheet


def _caption(result: ImageResult) -> str:
    info = result.info
    if "orig_conf" in info and "cf_conf" in info:
        return f"{result.pair.id}:  {info['orig_conf']:.2f} to {info['cf_conf']:.2f}"
    return f"{result.pair.id}"


def denoising_animation(result: ImageResult) -> bytes:
    """A GIF of the input, z_t and x_t side by side: at most 30 of the saved steps, at the end the counterfactual.

    Takes five seconds, then rests. Raises InputError for a damaged image.
    """
    x, cf = _pair(result)
    films = [result.frames[kind] for kind in reversed(FRAME_KINDS) if kind in result.frames]
    steps = evenly(min(map(len, films)), GIF_FRAMES)
    frames = [[x, *(read_image(str(film[step])) for film in films)] for step in steps] + [[x, *(cf for _ in films)]]
    duration = max(round(1000 * GIF_SECONDS / len(steps)), 20)
    first, *rest = (_row(f, GIF_PIXELS, _GAP).quantize(256, method=Image.Quantize.MEDIANCUT) for f in frames)
    durations = [duration] * len(steps) + [GIF_PAUSE_MS]
    return encoded(first, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _pair(result: ImageResult) -> tuple[Image.Image, Image.Image]:
    return read_image(str(result.pair.original)), read_image(str(result.pair.counterfactual))


def _row(images: Sequence[Image.Image], pixels: int, gap: int = 0) -> Image.Image:
    """Squares side by side."""
    whole = Image.new("RGB", ((pixels + gap) * len(images) - gap, pixels), _PAPER)
    for index, image in enumerate(images):
        whole.paste(_square(image, pixels), (index * (pixels + gap), 0))
    return whole


def _square(image: Image.Image, pixels: int) -> Image.Image:
    return image.resize((pixels, pixels), Image.Resampling.LANCZOS)
