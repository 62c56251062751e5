"""How good sets of generated images are: Inception Score, FID, sFID, precision and recall, KID.

Each figure is a function of features; a `FeatureNetwork` gives all three kinds at once, so that an image is looked at
once. Numbers are those of pytorch-fid and torch-fidelity, to the last digits for the same features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from dime.core.datasets import read_image
from dime.core.errors import InputError
from dime.core.images import from_image
from dime.core.metrics.features import Machine, batches, computing
from dime.core.metrics.fid import frechet_distance, gaussian
from dime.core.metrics.metric import require_one_size
from dime.core.networks.classifiers import load_classifier
from dime.core.networks.features import INCEPTION_URL, load_inception
from dime.core.networks.files import pretrained_weights, read_state_dict
from dime.core.photos import images_below
from dime.core.table import UNDEFINED, markdown_table
from dime.models.classifiers import SmallCNN

SPATIAL_CHANNELS = 7
"""Of the feature map that sFID looks at (Nash et al. 2021): 7 x 17 x 17 of Inception-V3 are about its 2048 features."""

GREY = ("1", "L", "I;16")
"""Pillow's modes of grey images."""


class Features(NamedTuple):
    """What a network says of N images: pooled (N, D), spatial (N, S) or None, logits (N, K)."""

    pooled: np.ndarray
    spatial: np.ndarray | None
    logits: np.ndarray


@dataclass(frozen=True)
class Images:
    """A set of images of one size: what it is called, how many, (C, H, W), and i -> image number i in [-1, 1]."""

    name: str
    count: int
    shape: tuple[int, ...]
    read: Callable[[int], torch.Tensor]


def open_images(path: str) -> Images:
    """A folder of image files, at any depth, or an .npz whose arr_0 is uint8 (N, H, W, C).

    A folder is grey where all its files are. Raises InputError where there is no image, or they differ in size.
    """
    if path.endswith(".npz"):
        try:
            with np.load(path) as content:
                pixels = content["arr_0"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: no images in it ({error}); expected an array arr_0 of them") from None
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3) or not len(pixels):
            found = f"{pixels.dtype} {pixels.shape}"
            raise InputError(f"{path}: no images in it: arr_0 is {found}, expected uint8 (N, H, W, 3 or 1)")
        shape = (pixels.shape[3], *pixels.shape[1:3])
        return Images(path, len(pixels), shape, lambda i: from_image(pixels[i]))
    files = [Path(path, name) for name in images_below(path)]
    require_one_size(files)
    channels = 1 if all(Image.open(file).mode in GREY for file in files) else 3
    first = from_image(read_image(str(files[0]), channels))
    return Images(path, len(files), tuple(first.shape), lambda i: from_image(read_image(str(files[i]), channels)))


class FeatureNetwork:
    """Inception-V3 as the FID knows it, or a classifier: x (N, C, H, W) in [-1, 1] -> Features.

    spec: "inception", or what load_classifier takes. Pooled features are what the last linear layer is given;
    spatial ones the first channels of a map in the middle: for Inception mixed_6/conv, for a small CNN its second
    level, for others there are none. weights: Inception's; None: looked for, or downloaded. Raises InputError.

    Attributes: suffix: what a figure's name ends with; channels: of the images; None: any.
    """

    def __init__(self, spec: str, machine: Machine, weights: Path | None = None, trust: bool = False) -> None:
        self.machine, self.seen, middle = machine, {}, None
        if spec == "inception":
            weights = weights or pretrained_weights(INCEPTION_URL)
            network, self.suffix, self.channels = load_inception(weights, machine.device), "", None
            # the scores of Salimans et al. 2016 leave the bias out, and so does torch-fidelity
            head, middle = nn.Linear(2048, 1008, bias=False), network.network.Mixed_6d.branch1x1
            head.weight.data = read_state_dict(weights)["fc.weight"]
            network.network.fc = head.to(machine.device)
        else:
            network, self.suffix = load_classifier(spec, machine.device, trust=trust), f" (classifier {spec})"
            modules = list(network.modules())
            self.channels = next((m.in_channels for m in modules if isinstance(m, nn.Conv2d)), None)
            head = next((m for m in reversed(modules) if isinstance(m, nn.Linear)), None)
            if head is None:
                raise InputError(f"--features {spec}: has no linear layer, whose input could be its features")
            if isinstance(network, SmallCNN):
                middle = network.feat_extract[1]
        head.register_forward_pre_hook(lambda _, inputs: self.seen.update(pooled=inputs[0]))
        if middle is not None:
            middle.register_forward_hook(lambda _, __, output: self.seen.update(spatial=output[:, :SPATIAL_CHANNELS]))
        self.network = network

    def __call__(self, images: Images, count: int = 0) -> Features:
        """The features of all images of a set, or of the first `count`. Raises InputError for other channels."""
        channels, wanted = images.shape[0], self.channels or images.shape[0]
        if channels != wanted:
            raise InputError(f"{images.name}: images of {channels} channel(s); the network{self.suffix} wants {wanted}")
        rows: dict[str, list[np.ndarray]] = {}
        for batch in batches(range(min(count or images.count, images.count)), images.read, self.machine):
            x = torch.stack(batch).to(self.machine.device)
            with computing():
                self.seen["logits"] = self.network(x if self.channels else x.expand(-1, 3, -1, -1))
            for name, value in self.seen.items():
                rows.setdefault(name, []).append(value.flatten(1).float().cpu().numpy())
        whole = {name: np.concatenate(parts) for name, parts in rows.items()}
        return Features(whole["pooled"], whole.get("spatial"), whole["logits"])


