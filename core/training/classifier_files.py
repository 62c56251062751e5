"""The classifiers that can be trained, and the files that they become: those that the rest of the project loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dime.core.networks.features import load_vggface2
from dime.models.classifiers import DenseNetClassifier, SmallCNN
from dime.models.resnet import Oracle, oracle_layers
from guided_diffusion.checkpoint_util import portable


@dataclass(frozen=True)
class Architecture:
    """A network that can be trained: how it is built for a number of outputs, and what its file is called."""

    build: Callable[[int], nn.Module]
    file_name: str


ARCHITECTURES = {
    "densenet": Architecture(DenseNetClassifier, "classifier.pth"),
    "oracle": Architecture(Oracle, "oracle.pth"),
    "small": Architecture(SmallCNN, "classifier.pth"),
}


def initialise_oracle(network: Oracle, weights_path: str) -> None:
    """Start the oracle's trunk from the VGGFace2 face network. Raises InputError for a file that does not fit."""
    network.trunk.load_state_dict(load_vggface2(weights_path, torch.device("cpu")).state_dict())


def logits_of(output: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The logits in what a classifier, or the oracle (features, logits), gives."""
    return output[1] if isinstance(output, tuple) else output


def to_file(network: nn.Module, attributes: Sequence[str]) -> dict[str, Any]:
    """The content of a checkpoint: tables `feat_extract` and `classifier`, and the names of the outputs."""
    if isinstance(network, Oracle):
        published = {own: layer for layer, own in oracle_layers().items()}
        own = network.state_dict()
        trunk: Mapping[str, torch.Tensor] = {
            f"{published[layer]}.{entry}": own[f"{layer}.{entry}"]
            for layer, entry in (name.rsplit(".", 1) for name in own)
            if layer in published
        }
    else:
        trunk = network.feat_extract.state_dict()
    tables = {"feat_extract": trunk, "classifier": network.classifier.state_dict()}
    return {**{part: portable(table) for part, table in tables.items()}, "attributes": list(attributes)}
