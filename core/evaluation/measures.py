"""The evaluation protocol on result trees: which images enter a metric, what is computed on them, and the
result.

Measures take pairs of files (core.results) and the networks they need, so that features are shared by measures and by
experiments; Fréchet distances take the whole tree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

from dime.core.datasets import ATTRIBUTES, read_annotations, read_image
from dime.core.errors import InputError, UndefinedError
from dime.core.evaluation.features import ImageFeatures, Machine, StoredFeatures, batches, computing
from dime.core.evaluation.frechet import frechet_distance, gaussian, split_frechet_distance
from dime.core.images import from_image
from dime.core.metrics import (
    CorrelationDifference,
    attributes_changed,
    bootstrap_interval,
    correlation_difference,
    cout,
    decide,
    face_similarity,
    same_face,
    transition,
)
from dime.core.networks.features import INCEPTION_URL, load_inception, load_oracle, load_small_cnn, load_vggface2
from dime.core.networks.files import pretrained_weights
from dime.core.results import Pair, ResultTree
from dime.models.perceptual import LPIPSDistance
from dime.models.resnet import vggface2_input

PARTITIONS = ("cor", "inc", "all")
"""Images classified correctly, incorrectly, or both."""
FEATURE_NETWORKS = ("inception", "oracle")
"""In whose feature space Fréchet distances are taken."""

FLIP_RATE = "flip rate"
SMALL_FS = "FS (small network)"

Features = Callable[[Sequence[Path]], torch.Tensor]
"""Image files -> features (N, D): an ImageFeatures, or one that remembers."""


@dataclass(frozen=True)
class Measurement:
    """One number about one experiment.

    n: the images behind it. interval: 95 % bootstrap interval over images, where it means something.
    """

    name: str
    value: float
    n: int
    interval: tuple[float, float] | None = None


# which images


def select_pairs(tree: ResultTree, partition: str = "all", flipped_only: bool = True) -> list[Pair]:
    """The pairs of an experiment that a metric looks at: those of CCF, or all of them.

    Raises InputError when there is none, when sizes differ, or as ResultTree.pairs does.
    """
    pairs = tree.pairs()
    if not pairs:
        raise InputError(f"{tree.results}: the experiment holds no counterfactual yet")
    chosen = [pair for pair in pairs if in_partition(pair, partition) and (pair.flipped or not flipped_only)]
    if not chosen:
        kind = {"cor": "a correctly classified", "inc": "an incorrectly classified", "all": "an"}[partition]
        reached = " whose counterfactual reached its target" if flipped_only else ""
        raise UndefinedError(f"{tree.results}: none of its {len(pairs)} pairs is of {kind} image{reached}")
    _require_one_size(_originals(chosen) + _counterfactuals(chosen))
    return chosen


def in_partition(pair: Pair, partition: str) -> bool:
    """Whether --partition takes this pair in."""
    return partition == "all" or pair.correct == (partition == "cor")


def _require_one_size(paths: Sequence[Path]) -> None:
    expected = _size(paths[0])
    for path in paths:
        size = _size(path)
        if size != expected:
            raise InputError(
                f"{path}: is {size[0]}x{size[1]}, but {paths[0]} is {expected[0]}x{expected[1]}; "
                "all images of an experiment must have one size"
            )


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from None


def _originals(pairs: Sequence[Pair]) -> list[Path]:
    return [pair.original for pair in pairs]


def _counterfactuals(pairs: Sequence[Pair]) -> list[Path]:
    return [pair.counterfactual for pair in pairs]


# measures


def mean(name: str, values: np.ndarray) -> Measurement:
    """The mean of a value per image, with its interval."""
    interval = bootstrap_interval(lambda rows: values[rows].mean(), len(values))
    return Measurement(name, float(values.mean()), len(values), interval)


def flip_rate(pairs: Sequence[Pair]) -> Measurement:
    """The share of counterfactuals that reached their target, of all pairs."""
    return mean(FLIP_RATE, np.array([pair.flipped for pair in pairs], dtype=float))


def face_verification(pairs: Sequence[Pair], faces: Features) -> tuple[Measurement, Measurement]:
    """FVA and FS: is the person the same? faces: VGGFace2 features."""
    similarity = face_similarity(faces(_originals(pairs)), faces(_counterfactuals(pairs)))
    return mean("FVA", same_face(similarity)), mean("FS", similarity)


def feature_similarity(pairs: Sequence[Pair], features: Features) -> Measurement:
    """FS with the features of another network than VGGFace2's, which does not compare with FS."""
    return mean(SMALL_FS, face_similarity(features(_originals(pairs)), features(_counterfactuals(pairs))))