def figures(
    samples: Features, reference: Features | None, *, splits: int, k: int, subsets: int, subset_size: int, seed: int
) -> dict[str, str | float | None]:
    """Name -> figure, a score with its standard deviation as text; without a reference the Inception Score alone.

    Raises InputError for more splits than images, and for too few images for k neighbours or a subset.
    """
    found: dict[str, str | float | None] = {
        "IS": "{:.4g} ± {:.2g}".format(*inception_score(samples.logits, splits, seed))
    }
    if reference is None:
        return found
    found["FID"] = distance(samples.pooled, reference.pooled)
    found["sFID"] = None if samples.spatial is None else distance(samples.spatial, reference.spatial)
    found["precision"], found["recall"] = precision_recall(samples.pooled, reference.pooled, k)
    found["KID"] = "{:.4g} ± {:.2g}".format(
        *kernel_distance(samples.pooled, reference.pooled, subsets, subset_size, seed)
    )
    return found


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of two sets of features, (N, D) and (M, D)."""
    return frechet_distance(gaussian(a), gaussian(b))


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """exp E KL(p(y | x) || p(y)) of logits (N, K): mean and standard deviation over parts (Salimans et al. 2016).

    The images are shuffled first, as torch-fidelity does: files often lie in order of their classes. Raises
    InputError for more splits than images.
    """
    if not 1 <= splits <= len(logits):
        raise InputError(f"--splits {splits}: there are {len(logits)} images; give at most as many splits")
    shuffled = torch.from_numpy(logits[np.random.RandomState(seed).permutation(len(logits))]).double()
    log_p = shuffled.log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        marginal = part.exp().mean(0)
        scores.append(float((part.exp() * (part - marginal.log())).nan_to_num(0).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Shares of samples (N, D) in the reference's manifold, and of the reference (M, D) in the samples'.

    A manifold is the union of balls about its points, each up to the k-th neighbour (Kynkäänniemi et al. 2019).
    Raises InputError for fewer than k + 1 images on a side.
    """
    a, b = torch.from_numpy(samples), torch.from_numpy(reference)
    if min(len(a), len(b)) < k + 1:
        raise InputError(f"--neighbours {k}: precision and recall need {k + 1} images, there are {min(len(a), len(b))}")

    def covered(points: torch.Tensor, manifold: torch.Tensor) -> float:
        radii = torch.cat([torch.cdist(part, manifold).kthvalue(k + 1).values for part in manifold.split(1000)])
        inside = [(torch.cdist(part, manifold) <= radii).any(1) for part in points.split(1000)]
        return float(torch.cat(inside).double().mean())

    return covered(a, b), covered(b, a)


def kernel_distance(
    samples: np.ndarray, reference: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018) of (N, D) and (M, D): mean and standard deviation over random subsets.

    The unbiased estimate of MMD² with the kernel (x·y / D + 1)³; it may be below 0. Raises InputError for subsets of
    fewer than two images, or of more than there are.
    """
    smaller = min(len(samples), len(reference))
    if not 2 <= subset_size <= smaller:
        raise InputError(f"--kid_subset_size {subset_size}: a set has {smaller} images; give 2 to {smaller}")
    draw, estimates = np.random.RandomState(seed), []

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    for _ in range(subsets):
        x, y = (part[draw.choice(len(part), subset_size, replace=False)].astype(float) for part in (samples, reference))
        within = [(k.sum() - np.trace(k)) / (subset_size * (subset_size - 1)) for k in (kernel(x, x), kernel(y, y))]
        estimates.append(sum(within) - 2 * kernel(x, y).mean())
    return float(np.mean(estimates)), float(np.std(estimates))


def named(found: dict[str, str | float | None], network: FeatureNetwork) -> dict[str, str | float | None]:
    """The figures under names that say whose features they rest on."""
    return {name + network.suffix: value for name, value in found.items()}


def require_alike(sets: Sequence[Images]) -> None:
    """Raise InputError unless all images have one shape."""
    first = sets[0]
    for other in sets[1:]:
        if other.shape != first.shape:
            a, b = ("x".join(map(str, images.shape)) for images in (other, first))
            raise InputError(f"{other.name}: images of {a} (channels, height, width), those of {first.name} are {b}")


def table(columns: Mapping[str, Mapping[str, str | float | None]]) -> str:
    """Markdown with a row for every figure and a column for every set, in the order in which they are first met."""
    rows = list(dict.fromkeys(name for column in columns.values() for name in column))

    def cell(value: str | float | None) -> str:
        return UNDEFINED if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    return markdown_table(
        ["", *columns], ([row, *(cell(column.get(row)) for column in columns.values())] for row in rows)
    )
