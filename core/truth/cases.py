"""What the truth benchmark measures: explained images beside their truth, and what networks see in them.

Pictures are 8-bit, (H, W, 3) in grey levels 0 to 255, and have passed through all that the run's pictures pass through.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.images import from_image
from dime.core.metrics.features import Machine, computing
from dime.core.metrics.mnac import decide
from dime.core.networks.classifiers import load_classifier
from dime.core.networks.features import takes_grey
from dime.core.results import Pair
from dime.models.classifiers import SmallCNN

Oracle = Callable[[np.ndarray], np.ndarray]
"""Pictures (N, H, W, 3) -> decisions (N, A), 0 or 1, on the attributes that a truth names."""


@dataclass(frozen=True)
class Case:
    """An explained image with its truth; pictures (H, W, 3).

    x, cf: the tree's input and counterfactual. truth: the true counterfactual. region: (H, W) bool, the pixels that it
    may change; empty where the attribute does not show (bangs below a hat). has, expected: (A,) bool, which attributes
    the input has, and which the true counterfactual changes: more than one where attributes exclude each other.
    """

    pair: Pair
    x: np.ndarray
    cf: np.ndarray
    truth: np.ndarray
    region: np.ndarray
    has: np.ndarray
    expected: np.ndarray


class Cases:
    """N cases as arrays, and what an oracle sees in them.

    each: the cases. x, cf, truth: (N, H, W, 3). region: (N, H, W). changed, missed, needed: (N, H, W), |difference|, in
    grey levels and the mean over channels, of input and counterfactual, of counterfactual and truth, and of input and
    truth. expected, seen, cf_seen: (N, A), the last two the oracle's decisions. query: the column of A that was
    explained. ids: (N,). correct, flipped: (N,) bool, of the explained classifier. target: (N,) the label asked for, 0
    or 1: the opposite of what it said. shows: (N,) whether there is anything to change.
    """

    def __init__(self, each: Sequence[Case], oracle: Oracle, query: int) -> None:
        self.each, self.query = each, query
        self.x, self.cf, self.truth, self.region, has, self.expected = (
            np.stack([getattr(case, name) for case in each])
            for name in ("x", "cf", "truth", "region", "has", "expected")
        )
        self.ids, self.correct, self.flipped = (
            np.array([getattr(case.pair, name) for case in each]) for name in ("id", "correct", "flipped")
        )
        x, cf, truth = (pictures.astype(float) for pictures in (self.x, self.cf, self.truth))
        self.changed, self.missed, self.needed = (
            np.abs(a - b).mean(axis=-1) for a, b in ((x, cf), (cf, truth), (x, truth))
        )
        self.seen, self.cf_seen = oracle(self.x), oracle(self.cf)
        self.target = (has[:, query] != self.correct).astype(int)
        self.shows = self.region.any(axis=(1, 2))


def load_oracles(paths: Sequence[str], machine: Machine) -> dict[str, nn.Module]:
    """Networks that say what pictures show, with `names` of their outputs, by their paths. They must be independent of
    the classifier that is explained. Raises InputError for a file that is no such network.
    """
    networks = {str(path): load_classifier(path, machine.device) for path in paths}
    for path, network in networks.items():
        network.names = network.names or list(ATTRIBUTES)
        if network.num_outputs != len(network.names):
            raise InputError(f"{path}: has {network.num_outputs} outputs without names, expected {len(network.names)}")
        if isinstance(network, SmallCNN):
            takes_grey(network)
    return networks


def oracle_of(
    networks: Mapping[str, nn.Module], names: Sequence[str], exclusive: bool, machine: Machine, needs: Sequence[str]
) -> tuple[Oracle, np.ndarray]:
    """What load_oracles gave, as one that says which of the attributes `names` (A of them) a picture shows; and which
    of them it knows, (A,) bool; of the others it says 0.

    exclusive: whether a network's outputs are classes, of which a picture shows one. Raises InputError where none
    decides on one of those that it `needs`.
    """
    outputs = [name for network in networks.values() for name in network.names]
    for name in needs:
        if name not in outputs:
            path = ", ".join(networks)
            raise InputError(f"{path}: does not decide on {name}; give an oracle trained on it as --oracle-path")
    known = np.array([name in outputs for name in names])
    columns = [outputs.index(name) for name in names if name in outputs]

    def decided(logits: torch.Tensor) -> np.ndarray:
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).numpy() if exclusive else decide(logits)

    def oracle(pictures: np.ndarray) -> np.ndarray:
        found = [decided(outputs_on(pictures, network, machine)) for network in networks.values()]
        seen = np.zeros((len(pictures), len(names)), dtype=int)
        seen[:, known] = np.concatenate(found, axis=1)[:, columns]
        return seen

    return oracle, known


def outputs_on(pictures: np.ndarray, network: Callable[[torch.Tensor], torch.Tensor], machine: Machine) -> torch.Tensor:
    """A network's outputs (N, C), on the CPU, on pictures (N, H, W, 3), 8-bit."""
    with computing():
        parts = from_image(pictures).split(machine.batch_size)
        return torch.cat([network(part.to(machine.device)).float().cpu() for part in parts])
