"""What networks say of 8-bit pictures: an oracle of the attributes that a truth names, and any network's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.images import from_image
from dime.core.metrics.faces import SMALL_FS, face_features, face_similarity
from dime.core.metrics.features import Machine, computing
from dime.core.metrics.mnac import decide
from dime.core.networks.classifiers import load_classifier
from dime.core.truth.cases import Cases
from dime.core.truth.rows import Row


class AttributeOracle:
    """A network that says which of the attributes `names` (A of them) a picture shows; independent of the classifier
    that is explained.

    known: (A,) bool, the attributes that it decides on. Raises InputError for a file that is no such network, or does
    not know one of those that it `needs`.
    """

    def __init__(self, path: Path, names: Sequence[str], machine: Machine, needs: Sequence[str] = ()) -> None:
        self.network = load_classifier(path, machine.device)
        self.machine = machine
        outputs = self.network.names or list(ATTRIBUTES)
        if self.network.num_outputs != len(outputs):
            raise InputError(f"{path}: has {self.network.num_outputs} outputs without names, expected {len(outputs)}")
        self.columns = [outputs.index(name) for name in names if name in outputs]
        self.known = np.array([name in outputs for name in names])
        for name in needs:
            if name not in outputs:
                raise InputError(f"{path}: does not decide on {name}; give an oracle trained on it as --oracle-path")

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Decisions (N, A), 0 or 1, on pictures (N, H, W, 3), 8-bit; 0 for what it does not know."""
        seen = np.zeros((len(pictures), len(self.known)), dtype=int)
        seen[:, self.known] = decide(outputs_on(pictures, self.network, self.machine)[:, self.columns])
        return seen


def similarity(path: str, machine: Machine) -> Row:
    """FS by the features of a small CNN: cosine of input and counterfactual."""
    network = face_features(path, machine).network

    def cosine(c: Cases) -> np.ndarray:
        return face_similarity(outputs_on(c.x, network, machine), outputs_on(c.cf, network, machine))

    return Row(SMALL_FS, cosine)


def outputs_on(pictures: np.ndarray, network: Callable[[torch.Tensor], torch.Tensor], machine: Machine) -> torch.Tensor:
    """A network's outputs (N, C), on the CPU, on pictures (N, H, W, 3), 8-bit."""
    with computing():
        parts = from_image(pictures).split(machine.batch_size)
        return torch.cat([network(part.to(machine.device)).float().cpu() for part in parts])
