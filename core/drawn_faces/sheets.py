"""Sheets of small pictures, for a person to look at: faces, and faces beside their true counterfactuals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dime.core.drawn_faces.attributes import DRAWN
from dime.core.drawn_faces.drawing import draw, region
from dime.core.drawn_faces.face import Face, counterfactual

TILE = 64
ZOOM = 2
MARGIN = 4
PAPER = (250, 250, 250)
INK = (40, 40, 48)


def thumbnail(picture: Image.Image, size: int = TILE) -> Image.Image:
    """What a network sees of a 178x218 picture: the shorter side resized to `size`, the middle cut out."""
    height = int(size * picture.height / picture.width)
    top = round((height - size) / 2)
    small = picture.resize((size, height), Image.Resampling.BILINEAR)
    return small.crop((0, top, size, top + size))


def contact_sheet(faces: Sequence[Face], columns: int = 10) -> Image.Image:
    """The faces at 64x64, enlarged, in rows."""
    rows = [[draw(face) for face in faces[i : i + columns]] for i in range(0, len(faces), columns)]
    return _sheet(rows)


def counterfactual_sheet(faces: Sequence[Face], names: Sequence[str] = DRAWN) -> Image.Image:
    """One row per attribute: each face, its true counterfactual, and the pixels that may change, shown in white."""
    rows = []
    for row, name in enumerate(names):
        pictures = []
        for face in faces[row % len(faces) :] + faces[: row % len(faces)]:
            truth = Image.fromarray(np.uint8(255) * region(face, name)).convert("RGB")
            pictures += [draw(face), draw(counterfactual(face, name)), truth]
        rows.append(pictures)
    return _sheet(rows, names)


def _sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = ()) -> Image.Image:
    tile = TILE * ZOOM
    left = 150 if titles else 0
    columns = max(len(row) for row in rows)
    size = left + columns * (tile + MARGIN) + MARGIN, len(rows) * (tile + MARGIN) + MARGIN
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        y = MARGIN + i * (tile + MARGIN)
        if titles:
            pen.text((8, y + tile // 2 - 7), titles[i].replace("_", " "), INK, ImageFont.load_default())
        for j, picture in enumerate(row):
            enlarged = thumbnail(picture).resize((tile, tile), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left + MARGIN + j * (tile + MARGIN), y))
    return sheet
