"""From a face to its picture, and where an attribute shows in it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from dime.core.drawn_faces import backdrop, features, hair, head, wear
from dime.core.drawn_faces.attributes import holds
from dime.core.drawn_faces.canvas import Canvas
from dime.core.drawn_faces.face import Face, counterfactual
from dime.core.drawn_faces.geometry import Pose
from dime.core.drawn_faces.scene import Scene, Texture

SIZE = (178, 218)
"""Width and height of CelebA's aligned pictures."""

LAYERS = (
    (backdrop.paint_background, ""),
    (backdrop.paint_clothes, ""),
    (hair.paint_back_hair, "-Bald"),
    (backdrop.paint_neck, ""),
    (head.paint_ears, ""),
    (head.paint_head, ""),
    (features.paint_eyes, ""),
    (head.paint_nose, ""),
    (hair.paint_beard, "-No_Beard"),
    (features.paint_mouth, ""),
    (hair.paint_mustache, "Mustache"),
    (features.paint_brows, ""),
    (hair.paint_front_hair, "-Bald"),
    (wear.paint_glasses, "Eyeglasses"),
    (wear.paint_hat, "Wearing_Hat"),
    (wear.paint_earrings, "Wearing_Earrings"),
)
"""What is painted, from back to front, on which faces (a condition as in attributes.NATURAL)."""


def draw(face: Face, size: tuple[int, int] = SIZE) -> Image.Image:
    """The picture of a face, RGB, `size` = (width, height). It depends on the face and the size alone."""
    scene = Scene(face, Canvas(size), Pose(face, size))
    for paint, condition in LAYERS:
        if holds(condition, face.has):
            paint(scene)
    # the camera: exposure, white balance, a little grain; pixel by pixel, so that no attribute leaks elsewhere
    pixels, warmth = scene.canvas.pixels, 0.025 * face.white_balance
    pixels *= np.array([1 + warmth, 1, 1 - warmth], np.float32) * np.float32(face.exposure)
    grain = scene.random(Texture.GRAIN).standard_normal(pixels.shape[:2], np.float32)
    pixels += (face.grain / 255 * grain)[..., None]
    return scene.canvas.image()


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