def changed_attributes(pairs: Sequence[Pair], attributes: Features) -> Measurement:
    """MNAC: how many attributes change? attributes: the oracle's logits."""
    changed = attributes_changed(decide(attributes(_originals(pairs))), decide(attributes(_counterfactuals(pairs))))
    return mean("MNAC", changed)


def spurious_correlations(
    pairs: Sequence[Pair], attributes: Features, labels: np.ndarray, query: int
) -> tuple[Measurement, CorrelationDifference]:
    """CD: does the explanation change more than the query? labels (M, 40): `train_labels`.

    There is no interval: images drawn twice bias a sum of absolute values upwards.
    """
    changes = decide(attributes(_counterfactuals(pairs))) - decide(attributes(_originals(pairs)))
    if changes.shape[1] != labels.shape[1]:
        raise InputError(f"the oracle has {changes.shape[1]} outputs, but CelebA has {labels.shape[1]} attributes")
    result = correlation_difference(labels, changes, query)
    return Measurement("CD", result.value, len(pairs)), result


def train_labels(celeba_path: str | Path) -> np.ndarray:
    """The labels (M, 40), 0 or 1, of CelebA's train partition."""
    return read_annotations(str(celeba_path), "train")[list(ATTRIBUTES)].to_numpy()


def decision_change(pairs: Sequence[Pair], logits: Features, query: int) -> Measurement:
    """MAD: by how much does the classifier's probability change? logits: the explained classifier's."""
    before, after = (torch.sigmoid(logits(paths)[:, query]) for paths in (_originals(pairs), _counterfactuals(pairs)))
    return mean("MAD", (before - after).abs().double().numpy())


def class_transition(
    pairs: Sequence[Pair], classifier: nn.Module, query: int, machine: Machine
) -> tuple[Measurement, np.ndarray]:
    """COUT, and the transition curves (N, K+1) behind it; the original prediction is made anew from the saved input."""
    curves = []
    for images in batches(pairs, _read_pair, machine):
        x, x_cf = torch.stack(images, dim=1).to(machine.device)
        with computing():
            curves.append(transition(classifier, x, x_cf, query))
    together = np.concatenate(curves)
    return mean("COUT", cout(together, pixels=x[0, 0].numel())), together


def _read_pair(pair: Pair) -> torch.Tensor:
    return torch.stack([from_image(read_image(str(path))) for path in (pair.original, pair.counterfactual)])


def realism(
    tree: ResultTree, partition: str, network: str, input_features: Features, cf_features: Features
) -> list[Measurement]:
    """Fréchet distances between inputs and counterfactuals of CCF: over all of them, and over opposite halves.

    In Inception's feature space (network `inception`) they are FID and sFID, in another one they have other names.
    With partition `all` the inputs are all of Original/, else those of the experiment's images of that kind. n is the
    smaller side. There is no interval: images drawn twice bias a Fréchet distance upwards. The second is left out where
    a half has too few images for it; UndefinedError where both have.
    """
    pairs = select_pairs(tree, partition)
    explained = _originals(select_pairs(tree, partition, flipped_only=False))
    inputs = tree.originals() if partition == "all" else explained
    _require_one_size(inputs)
    x, x_cf = input_features(inputs).numpy(), cf_features(_counterfactuals(pairs)).numpy()
    n = min(len(x), len(x_cf))
    ids, cf_ids = (np.array([int(path.stem) for path in paths]) for paths in (inputs, _counterfactuals(pairs)))
    whole, split = frechet_names(network)
    distances = [Measurement(whole, frechet_distance(gaussian(x), gaussian(x_cf)), n)]
    with contextlib.suppress(UndefinedError):
        distances.append(Measurement(split, split_frechet_distance(ids, x, cf_ids, x_cf), n))
    return distances


