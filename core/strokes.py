"""Handwriting changed exactly: how thick a digit's strokes are and how it leans, and the same digit thicker or leaning
otherwise; perturbations such as Morpho-MNIST's (Castro et al. 2019), written afresh.

Digits are bright on black, (H, W), uint8.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

FINE = 4
"""Strokes are measured and changed on a grid so many times finer."""


def thickness(digit: np.ndarray) -> float:
    """The mean width of the strokes in pixels.

    Across a stroke of width w the distance to its border rises from 0 to w/2 and falls again: its mean is w/4.
    """
    depth = _depth(digit)
    return 4 * float(depth[depth > 0].mean()) if (depth > 0).any() else 0.0


def thickened(digit: np.ndarray, by: float) -> np.ndarray:
    """The digit with strokes that are wider by so many pixels, or thinner: their border moves by half of it."""
    height, width = digit.shape
    cover = (FINE * (_depth(digit) + by / 2) + 0.5).clip(0, 1)  # of the pixels of the finer grid
    cover = cover.reshape(height, FINE, width, FINE).mean(axis=(1, 3))
    return (255 * cover).round().astype(np.uint8)


def _depth(digit: np.ndarray) -> np.ndarray:
    """How deep each pixel of the finer grid lies in a stroke, in pixels of the digit; negative outside."""
    inside = ndimage.zoom(digit.astype(float), FINE, order=1, grid_mode=True, mode="grid-constant") > 127
    deep, far = (ndimage.distance_transform_edt(each) for each in (inside, ~inside))
    return (deep - far - (inside - 0.5)) / FINE  # the border lies half-way between two pixels


def slant(digit: np.ndarray) -> float:
    """How far it leans to the right: pixels sideways for each pixel upwards, by its second moments."""
    y, x = np.indices(digit.shape)
    y, x = y - np.average(y, weights=digit), x - np.average(x, weights=digit)
    return -float(np.average(x * y, weights=digit) / np.average(y * y, weights=digit))


def slanted(digit: np.ndarray, by: float) -> np.ndarray:
    """The digit sheared about its centre, so that it leans further to the right by so much."""
    centre = ndimage.center_of_mass(digit)
    matrix = np.array([[1, 0], [by, 1]])  # output (y, x) is looked up at (y, x + by (y - cy))
    sheared = ndimage.affine_transform(digit.astype(float), matrix, offset=(0, -by * centre[0]), order=1)
    return sheared.round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Change:
    """A property of digits that can be measured and changed. classes: of digits that have little and much of it."""

    classes: tuple[str, str]
    measure: Callable[[np.ndarray], float]
    changed: Callable[[np.ndarray, float], np.ndarray]


CHANGES = {
    "thickness": Change(("thin", "thick"), thickness, thickened),
    "slant": Change(("left", "right"), slant, slanted),
}


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two digits are of as many pieces, with as many holes: no stroke broke, and no loop closed."""
    return _pieces(a) == _pieces(b)


def _pieces(digit: np.ndarray) -> tuple[int, int]:
    inside = _depth(digit) > 0
    return ndimage.label(inside)[1], ndimage.label(~inside)[1]
