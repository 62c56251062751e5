"""A picture painted in layers: anti-aliased shapes from Pillow, colours mixed in floating point."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 4

Colour = np.ndarray
"""Either one colour (3,) or one per pixel (H, W, 3), in [0, 1]."""
Mask = np.ndarray | None
"""Where paint may go, (H, W) in [0, 1]; None: everywhere."""


class Canvas:
    """An RGB picture (H, W, 3) in [0, 1], painted by filling outlines given in pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.pixels = np.zeros((*size[::-1], 3), np.float32)

    def fill(
        self, outline: np.ndarray, colour: Colour, opacity: float = 1.0, blur: float = 0.0, inside: Mask = None
    ) -> None:
        """Paint the inside of a closed outline (N, 2); blur: standard deviation of the edge's softness, pixels."""
        window, coverage = self._coverage(outline, blur)
        alpha = opacity * coverage
        if inside is not None:
            alpha = alpha * inside[window]
        target = self.pixels[window]
        target += alpha[..., None] * ((colour[window] if colour.ndim == 3 else colour) - target)

    def mask(self, outline: np.ndarray) -> np.ndarray:
        """How far each pixel lies inside the outline, (H, W) in [0, 1]."""
        mask = np.zeros(self.pixels.shape[:2], np.float32)
        window, coverage = self._coverage(outline)
        mask[window] = coverage
        return mask

    def _coverage(self, outline: np.ndarray, blur: float = 0.0) -> tuple[tuple[slice, slice], np.ndarray]:
        """The rows and columns that the shape can touch, and how far each of their pixels lies inside it."""
        margin = 1 + math.ceil(3 * blur)
        start = np.clip(np.floor(outline.min(0)).astype(int) - margin, 0, self.size)
        stop = np.clip(np.ceil(outline.max(0)).astype(int) + margin, 0, self.size)
        window = slice(start[1], stop[1]), slice(start[0], stop[0])
        width, height = (stop - start).tolist()
        if not width * height:
            return window, np.zeros((height, width), np.float32)
        large = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
        points = (outline - start) * SUPERSAMPLING - 0.5
        ImageDraw.Draw(large).polygon(points.ravel().tolist(), fill=255)
        small = large.reduce(SUPERSAMPLING)
        if blur:
            small = small.filter(ImageFilter.GaussianBlur(blur))
        return window, np.asarray(small, np.float32) / 255

    def image(self) -> Image.Image:
        """The picture in 8 bits, rounded."""
        return Image.fromarray((self.pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Random hills (H, W) in [-1, 1], about `cell` pixels wide."""
    width, height = size
    coarse = rng.random((math.ceil(height / cell) + 1, math.ceil(width / cell) + 1), np.float32) * 2 - 1
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
