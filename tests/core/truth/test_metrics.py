"""Figures of the truth benchmark on pictures that are their own answer."""

from __future__ import annotations

import numpy as np
import pytest

from dime.core.truth import metrics

RNG = np.random.default_rng(0)
N, SIZE = 3, 8
X = RNG.integers(40, 200, (N, SIZE, SIZE, 3)).astype(np.uint8)
REGION = np.zeros((N, SIZE, SIZE), bool)
REGION[:, 2:4, 1:5] = True  # 8 of 64 pixels


def shifted(where: np.ndarray, by: int) -> np.ndarray:
    """X with `by` grey levels more in the pixels `where`."""
    return (X.astype(int) + by * where[..., None]).astype(np.uint8)


TRUTH = shifted(REGION, 40)


def figures(cf: np.ndarray) -> dict[str, np.ndarray]:
    changed = metrics.change(X, cf)
    return {
        "inside": metrics.mean_within(changed, REGION),
        "outside": metrics.mean_within(changed, ~REGION),
        "share_outside": metrics.share_outside(changed, REGION),
        "localisation": metrics.localisation(changed, REGION),
        "alignment": metrics.alignment(X, cf, TRUTH),
        "recovered": metrics.recovered(metrics.change(cf, TRUTH).sum((1, 2)), metrics.change(X, TRUTH).sum((1, 2))),
    }


@pytest.mark.parametrize(
    ("cf", "expected"),
    [
        pytest.param(
            TRUTH,
            {"inside": 40, "outside": 0, "share_outside": 0, "localisation": 1, "alignment": 1, "recovered": 1},
            id="the truth itself",
        ),
        pytest.param(
            X,
            {
                **{"inside": 0, "outside": 0, "share_outside": np.nan},
                **{"localisation": 0.5, "alignment": np.nan, "recovered": 0},
            },
            id="the input itself",
        ),
        pytest.param(
            shifted(REGION, 10),
            {"inside": 10, "outside": 0, "share_outside": 0, "localisation": 1, "alignment": 1, "recovered": 0.25},
            id="a quarter of the way",
        ),
        pytest.param(
            shifted(REGION, -40),
            {"inside": 40, "outside": 0, "share_outside": 0, "localisation": 1, "alignment": -1, "recovered": -1},
            id="the wrong way",
        ),
        pytest.param(
            shifted(~REGION, 4),
            # distance: 56 pixels of 4 levels come to the 8 of 40 that are missing
            {"inside": 0, "outside": 4, "share_outside": 1, "localisation": 0, "alignment": 0, "recovered": -0.7},
            id="elsewhere",
        ),
        pytest.param(
            shifted(REGION, 40) + shifted(~REGION, 5) - X,
            # 8 · 40 of 8 · 40 + 56 · 5 = 600 lie inside; the cosine is 40√8 / √(8·40² + 56·5²)
            {
                **{"inside": 40, "outside": 5, "share_outside": 280 / 600, "localisation": 1},
                **{"alignment": (12800 / 14200) ** 0.5, "recovered": 1 - 280 / 320},
            },
            id="the truth and something elsewhere",
        ),
    ],
)
def test_closed_forms(cf, expected):
    for name, values in figures(cf).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-12, atol=1e-12, err_msg=name)


def test_an_image_that_needs_next_to_no_change_does_not_outweigh_the_others():
    distance, start = np.array([1.0, 1.0]), np.array([9.999, 0.001])
    assert metrics.recovered(distance, start) == pytest.approx(0.8)


def test_what_is_not_defined():
    nowhere = np.zeros_like(REGION)
    assert np.isnan(metrics.mean_within(np.ones((N, SIZE, SIZE)), nowhere)).all()
    assert np.isnan(metrics.localisation(np.ones((N, SIZE, SIZE)), nowhere)).all()
    assert np.isnan(metrics.recovered(np.ones(N), np.zeros(N)))