def frechet_names(network: str) -> tuple[str, str]:
    """What the two distances of `realism` are called: FID and sFID are Inception's alone."""
    if network == "inception":
        return "FID", "sFID"
    return f"Frechet distance ({network} features)", f"split Frechet distance ({network} features)"


def diversity(trees: Sequence[ResultTree], lpips: LPIPSDistance, machine: Machine, partition: str) -> Measurement:
    """σ_L: mean LPIPS between the counterfactuals of an image in experiments that differ in their seed.

    Only images in the same quarter of the tree (CC/IC, CCF/ICF) in every experiment count. Raises InputError
    when there is none, or fewer than two experiments.
    """
    if len(trees) < 2:
        raise InputError("sigma_L compares the counterfactuals of at least two experiments, found one")
    groups = _common_images(trees, partition)
    distances = []
    for images in batches(groups, _read_group, machine):
        with computing():
            features = [lpips.features(x.to(machine.device)) for x in torch.stack(images, dim=1)]
            pairs = [lpips(a, b) for a, b in combinations(features, 2)]
        distances.append(torch.stack(pairs).double().mean(dim=0).cpu())
    return mean("sigma_L", torch.cat(distances).numpy())


def _common_images(trees: Sequence[ResultTree], partition: str) -> list[list[Path]]:
    """For every image in the same quarter everywhere: its counterfactual in each of the experiments."""
    experiments = [select_pairs(tree, partition, flipped_only=False) for tree in trees]
    found = [{(pair.id, pair.correct, pair.flipped): pair for pair in pairs} for pairs in experiments]
    common = sorted(set.intersection(*(set(pairs) for pairs in found)))
    if not common:
        names = ", ".join(tree.exp_name for tree in trees)
        raise InputError(f"no image lies in the same folder (CC/IC, CCF/ICF) in all of the experiments {names}")
    groups = [[pairs[key].counterfactual for pairs in found] for key in common]
    _require_one_size([path for group in groups for path in group])
    return groups


def _read_group(paths: Sequence[Path]) -> torch.Tensor:
    return torch.stack([from_image(read_image(str(path))) for path in paths])


# networks as features


def face_features(weights_path: str | Path, machine: Machine) -> ImageFeatures:
    """VGGFace2 features (N, 2048) of image files."""
    return ImageFeatures(load_vggface2(weights_path, machine.device), machine, vggface2_input)


def small_features(weights_path: str | Path, machine: Machine) -> ImageFeatures:
    """Features (N, D) of image files by a small CNN, where there is no face network."""
    return ImageFeatures(load_small_cnn(weights_path, machine.device).feat_extract, machine)


def oracle_logits(oracle_path: str | Path, machine: Machine) -> ImageFeatures:
    """The oracle's logits (N, 40) of image files."""
    oracle = load_oracle(oracle_path, machine.device)
    return ImageFeatures(lambda x: oracle(x)[1], machine)


def frechet_features(network: str, weights: str | Path | None, machine: Machine) -> tuple[ImageFeatures, Path]:
    """Features for `realism`, and the file of weights behind them.

    network: one of FEATURE_NETWORKS. weights: their file; None looks for Inception's where pretrained weights lie.
    """
    if network == "oracle":
        oracle = load_oracle(weights, machine.device)
        return ImageFeatures(lambda x: oracle(x)[0], machine), Path(weights)
    path = Path(weights) if weights else pretrained_weights(INCEPTION_URL)
    return ImageFeatures(load_inception(path, machine.device), machine), path


def remembered(features: ImageFeatures, tree: ResultTree, network: str, weights: Path) -> StoredFeatures:
    """The same features, kept beside the inputs of the tree for the next experiment."""
    return StoredFeatures(features, tree.original_features(network), weights)


def summary_figures(tree: ResultTree, faces: Features, attributes: Features) -> dict[str, float]:
    """The FVA and MNAC of a summary, 0 where no counterfactual reached its target.

    faces: VGGFace2 features. attributes: the oracle's logits.
    """
    if not any(pair.flipped for pair in tree.pairs()):
        return {"FVA": 0, "MNAC": 0}
    pairs = select_pairs(tree)
    fva, _ = face_verification(pairs, faces)
    return {"FVA": fva.value, "MNAC": changed_attributes(pairs, attributes).value}
