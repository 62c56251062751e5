"""Curves in face coordinates: float arrays (N, 2).

Face coordinates: pixels of a 178x218 picture, x to the right, y down, origin between the cheekbones; the eyes lie at
y = -7, the mouth at 37, the chin at 66, the crown at -68.
"""

from collections.abc import Sequence

import numpy as np

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
