"""Accuracy and AUC in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from dime.core.metrics.attribute_scores import AttributeScores, area_under_curve


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 3.5 / 4),  # one tie in four pairs
    ],
)
def test_area_under_the_curve_counts_ordered_pairs(scores, positive, expected):
    assert area_under_curve(np.array(scores, float), np.array(positive, bool)) == pytest.approx(expected)


def test_an_attribute_that_all_images_share_has_no_curve():
    assert np.isnan(area_under_curve(np.arange(3.0), np.ones(3, bool)))
    labels = np.array([[1, 0], [1, 1]])
    scores = AttributeScores.of(("Young", "Male"), np.array([[1.0, -1.0], [-1.0, 2.0]]), labels)
    assert scores.accuracy.tolist() == [0.5, 1.0]
    assert scores.mean_auc == scores.criterion == 1.0
    assert scores.csv().splitlines() == ["attribute,accuracy,auc", "Young,0.5,nan", "Male,1.0,1.0"]
    alone = AttributeScores.of(("Young",), np.array([[1.0], [-1.0], [2.0]]), np.ones((3, 1)))
    assert np.isnan(alone.mean_auc) and alone.criterion == pytest.approx(2 / 3)  # the accuracy decides
