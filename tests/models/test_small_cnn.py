"""The small classifier and how its checkpoints are told."""

from __future__ import annotations

import pytest
import torch

from dime.models.classifiers import DenseNetTrunk
from dime.models.small_cnn import SmallCNN
from tests.helpers import fill_, rnd


def tables(network: SmallCNN) -> dict:
    return {"feat_extract": network.feat_extract.state_dict(), "classifier": network.classifier.state_dict()}


def test_size_and_shape():
    network = SmallCNN().eval()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.2e6, rel=0.05)
    assert network(rnd(0, 2, 3, 32, 32)).shape == (2, 40)
    assert network(rnd(0, 2, 3, 64, 48)).shape == (2, 40)


@pytest.mark.parametrize(("outputs", "widths"), [(40, (32, 64, 128, 256)), (2, (16, 32))])
def test_the_checkpoint_says_which_network_it_is(outputs, widths):
    network = fill_(SmallCNN(outputs, widths))
    again = SmallCNN.from_state_dict(tables(network)).eval()
    assert again.num_outputs == outputs
    x = rnd(1, 2, 3, 32, 32)
    assert torch.equal(again(x), network(x))


def test_other_networks_are_not_taken_for_it():
    trunk = DenseNetTrunk().state_dict()
    assert not SmallCNN.recognises(trunk)
    with pytest.raises(ValueError, match=r"not a SmallCNN: its first parameters are feat_extract\.features"):
        SmallCNN.from_state_dict({"feat_extract": trunk, "classifier": {"weight": torch.zeros(40, 1024)}})
