"""From a face to its picture, and where an attribute shows in it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from dime.core.drawn_faces import backdrop, features, hair, head, wear
from dime.core.drawn_faces.canvas import Canvas
from dime.core.drawn_faces.face import Face, counterfactual
from dime.core.drawn_faces.geometry import Pose
from dime.core.drawn_faces.scene import Scene, Texture

SIZE = (178, 218)
"""Width and height of CelebA's aligned pictures."""

LAYERS = (
    backdrop.paint_background,
    backdrop.paint_clothes,
    hair.paint_back_hair,
    backdrop.paint_neck,
    head.paint_ears,
    head.paint_head,
    features.paint_eyes,
    head.paint_nose,
    hair.paint_beard,
    features.paint_mouth,
    hair.paint_mustache,
    features.paint_brows,
    hair.paint_front_hair,
    wear.paint_glasses,
    wear.paint_hat,
    wear.paint_earrings,
)
"""What is painted, from back to front."""


def draw(face: Face, size: tuple[int, int] = SIZE) -> Image.Image:
    """The picture of a face, RGB, `size` = (width, height). It depends on the face and the size alone."""
    scene = Scene(face, Canvas(size), Pose(face, size))
    for paint in LAYERS:
        paint(scene)
    _develop(scene)
    return scene.canvas.image()


def _develop(scene: Scene) -> None:
    """The camera: exposure, white balance, a little grain. Pixel by pixel, so that no attribute leaks elsewhere."""
    face, pixels = scene.face, scene.canvas.pixels
    warmth = 0.025 * face.white_balance
    pixels *= np.array([1 + warmth, 1, 1 - warmth], np.float32) * np.float32(face.exposure)
    grain = scene.random(Texture.GRAIN).standard_normal(pixels.shape[:2], np.float32)
    pixels += (face.grain / 255 * grain)[..., None]


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
