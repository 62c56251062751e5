"""The classifiers that can be trained, and the files that they become: those that the rest of the project loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from dime.core.networks.features import load_vggface2
from dime.models.classifiers import DenseNetClassifier
from dime.models.resnet import Oracle, oracle_parameter_name
from dime.models.small_cnn import SmallCNN
from guided_diffusion.checkpoint_util import portable

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
"""Stage of the Caffe ResNet-50 -> residual blocks."""


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
        published = _published_oracle_names()
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


def _published_oracle_names() -> dict[str, str]:
    """Layer of `Oracle` -> its name in published files."""
    layers = ["conv1_7x7_s2", "conv1_7x7_s2_bn", "feat_extract"]
    parts = product(("1x1_reduce", "3x3", "1x1_increase", "1x1_proj"), ("", "_bn"))
    in_block = [part + norm for part, norm in parts]
    layers += [f"conv{s}_{b + 1}_{part}" for s, blocks in BLOCKS.items() for b in range(blocks) for part in in_block]
    return {oracle_parameter_name(f"{layer}.weight").removesuffix(".weight"): layer for layer in layers}
