"""The Fréchet distance: closed forms, scipy's square root, pytorch-fid, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dime.core.errors import InputError
from dime.core.metrics.fid import frechet_distance, gaussian, split_frechet_distance
from tests.helpers import rnd


def features(seed: int, n: int, dimensions: int) -> np.ndarray:
    """Correlated features, away from the origin."""
    mixing = rnd(seed + 1000, dimensions, dimensions).numpy().astype(float)
    return rnd(seed, n, dimensions).numpy().astype(float) @ mixing + seed


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(gaussian(a), gaussian(b))


@pytest.mark.parametrize(("n_a", "n_b"), [(200, 150), (9, 12)])
def test_statistics_are_mean_and_covariance_and_the_distance_is_the_textbooks(n_a, n_b):
    a, b = features(1, n_a, 10), features(2, n_b, 10)
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    for x, covariance in zip((a, b), covariances, strict=True):
        statistics = gaussian(x)
        assert statistics.root.shape[0] == min(len(x), 10)
        assert np.allclose(statistics.mean, x.mean(0)) and np.allclose(statistics.root.T @ statistics.root, covariance)
    root = np.trace(sqrtm(covariances[0] @ covariances[1]).real)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * root
    # 1e-5: the square root of a product loses half of float64's digits
    assert distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_small_cases_in_closed_form():
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [7.0]])  # standard deviations √2 and √18
    assert distance(a, b) == pytest.approx((1 - 4) ** 2 + (2**0.5 - 18**0.5) ** 2)
    for n in (5, 100):
        a = 100 * features(5, n, 30)
        # the terms are of the order of 1e8: float64 leaves 1e-6 of them
        assert abs(distance(a, a.copy())) < 1e-3
    with pytest.raises(InputError, match="at least 2 images"):
        gaussian(np.ones((1, 5)))


def test_covariances_without_full_rank():
    """20 dimensions of which 3 are used: the distance is the one within those 3."""
    a, b = features(6, 50, 3), features(7, 60, 3)
    basis = np.linalg.qr(rnd(8, 20, 20).numpy().astype(float))[0][:3]
    assert distance(a @ basis, b @ basis) == pytest.approx(distance(a, b), rel=1e-9)


def test_order_does_not_matter_and_a_shift_adds_its_square():
    a, b = features(11, 40, 8), features(12, 40, 8)
    assert distance(np.random.default_rng(0).permutation(b), a) == pytest.approx(distance(a, b), rel=1e-9)
    away = b + (a.mean(0) - b.mean(0))
    assert distance(a, away + 3) - distance(a, away) == pytest.approx(8 * 9)


def test_split_distance_compares_opposite_halves():
    """Every counterfactual is its input: the split distance is still not 0, and the mean of both ways."""
    ids, a = np.arange(40), features(15, 40, 4)
    value = split_frechet_distance(ids, a, ids, a, seed=3)
    half = np.isin(ids, np.random.default_rng(3).permutation(ids)[:20])
    assert value == pytest.approx(distance(a[half], a[~half])) and value > 1e-3


def test_split_distance_goes_by_ids_whatever_the_order_and_where_some_lack():
    ids, a, b = np.arange(30), features(16, 30, 4), features(17, 30, 4)
    order = np.random.default_rng(1).permutation(30)
    expected = split_frechet_distance(ids, a, ids, b)
    assert split_frechet_distance(ids, a, ids[order], b[order]) == pytest.approx(expected, rel=1e-9)
    assert split_frechet_distance(ids, a, ids[5:], a[5:]) > 0
