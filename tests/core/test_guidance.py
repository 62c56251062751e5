"""Gradients of the losses against the published code's figures and against closed forms."""

import pytest
import torch
from torch import nn

from dime.core.guidance import Binary, Guidance, MultiClass
from tests.helpers import golden, reference_arithmetic, relative_error, rnd
from tests.toys import classifier, vgg19_features

SMILING = 31
TOLERANCE = 2e-5  # float32 through a hundred layers, summed in another order (reference_arithmetic)
X, Z = rnd(20, 3, 3, 64, 64).clamp(-1, 1), rnd(21, 3, 3, 64, 64)
INPUT = rnd(22, 3, 3, 64, 64).clamp(-1, 1)


@reference_arithmetic
@pytest.mark.parametrize(
    ("decision", "y", "name"),
    [
        (Binary(SMILING, True), [1, 0, 1], "class_logits"),
        (Binary(SMILING, False), [1, 0, 1], "class_logsigmoid"),
        (MultiClass(True), [3, 31, 0], "multi_logits"),
        (MultiClass(False), [3, 31, 0], "multi_logsoftmax"),
    ],
)
def test_class_gradients_are_the_published_ones(decision, y, name):
    gradient = Guidance(classifier(), decision).towards(X, None, torch.tensor(y), scale=8).class_gradient(X)
    assert relative_error(gradient[:, :, ::4, ::4], golden("guidance")[name]) < TOLERANCE


@reference_arithmetic
@pytest.mark.parametrize(
    "weights, name",
    [
        ({"l1": 0.05}, "dist_l1"),
        ({"l2": 0.1}, "dist_l2"),
        ({"l1": 0.05, "l2": 0.1, "l_perc": 9e4}, "dist_l1_l2_perc"),
        ({"l_perc": 9e4}, "dist_perc"),
    ],
)
def test_distance_gradients_are_the_published_ones(weights, name):
    guidance = Guidance(classifier(), Binary(SMILING), vgg19_features(18), **weights)
    pull = guidance.towards(INPUT, guidance.input_features(INPUT), torch.ones(3), scale=8)
    gradient = pull.distance_gradient(Z) + pull.perceptual_gradient(X) / 0.7
    assert relative_error(gradient[:, :, ::4, ::4], golden("guidance")[name]) < TOLERANCE


class Linear(nn.Module):
    """Two logits, w0·x and w1·x: their gradients are w0 and w1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rnd(1, 2, 3 * 4 * 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


X4, Z4 = rnd(2, 5, 3, 4, 4), rnd(3, 5, 3, 4, 4)
Y5 = torch.tensor([0, 1, 1, 0, 1])


def all_gradients(guidance: Guidance, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    pull = guidance.towards(x, guidance.input_features(x), y, scale=4)
    return pull.class_gradient(z.tanh()) + pull.perceptual_gradient(z.tanh()) + pull.distance_gradient(z)


def test_each_image_has_its_own_gradient_also_through_its_estimate():
    guidance = Guidance(Linear(), Binary(0), nn.Flatten(), l1=0.1, l2=0.2, l_perc=2)
    together = all_gradients(guidance, X4, Y5, Z4)
    alone = [all_gradients(guidance, x, y, z) for x, y, z in zip(X4.split(1), Y5.split(1), Z4.split(1), strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)
    linear, z = Linear(), Z4.clone().requires_grad_()
    pull = Guidance(linear, Binary(1, use_logits=True)).towards(X4, None, torch.ones(5), scale=1)
    gradient = pull.class_gradient(z.square(), wrt=z)
    torch.testing.assert_close(gradient.flatten(1), -2 * Z4.flatten(1) * linear.weight[1], atol=1e-6, rtol=1e-5)


def test_perceptual_gradient_at_the_input_is_not_computed():
    calls = []
    features = lambda u: calls.append(u) or u.flatten(1)  # noqa: E731
    guidance = Guidance(Linear(), Binary(0), features, l_perc=2)
    pull = guidance.towards(X4, guidance.input_features(X4), Y5, scale=4)
    assert pull.perceptual_gradient(X4) == 0
    assert len(calls) == 1
    assert pull.perceptual_gradient(X4.clone()).abs().max() == 0  # it is exactly zero there
    distances = Guidance(Linear(), Binary(0), l1=0.3, l2=0.7).towards(X4, None, Y5, scale=1)
    assert distances.distance_gradient(X4).abs().max() == 0  # likewise


def test_decisions():
    logits = torch.tensor([[2.0, -1.0, 0.0], [-2.0, 3.0, 0.5]])
    binary = Binary(0)
    assert binary.predict(logits).tolist() == [1, 0]
    assert binary.predict(torch.zeros(1, 1)).tolist() == [0]  # yes means a logit above 0
    torch.testing.assert_close(binary.probability(logits, torch.tensor([0, 0])), torch.sigmoid(-logits[:, 0]))
    torch.testing.assert_close(
        binary.loss(logits, torch.tensor([1, 0])), -torch.sigmoid(torch.tensor([2.0, 2.0])).log()
    )
    multi = MultiClass()
    assert multi.predict(logits).tolist() == [0, 1]
    torch.testing.assert_close(
        multi.loss(logits, torch.tensor([2, 1])), -multi.probability(logits, torch.tensor([2, 1])).log()
    )
