"""MNAC: how many of the 40 attributes, as the oracle sees them, does a counterfactual change on average?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError, UndefinedError
from dime.core.metrics.features import ImageFeatures, Machine
from dime.core.metrics.metric import Context, Features, Measurement, Metric, counterfactuals, mean, originals
from dime.core.networks.features import load_oracle
from dime.core.results import Pair, ResultTree


def decide(logits: torch.Tensor) -> np.ndarray:
    """Decisions (N, C), 0 or 1, of independent binary logits: sigmoid above one half. Raises UndefinedError for NaN."""
    if logits.isnan().any():
        raise UndefinedError("the network gives NaN for an image, which is no decision")
    return (torch.sigmoid(logits) > 0.5).long().numpy()


def attribute_changes(pairs: Sequence[Pair], oracle: Features) -> np.ndarray:
    """The oracle's decisions on counterfactuals minus those on inputs (N, 40), in {-1, 0, 1}; oracle: its logits."""
    return decide(oracle(counterfactuals(pairs))) - decide(oracle(originals(pairs)))


def changed_attributes(pairs: Sequence[Pair], oracle: Features) -> list[Measurement]:
    """MNAC (Rodríguez et al. 2021, DiVE) of pairs. oracle: its logits."""
    return [mean("MNAC", np.abs(attribute_changes(pairs, oracle)).sum(axis=1).astype(float))]


def oracle_logits(oracle_path: str | Path, machine: Machine, file: Path | None = None) -> ImageFeatures:
    """The oracle's logits (N, 40) of image files."""
    oracle = load_oracle(oracle_path, machine.device)
    return ImageFeatures(lambda x: oracle(x)[1], machine, file=file, weights=Path(oracle_path))


def celeba_oracle(context: Context, tree: ResultTree) -> tuple[Features]:
    """The oracle's logits. Raises InputError for an oracle of other attributes than CelebA's, or other images."""
    for name in tree.recorded("dataset"):
        if not str(name).lower().startswith("celeba"):
            raise InputError(
                "needs images of CelebA and the oracle of its 40 attributes, but the images of "
                f"{tree.exp_name} are of the data set {name!r}"
            )
    file = tree.original_features("oracle-logits")
    logits = context.once(oracle_logits, context.oracle_path, context.machine, file)
    found = logits(originals(tree.pairs()[:1])).shape[1]
    if found != len(ATTRIBUTES):
        raise InputError(f"{context.oracle_path}: has {found} outputs, but CelebA has {len(ATTRIBUTES)} attributes")
    return (logits,)


MNAC = Metric(rows=("MNAC",), measure=changed_attributes, needs=celeba_oracle, flags=("--oracle-path",))
