"""The Fréchet distance between two sets of feature vectors, without matrix square roots.

A set is summed up by its mean μ and a root R with Rᵀ R = Σ, its covariance. Then, with ‖·‖_* the sum of
singular values,

    d² = |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁ Σ₂)^½ = |μ₁ - μ₂|² + ‖R₁‖² + ‖R₂‖² - 2 ‖R₁ R₂ᵀ‖_*

since Σ₁ Σ₂ = R₁ᵀ (R₁ R₂ᵀ) R₂ has the eigenvalues of (R₁ R₂ᵀ)(R₁ R₂ᵀ)ᵀ. Covariances of any rank are fine,
nothing is squared and rooted again, and few images mean small matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dime.core.errors import UndefinedError


@dataclass(frozen=True)
class Gaussian:
    """Statistics of n feature vectors: mean (D,), root (min(n, D), D) with rootᵀ root = unbiased covariance."""

    n: int
    mean: np.ndarray
    root: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """The statistics of features (N, D). Raises UndefinedError for fewer than two."""
    n, dimensions = features.shape
    if n < 2:
        raise UndefinedError(f"a Fréchet distance needs at least 2 images on each side, found {n}")
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(n - 1)
    if n > dimensions:
        root = np.linalg.qr(root, mode="r")
    return Gaussian(n, mean, root)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """d² between two Gaussians (Heusel et al. 2017, equation 6): the FID, for Inception features."""
    cross = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    means = ((a.mean - b.mean) ** 2).sum()
    return float(means + (a.root**2).sum() + (b.root**2).sum() - 2 * cross)


def split_frechet_distance(
    ids: np.ndarray, features: np.ndarray, cf_ids: np.ndarray, cf_features: np.ndarray, seed: int = 0
) -> float:
    """The sFID: distance of one half's inputs and the other half's counterfactuals, averaged over both ways.

    No counterfactual is then compared with its own input (Jeanneret et al. 2023, ACE).

    Args:
        ids, features: (N,) and (N, D) of the inputs.
        cf_ids, cf_features: (M,) and (M, D) of the counterfactuals.
        seed: of the random split of all ids into halves.
    """
    every = np.unique(np.concatenate([ids, cf_ids]))
    half = np.random.default_rng(seed).permutation(every)[: len(every) // 2]
    inside, cf_inside = np.isin(ids, half), np.isin(cf_ids, half)
    forth = frechet_distance(gaussian(features[inside]), gaussian(cf_features[~cf_inside]))
    back = frechet_distance(gaussian(features[~inside]), gaussian(cf_features[cf_inside]))
    return (forth + back) / 2
