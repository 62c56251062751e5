"""Curves in face coordinates, and the pose that places them in the picture.

Face coordinates: pixels of a 178x218 picture, x to the right, y down, origin between the cheekbones; the eyes lie at
y = -7, the mouth at 37, the chin at 66, the crown at -68. Curves are float arrays (N, 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dime.core.drawn_faces.face import Face

CENTRE = (89.0, 118.0)
"""Where the origin lies in a 178x218 picture, with the eyes where CelebA's alignment puts them."""

HEAD_RADII = (49.0, 78.0)
HEAD_DEPTH = 40.0

Curve = np.ndarray
Points = Sequence[Sequence[float]] | Curve


def spline(points: Points, closed: bool = False, steps: int = 6) -> Curve:
    """A smooth curve through the points (Catmull-Rom), `steps` segments between neighbours."""
    p = np.asarray(points, dtype=np.float64)
    before, after = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    p = np.concatenate([before, p, after])
    u = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None, :] for i in range(4))
    curve = b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def half_spline(points: Points, steps: int = 6) -> Curve:
    """The right half of a smooth symmetric curve, top to bottom: level where it starts or ends on the axis x = 0."""
    p = np.asarray(points, dtype=np.float64)
    head = p[1:2] * (-1, 1) if p[0, 0] == 0 else p[:0]
    tail = p[-2:-1] * (-1, 1) if p[-1, 0] == 0 else p[:0]
    curve = spline(np.concatenate([head, p, tail]), steps=steps)
    return curve[steps * len(head) : len(curve) - steps * len(tail)]


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, count: int = 28) -> Curve:
    """An ellipse, or the part of it between two angles (degrees, clockwise from the right)."""
    t = np.radians(np.linspace(start, end, count, endpoint=end - start < 360))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def moved(curve: Curve, x: float, y: float) -> Curve:
    """The curve, shifted."""
    return curve + np.array([x, y])


def mirrored(*parts: Points) -> Curve:
    """The right half of a symmetric outline, top to bottom and in parts, completed by its left half."""
    right = np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])
    left = right[::-1] * (-1, 1)
    return np.concatenate([right, left[left[:, 0] != 0]])


def between(one: Curve, other: Curve) -> Curve:
    """The outline of the area between two curves that run side by side."""
    return np.concatenate([one, other[::-1]])


def ring(outer: Curve, inner: Curve) -> Curve:
    """The outline of the area between two closed curves."""
    return between(np.concatenate([outer, outer[:1]]), np.concatenate([inner, inner[:1]]))


def stroke(points: Points, width: float, taper: float = 1.0) -> Curve:
    """The outline of a brush stroke along a curve: `width` in the middle, width·(1-taper) at both ends."""
    line = np.asarray(points, dtype=np.float64)
    tangent = np.gradient(line, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    along = np.linspace(-1, 1, len(line))[:, None]
    half = width / 2 * (1 - taper * along**2)
    return between(line + half * normal, line - half * normal)


@dataclass(frozen=True)
class Pose:
    """Face coordinates -> pixels of a picture of `size` (width, height): a rounded head turns, then a similarity."""

    face: Face
    size: tuple[int, int] = (178, 218)

    @property
    def pixels(self) -> float:
        """Pixels of this picture per pixel of a 178x218 one."""
        return max(self.size[0] / 178, self.size[1] / 218)

    @cached_property
    def _similarity(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrix (2, 2) and offset (2,)."""
        face, angle = self.face, np.radians(self.face.roll)
        factor = face.scale * self.pixels
        matrix = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array(CENTRE) - (89, 109) + (face.shift_x, face.shift_y)
        return matrix, centre * self.pixels + np.array(self.size) / 2

    def place_body(self, curve: Curve) -> Curve:
        """Pixel positions of points on the body, which neither turns nor tilts with the head."""
        return curve * self.face.scale * self.pixels + self._similarity[1]

    def place(self, curve: Curve, lift: float = 0.0) -> Curve:
        """Pixel positions of points on the head's surface, or `lift` in front of it.

        Points beyond the head's outline do not turn; inside it they move with the surface, most in the middle.
        """
        matrix, offset = self._similarity
        x, y = curve[:, 0], curve[:, 1]
        inside = 1 - (x / HEAD_RADII[0]) ** 2 - (y / HEAD_RADII[1]) ** 2
        depth = HEAD_DEPTH * np.sqrt(np.clip(inside, 0, 1)) + lift
        yaw = np.radians(self.face.yaw)
        turned = x * np.cos(yaw) + (depth - HEAD_DEPTH / 2) * np.sin(yaw), y + self.face.nod * depth / HEAD_DEPTH
        return np.stack(turned, axis=1) @ matrix.T + offset

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Face coordinates x, y (H, W) of the pixel centres, the turn of the head left out."""
        matrix, offset = self._similarity
        width, height = self.size
        inverse = np.linalg.inv(matrix).astype(np.float32)
        x = np.arange(width, dtype=np.float32) + np.float32(0.5 - offset[0])
        y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - offset[1])
        return inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y
