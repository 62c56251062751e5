"""FID and sFID: are counterfactuals realistic? Frechet distances between inputs and counterfactuals of CCF.

The distance between two sets of feature vectors takes no matrix square roots. A set is summed up by its mean μ and a
root R with Rᵀ R = Σ, its covariance. Then, with ‖·‖_* the sum of singular values,

    d² = |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁ Σ₂)^½ = |μ₁ - μ₂|² + ‖R₁‖² + ‖R₂‖² - 2 ‖R₁ R₂ᵀ‖_*

since Σ₁ Σ₂ = R₁ᵀ (R₁ R₂ᵀ) R₂ has the eigenvalues of (R₁ R₂ᵀ)(R₁ R₂ᵀ)ᵀ. Covariances of any rank are fine,
nothing is squared and rooted again, and few images mean small matrices.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dime.core.errors import UndefinedError
from dime.core.metrics.features import ImageFeatures, Machine
from dime.core.metrics.metric import (
    Context,
    Features,
    Measurement,
    Metric,
    counterfactuals,
    in_partition,
    require_one_size,
)
from dime.core.networks.features import INCEPTION_URL, load_inception, load_oracle
from dime.core.networks.files import pretrained_weights
from dime.core.results import Pair, ResultTree

FID_IMAGES = 2048
"""Fewer images than Inception has features leave the covariance without full rank, and the FID far too large."""
NAMES = {
    "inception": ("FID", "sFID"),
    "oracle": ("Frechet distance (oracle features)", "split Frechet distance (oracle features)"),
}
"""In whose feature space distances are taken -> what they are called: FID and sFID are Inception's alone."""


class Gaussian(NamedTuple):
    """Statistics of n feature vectors: mean (D,), root (min(n, D), D) with rootᵀ root = unbiased covariance."""

    mean: np.ndarray
    root: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """The statistics of features (N, D). Raises UndefinedError for fewer than two, or where all are the same."""
    n, dimensions = features.shape
    if n < 2:
        raise UndefinedError(f"a Frechet distance needs at least 2 images on each side, found {n}")
    if (features == features[0]).all():
        raise UndefinedError(f"all {n} images of a side have the same features: there is no covariance to compare")
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(n - 1)
    if n > dimensions:
        root = np.linalg.qr(root, mode="r")
    return Gaussian(mean, root)


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


def realism(pairs: Sequence[Pair], inputs: Sequence[Path], features: Features, network: str) -> list[Measurement]:
    """Fréchet distances between inputs and counterfactuals: over all of them, and over opposite halves.

    network: a key of NAMES. n is the smaller side. There is no interval: images drawn twice bias a Fréchet distance
    upwards. Raises UndefinedError where neither exists.
    """
    require_one_size(inputs)
    cfs = counterfactuals(pairs)
    x, x_cf = features(inputs).numpy(), features(cfs).numpy()
    n = min(len(x), len(x_cf))
    ids, cf_ids = (np.array([int(path.stem) for path in paths]) for paths in (inputs, cfs))
    note = None
    if network != "inception":
        note = "compares with distances of the same network's features and of as many images, never with a FID"
    elif n < FID_IMAGES:
        note = (
            f"rests on {n} images; a FID of fewer than {FID_IMAGES} grows as images get fewer: it does not compare "
            "with the papers', of about 20,000"
        )
    whole, split = NAMES[network]
    distances = [Measurement(whole, frechet_distance(gaussian(x), gaussian(x_cf)), n, notes=(note,) if note else ())]
    try:
        return [*distances, Measurement(split, split_frechet_distance(ids, x, cf_ids, x_cf), n)]
    except UndefinedError as error:
        return [*distances, Measurement(split, None, n, reason=f"in a half of the images {error}")]


def network_features(network: str, path: Path, machine: Machine, file: Path) -> ImageFeatures:
    """Features (N, D) of image files in a space of NAMES."""
    if network == "inception":
        return ImageFeatures(load_inception(path, machine.device), machine, file=file, weights=path)
    oracle = load_oracle(path, machine.device)
    return ImageFeatures(lambda x: oracle(x)[0], machine, file=file, weights=path)


def needs(context: Context, tree: ResultTree) -> tuple[list[Path], Features, str]:
    """The inputs: all of Original/, or those of the experiment's images of --partition; features; and their name."""
    network, weights = context.feature_network, context.oracle_path
    if network == "inception":
        weights = Path(context.inception_weights or pretrained_weights(INCEPTION_URL))
    features = context.once(network_features, network, weights, context.machine, tree.original_features(network))
    explained = [pair.original for pair in tree.pairs() if in_partition(pair, context.partition or "all")]
    return tree.originals() if context.partition in (None, "all") else explained, features, network


FID = Metric(
    rows=(*NAMES["inception"], *NAMES["oracle"]),
    measure=realism,
    needs=needs,
    flags=("--feature-network", "--inception-weights", "--oracle-path"),
    names=lambda context: NAMES[context.feature_network],
)
