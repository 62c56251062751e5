"""What networks say of 8-bit pictures: an oracle of the drawn attributes, and any classifier's logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dime.core.datasets import ATTRIBUTES
from dime.core.drawn_faces import DRAWN
from dime.core.errors import InputError
from dime.core.evaluation.features import Machine, computing
from dime.core.images import from_image
from dime.core.metrics import decide
from dime.core.networks.classifiers import load_classifier


class AttributeOracle:
    """A network that says which of DRAWN a picture shows; independent of the classifier that is explained.

    known: (A,) bool, the attributes that it decides on. Raises InputError for a file that is no such network.
    """

    def __init__(self, path: Path, machine: Machine) -> None:
        self.network = load_classifier(path, machine.device)
        self.machine = machine
        names = self.network.names or list(ATTRIBUTES)
        if self.network.num_outputs != len(names):
            raise InputError(f"{path}: has {self.network.num_outputs} outputs without names, expected {len(names)}")
        self.columns = [names.index(name) for name in DRAWN if name in names]
        self.known = np.array([name in names for name in DRAWN])
        self.path = path

    def require(self, name: str) -> None:
        """Raise InputError unless the oracle decides on this attribute."""
        if not self.known[DRAWN.index(name)]:
            raise InputError(f"{self.path}: does not decide on {name}; give an oracle trained on it as --oracle-path")

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Decisions (N, A), 0 or 1, on pictures (N, H, W, 3), 8-bit; 0 for what it does not know."""
        seen = np.zeros((len(pictures), len(DRAWN)), dtype=int)
        seen[:, self.known] = decide(picture_logits(self.network, pictures, self.machine)[:, self.columns])
        return seen


def picture_logits(network: torch.nn.Module, pictures: np.ndarray, machine: Machine) -> torch.Tensor:
    """A network's logits (N, C), on the CPU, of pictures (N, H, W, 3), 8-bit."""
    with computing():
        parts = from_image(pictures).split(machine.batch_size)
        return torch.cat([network(part.to(machine.device)).float().cpu() for part in parts])
