"""From a face to its picture, where an attribute shows in it, and sheets of small pictures for a person to look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dime.core.drawn_faces import features, head
from dime.core.drawn_faces.face import DRAWN, Face, counterfactual, holds
from dime.core.drawn_faces.scene import Scene, Texture
from dime.core.photos import fitted

SIZE = (178, 218)
"""Width and height of CelebA's aligned pictures."""

LAYERS = (
    (head.paint_background, ""),
    (head.paint_clothes, ""),
    (head.paint_back_hair, "-Bald"),
    (head.paint_neck, ""),
    (head.paint_ears, ""),
    (head.paint_head, ""),
    (head.paint_age, "-Young"),
    (features.paint_eyes, ""),
    (head.paint_nose, ""),
    (head.paint_beard, "-No_Beard"),
    (features.paint_mouth, ""),
    (head.paint_mustache, "Mustache"),
    (features.paint_brows, ""),
    (head.paint_front_hair, "-Bald"),
    (head.paint_bangs, "Bangs -Bald"),
    (features.paint_glasses, "Eyeglasses"),
    (features.paint_hat, "Wearing_Hat"),
    (features.paint_earrings, "Wearing_Earrings"),
)
"""What is painted, from back to front, on which faces (a condition as in NATURAL)."""

TILE, ZOOM, MARGIN = 64, 2, 4


def draw(face: Face, size: tuple[int, int] = SIZE) -> Image.Image:
    """The picture of a face, RGB, `size` = (width, height). It depends on the face and the size alone."""
    scene = Scene(face, size)
    for paint, condition in LAYERS:
        if holds(condition, face.has):
            paint(scene)
    # the camera: exposure, white balance, a little grain; pixel by pixel, so that no attribute leaks elsewhere
    pixels, warmth = scene.pixels, 0.025 * face.white_balance
    pixels *= np.array([1 + warmth, 1, 1 - warmth], np.float32) * np.float32(face.exposure)
    grain = scene.random(Texture.GRAIN).standard_normal(pixels.shape[:2], np.float32)
    pixels += (face.grain / 255 * grain)[..., None]
    return Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def region(face: Face, name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Where the attribute `name` shows: the pixels that its counterfactual may change, (H, W) bool.

    These are the pixels in which draw(face) and draw(counterfactual(face, name)) differ, grown by one pixel.
    Raises InputError for an attribute that is not drawn.
    """
    return changed_pixels(draw(face, size), draw(counterfactual(face, name), size))


def changed_pixels(one: Image.Image, other: Image.Image) -> np.ndarray:
    """The pixels in which two drawings differ, grown by one pixel, (H, W) bool."""
    changed = Image.fromarray((np.asarray(one) != np.asarray(other)).any(2))
    return np.asarray(changed.convert("L").filter(ImageFilter.MaxFilter(3))) > 0


def contact_sheet(faces: Sequence[Face], columns: int = 10) -> Image.Image:
    """The faces at 64x64, enlarged, in rows."""
    return _sheet([[draw(face) for face in faces[i : i + columns]] for i in range(0, len(faces), columns)])


def counterfactual_sheet(faces: Sequence[Face], names: Sequence[str] = DRAWN) -> Image.Image:
    """One row per attribute: each face, its true counterfactual, and the pixels that may change, shown in white."""
    rows = []
    for row, name in enumerate(names):
        pictures = []
        for face in faces[row % len(faces) :] + faces[: row % len(faces)]:
            one, other = draw(face), draw(counterfactual(face, name))
            pictures += [one, other, Image.fromarray(np.uint8(255) * changed_pixels(one, other)).convert("RGB")]
        rows.append(pictures)
    return _sheet(rows, names)


def _sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = ()) -> Image.Image:
    tile, left = TILE * ZOOM, 150 if titles else 0
    cell = tile + MARGIN
    sheet = Image.new("RGB", (left + max(map(len, rows)) * cell + MARGIN, len(rows) * cell + MARGIN), (250, 250, 250))
    for i, row in enumerate(rows):
        y = MARGIN + i * cell
        if titles:
            title = titles[i].replace("_", " ")
            ImageDraw.Draw(sheet).text((8, y + tile // 2 - 7), title, (40, 40, 48), ImageFont.load_default())
        for j, picture in enumerate(row):
            enlarged = fitted(picture, TILE).resize((tile, tile), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left + MARGIN + j * cell, y))
    return sheet
