"""The metrics on numbers whose answer is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from dime.core.metrics import (
    attributes_changed,
    bootstrap_interval,
    correlation_difference,
    correlations,
    cout,
    decide,
    face_similarity,
    same_face,
    transition,
)
from tests.helpers import rnd


def test_face_similarity_is_the_cosine():
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0], [2.0, 0.0]])
    b = torch.tensor([[2.0, 0.0], [4.0, 3.0], [-1.0, -1.0], [0.0, 5.0]])
    # 1e-12: float64
    assert face_similarity(a, b) == pytest.approx([1, 24 / 25, -1, 0], abs=1e-12)


def test_the_same_face_is_above_one_half():
    assert same_face(np.array([0.49, 0.5, 0.51])).tolist() == [0, 0, 1]


def test_decisions_are_above_one_half():
    assert decide(torch.tensor([[-3.0, 0.0, 2.0]])).tolist() == [[0, 0, 1]]


def test_attributes_changed_are_counted_per_image():
    before, after = np.array([[0, 1, 1], [0, 0, 0]]), np.array([[1, 1, 0], [0, 0, 0]])
    assert attributes_changed(before, after).tolist() == [2, 0]


def test_correlations_as_numpy_has_them():
    values = rnd(1, 50, 6).numpy().astype(float)
    # 1e-12: float64
    assert np.allclose(correlations(values, 2), np.corrcoef(values.T)[2], atol=1e-12)


def test_correlation_difference_in_closed_form():
    query = np.array([1, -1, 0, 1, 0])
    changes = np.stack([query, -query, np.zeros(5), np.array([0, 0, 1, 0, -1])], axis=1)
    labels = np.array([[1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0]])
    result = correlation_difference(labels, changes, query=0)
    assert result.dataset == pytest.approx([1, 1, -1, 0])
    assert result.explanations == pytest.approx([1, -1, 0, 0])
    assert result.undefined == 1
    assert result.value == pytest.approx(0 + 2 + 1 + 0)


def test_a_query_that_never_changes_leaves_all_correlations_undefined():
    result = correlation_difference(np.eye(3), np.zeros((4, 3)), query=1)
    assert result.undefined == 3
    assert result.explanations.tolist() == [0, 0, 0]


def brightness(x: torch.Tensor) -> torch.Tensor:
    """A classifier that looks at the mean grey level: logit 20·mean."""
    return 20 * x.mean(dim=(1, 2, 3))[:, None]


def test_transition_of_a_linear_classifier():
    x, x_cf = -torch.ones(2, 3, 10, 10), torch.ones(2, 3, 10, 10)
    curves = transition(brightness, x, x_cf, query=0)
    mean_level = np.linspace(-1, 1, 51)  # 100 pixels, 2 at a time
    # 1e-6: float32; the own class is the dark one
    assert curves == pytest.approx(np.tile(1 / (1 + np.exp(20 * mean_level)), (2, 1)), abs=1e-6)


def test_transition_starts_at_the_prediction_whatever_it_is():
    x, x_cf = torch.ones(1, 3, 10, 10), -torch.ones(1, 3, 10, 10)
    curve = transition(brightness, x, x_cf, query=0)[0]
    assert curve[0] > 0.99 and curve[-1] < 0.01


def test_most_changed_pixels_come_first_and_ties_in_reading_order():
    x = torch.zeros(1, 3, 2, 3)
    x_cf = torch.tensor([[0.0, 0.2, 0.4], [-0.8, 0.2, 0.0]]).expand(1, 3, 2, 3)
    seen = []

    def classify(images: torch.Tensor) -> torch.Tensor:
        seen.append(images[0, 0].clone())
        return torch.zeros(1, 1)

    transition(classify, x, x_cf, query=0)
    changed = [int((after - before).abs().argmax()) for before, after in pairwise(seen)]
    assert len(seen) == 7
    assert changed[:4] == [3, 2, 1, 4]
    assert torch.equal(seen[-1], x_cf[0, 0])


def test_transition_ends_at_the_counterfactual_where_steps_do_not_divide_the_pixels():
    x, x_cf = rnd(1, 2, 3, 64, 64), rnd(2, 2, 3, 64, 64)
    seen = []
    transition(lambda images: seen.append(images) or brightness(images), x, x_cf, query=0)
    assert len(seen) == 1 + 51  # 4096 pixels, 81 at a time
    assert torch.equal(seen[0], x) and torch.equal(seen[-1], x_cf)


def test_transition_of_an_image_does_not_depend_on_its_company():
    x, x_cf = rnd(1, 3, 3, 16, 16), rnd(2, 3, 3, 16, 16)
    together = transition(brightness, x, x_cf, query=0)
    alone = [transition(brightness, x[i : i + 1], x_cf[i : i + 1], query=0)[0] for i in range(3)]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.parametrize(("own", "expected"), [(1.0, -1), (0.0, 1), (0.5, 0)])
def test_cout_of_constant_curves(own, expected):
    assert cout(np.full((1, 51), own), pixels=100) == pytest.approx([expected])


def test_cout_of_a_straight_line_is_zero_and_of_a_step_its_place():
    assert cout(np.linspace(1, 0, 51)[None], pixels=100) == pytest.approx([0])
    early = np.where(np.arange(51) < 10, 1.0, 0.0)[None]
    # p_c is 1 up to step 9 and falls within step 10: an area of 9.5 steps of 2 %
    assert cout(early, pixels=100) == pytest.approx([1 - 2 * 9.5 * 0.02])


def test_bootstrap_interval_of_a_mean():
    values = rnd(3, 400).numpy().astype(float)
    low, high = bootstrap_interval(lambda rows: values[rows].mean(), 400)
    error = values.std() / 20
    # a tenth of the width: the noise of 1000 resamples
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.4 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.4 * error)
    assert (low, high) == bootstrap_interval(lambda rows: values[rows].mean(), 400)


def test_bootstrap_interval_of_one_image_is_its_value():
    assert bootstrap_interval(lambda rows: float(rows.sum() + 7), 1) == (7, 7)
