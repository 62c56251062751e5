"""How near a counterfactual comes to the true one: pictures in, one value per image out.

x, cf, truth: inputs, counterfactuals and true counterfactuals (N, H, W, 3), 8-bit. region: (N, H, W) bool, the pixels
that the true counterfactual may change, at least one in each image. Changes and distances are means of absolute
differences over pixels and channels, in grey levels (0 to 255).
"""

from __future__ import annotations

import numpy as np

from dime.core.metrics.attribute_scores import area_under_curve


def change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| (N, H, W), mean over channels."""
    return np.abs(a.astype(float) - b.astype(float)).mean(axis=-1)


def mean_within(values: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The mean (N,) of values (N, H, W) over the pixels of a region; NaN where it is empty."""
    count = region.sum(axis=(1, 2))
    return np.where(region, values, 0).sum(axis=(1, 2)) / np.where(count, count, np.nan)


def share_outside(changed: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The share (N,) of all change (N, H, W) that lies outside the region; NaN for an image that did not change."""
    total = changed.sum(axis=(1, 2))
    return np.where(region, 0, changed).sum(axis=(1, 2)) / np.where(total, total, np.nan)


def localisation(changed: np.ndarray, region: np.ndarray) -> np.ndarray:
    """P (N,) that a pixel of the region changed more than one outside: 1/2 by chance; NaN if it is the whole image."""
    return np.array([area_under_curve(c.ravel(), r.ravel()) for c, r in zip(changed, region, strict=True)])


def alignment(x: np.ndarray, cf: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Cosine (N,) between the change made, cf - x, and the true one, truth - x; NaN where either change is zero."""
    made, true = ((image.astype(float) - x).reshape(len(x), -1) for image in (cf, truth))
    norm = np.linalg.norm(made, axis=1) * np.linalg.norm(true, axis=1)
    return (made * true).sum(axis=1) / np.where(norm, norm, np.nan)


def recovered(distance: np.ndarray, start: np.ndarray) -> float:
    """How much of the way to the truth was gone: 1 - Σ distance / Σ start, of distances (N,) to the truth.

    distance: the counterfactuals'. start: the inputs' own. 1: the counterfactuals are the true ones; 0: no nearer than
    their inputs; negative: further away. Sums, not ratios per image, so that an image that needs next to no change
    does not outweigh all others. NaN when no image needs any.
    """
    return float(1 - distance.sum() / start.sum()) if start.sum() else float("nan")
