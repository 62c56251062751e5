"""A picture painted in layers: anti-aliased shapes from Pillow, colours mixed in floating point."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 4

Colour = np.ndarray
"""Either one colour (3,) or one per pixel (H, W, 3), in [0, 1]."""


class Canvas:
    """An RGB picture (H, W, 3) in [0, 1], painted by filling outlines given in pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.width, self.height = size
        self.pixels = np.zeros((self.height, self.width, 3), np.float32)

    def fill(
        self,
        outline: np.ndarray,
        colour: Colour,
        opacity: float = 1.0,
        blur: float = 0.0,
        inside: np.ndarray | None = None,
    ) -> None:
        """Paint the inside of a closed outline (N, 2).

        blur: standard deviation of the edge's softness, pixels. inside: a mask (H, W) in [0, 1] that limits the paint.
        """
        window = self._window(outline, blur)
        if window is None:
            return
        rows, columns = window
        alpha = opacity * self._coverage(outline, rows, columns, blur)
        if inside is not None:
            alpha = alpha * inside[rows, columns]
        alpha = alpha[..., None]
        target = self.pixels[rows, columns]
        paint = colour[rows, columns] if colour.ndim == 3 else colour
        target += alpha * (paint - target)

    def mask(self, outline: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """How far each pixel lies inside the outline, (H, W) in [0, 1]."""
        mask = np.zeros((self.height, self.width), np.float32)
        window = self._window(outline, blur)
        if window is not None:
            mask[window] = self._coverage(outline, *window, blur)
        return mask

    def _window(self, outline: np.ndarray, blur: float) -> tuple[slice, slice] | None:
        """The rows and columns that the shape can touch; None when it lies outside the picture."""
        margin = 1 + math.ceil(3 * blur)
        left, top = np.floor(outline.min(0)).astype(int) - margin
        right, bottom = np.ceil(outline.max(0)).astype(int) + margin
        left, right = max(left, 0), min(right, self.width)
        top, bottom = max(top, 0), min(bottom, self.height)
        return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None

    @staticmethod
    def _coverage(outline: np.ndarray, rows: slice, columns: slice, blur: float) -> np.ndarray:
        size = columns.stop - columns.start, rows.stop - rows.start
        large = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
        points = (outline - (columns.start, rows.start)) * SUPERSAMPLING - 0.5
        ImageDraw.Draw(large).polygon(points.ravel().tolist(), fill=255)
        small = large.reduce(SUPERSAMPLING)
        if blur:
            small = small.filter(ImageFilter.GaussianBlur(blur))
        return np.asarray(small, np.float32) / 255

    def image(self) -> Image.Image:
        """The picture in 8 bits, rounded."""
        return Image.fromarray((self.pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Random hills (H, W) in [-1, 1], about `cell` pixels wide."""
    width, height = size
    coarse = rng.random((math.ceil(height / cell) + 1, math.ceil(width / cell) + 1), np.float32) * 2 - 1
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
