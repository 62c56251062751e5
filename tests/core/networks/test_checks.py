"""Which classifiers can be explained, and the one line for each that cannot."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dime.core.errors import InputError
from dime.core.networks.checks import check_classifier, frozen
from tests.helpers import fill_, rnd

X = rnd(0, 2, 3, 8, 8)
CLASSES, SMILE = SimpleNamespace(), SimpleNamespace(output=1)


def net(*more: nn.Module, outputs: int = 3) -> nn.Module:
    return fill_(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, outputs), *more))


class Layer(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.forward = function


def company(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.batch_norm(x, None, None, training=True) if len(x) > 1 else x


BAD = {
    "no column": (lambda x: x.mean(dim=(1, 2, 3)), CLASSES, r"gives \(2,\).*expected logits \(N, K\)"),
    "a map": (nn.Conv2d(3, 2, 1), CLASSES, r"gives \(2, 2, 8, 8\)"),
    "a dict": (net(Layer(lambda x: {"out": x})), CLASSES, "gives a dict"),
    "decisions": (lambda x: x.flatten(1).argmax(1, keepdim=True), CLASSES, "decisions instead of the logits"),
    "one output for classes": (net(outputs=1), CLASSES, "no choice between classes"),
    "too few outputs": (net(outputs=1), SMILE, "asks for output 1"),
    "other classes": (net(), 10, "gives 3 logits, expected 10"),
    "another size": (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), CLASSES, "cannot take images.*--classifier_size"),
    "another size, by assertion": (lambda x: [][0], CLASSES, "cannot take images"),
    "no gradient": (net(Layer(lambda x: x.detach() * 2)), CLASSES, "not differentiable.*ends at its layer 2"),
    "no gradient, no layers": (lambda x: x.detach().flatten(1), CLASSES, "no gradient of its logits reaches the image"),
    "not of the image": (lambda x: torch.ones(len(x), 3, requires_grad=True) * 2, CLASSES, "no gradient"),
    "zero gradient": (net(Layer(torch.round)), CLASSES, "gradient is zero"),
    "gradient of a root at 0": (lambda x: (x.flatten(1)[:, :3] * 0).abs().sqrt(), CLASSES, "gradient is not finite"),
    "not finite": (lambda x: net()(x) / 0, CLASSES, "not finite"),
    "depends on company": (net(Layer(company)), CLASSES, "change with the rest of its batch"),
    "depends on chance": (lambda x: net()(x + torch.randn_like(x)), CLASSES, "or by chance"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_classifier_that_cannot_be_explained(kind):
    classifier, decision, message = BAD[kind]
    with pytest.raises(InputError, match=message) as caught:
        check_classifier(classifier, X, decision, "mine")
    assert str(caught.value).startswith("mine: ") and "\n" not in str(caught.value)


def test_a_good_classifier_passes_and_a_module_comes_out_as_it_went_in(capsys):
    classifier = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), net())
    classifier.train()
    classifier[0].eval()
    classifier[2][1].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    check_classifier(classifier, X, CLASSES, "mine")
    assert "mine: is in training mode; it is used in eval mode" in capsys.readouterr().out
    assert [m.training for m in (classifier, classifier[0], classifier[1])] == [True, False, True]
    assert [p.requires_grad for p in classifier.parameters()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(p.grad is None for p in classifier.parameters())
    assert not any(module._forward_hooks for module in classifier.modules())
    with pytest.raises(KeyError), frozen(classifier):
        assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
        raise KeyError
    assert classifier.training and classifier[2][1].weight.requires_grad
    for decision in (CLASSES, SMILE, 3):
        check_classifier(net(), X, decision)
        check_classifier(lambda x: net()(x), X[:1], decision)  # any callable, one image
