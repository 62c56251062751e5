"""How good sets of generated images are: Inception Score, FID, sFID, precision and recall, KID.

The figures are functions of features, and those of pytorch-fid and torch-fidelity to the last digits for the same ones.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from dime.core.errors import InputError
from dime.core.folders import Source, table_of
from dime.core.metrics.features import Machine, batches, computing
from dime.core.metrics.fid import frechet_distance, gaussian
from dime.core.metrics.metric import require_one_size
from dime.core.networks.classifiers import load_classifier
from dime.core.networks.features import INCEPTION_URL, load_inception
from dime.core.networks.files import pretrained_weights, read_state_dict
from dime.core.photos import images_below
from dime.core.table import UNDEFINED, markdown_table

SPATIAL_CHANNELS = 7
"""Of the map that sFID looks at (Nash et al. 2021): 7 x 17 x 17 of Inception-V3 are about as many as its features."""
SEED = 2020
"""That of torch-fidelity, so that its splits and subsets are found."""
GREY = ("1", "L", "I;16")
"""Pillow's modes of grey images."""


def open_images(path: str) -> Source:
    """A folder of image files, at any depth, or an .npz whose arr_0 is uint8 (N, H, W, C); as they are, unlabelled.

    A folder is grey where all its files are. Raises InputError where there is no image, or they differ in size.
    """
    if not path.endswith(".npz"):
        names = images_below(path)
        files = [Path(path, name) for name in names]
        require_one_size(files)
        channels = 1 if all(Image.open(file).mode in GREY for file in files) else 3
        return Source(path, table_of(names), channels=channels)
    try:
        with np.load(path) as content:
            pixels = content["arr_0"]
    except Exception as error:  # a damaged archive fails in any way
        raise InputError(f"{path}: no images in it ({error}); expected an array arr_0 of them") from None
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3) or not len(pixels):
        raise InputError(f"{path}: no images in it: {pixels.dtype} {pixels.shape}, expected uint8 (N, H, W, 3 or 1)")
    channels, table = pixels.shape[-1], table_of([str(number) for number in range(len(pixels))])
    return Source(path, table, pixels=pixels[..., 0] if channels == 1 else pixels, channels=channels)


Features = Mapping[str, np.ndarray]
"""What a network says of N images: pooled (N, D), logits (N, K), and spatial (N, S) where it has such."""


class FeatureNetwork:
    """Inception-V3 as the FID knows it, or a classifier: a set of images -> Features. Sets must have one shape.

    spec: "inception", or what load_classifier takes. Pooled features are what the last linear layer is given;
    spatial ones, Inception's alone, the first channels of mixed_6/conv. Inception sees grey images in three equal
    channels. weights: Inception's; None: looked for, or downloaded. Raises InputError.
    """

    def __init__(self, spec: str, machine: Machine, weights: Path | None = None, trust: bool = False) -> None:
        self.spec, self.machine, self.shape, self.seen = spec, machine, None, {}
        if spec == "inception":
            weights = weights or Path(pretrained_weights(INCEPTION_URL))
            self.network, self.channels = load_inception(weights, machine.device), None
            # the scores of Salimans et al. 2016 leave the bias out, and so does torch-fidelity
            head = nn.Linear(2048, 1008, bias=False)
            head.weight.data = read_state_dict(weights)["fc.weight"]
            self.network.network.Mixed_6d.branch1x1.register_forward_hook(
                lambda *seen: self.seen.update(spatial=seen[-1][:, :SPATIAL_CHANNELS])
            )
            self.network.network.fc = head.to(machine.device)
        else:
            self.network = load_classifier(spec, machine.device, trust=trust)
            modules = list(self.network.modules())
            self.channels = next((module.in_channels for module in modules if isinstance(module, nn.Conv2d)), None)
            head = next((module for module in reversed(modules) if isinstance(module, nn.Linear)), None)
            if head is None:
                raise InputError(f"--features {spec}: has no linear layer, whose input could be its features")
        head.register_forward_pre_hook(lambda _, inputs: self.seen.update(pooled=inputs[0]))

    def __call__(self, images: Source, count: int = 0) -> Features:
        """The features of a set, or of its first `count` images. Raises InputError for another shape than before."""
        found = tuple(images.load(0).shape)
        self.shape = self.shape or (self.channels or found[0], *found[1:])
        if found != self.shape:
            raise InputError(
                f"{images.folder}: images of {found} (channels, height, width), but {self.spec} and the sets before it "
                f"have {self.shape}"
            )
        rows: dict[str, list[np.ndarray]] = {}
        for batch in batches(range(min(count or len(images), len(images))), images.load, self.machine):
            x = torch.stack(batch).to(self.machine.device)
            with computing():
                self.seen["logits"] = self.network(x if self.channels else x.expand(-1, 3, -1, -1))
            for name, value in self.seen.items():
                rows.setdefault(name, []).append(value.flatten(1).float().cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def figures(
        self,
        samples: Features,
        reference: Features | None,
        splits: int = 10,
        neighbours: int = 3,
        subsets: int = 100,
        subset_size: int = 1000,
    ) -> dict[str, str | float | None]:
        """Name -> figure, with the deviation as text where there is one; without a reference IS alone.

        Names say whose features they rest on, where these are not Inception's. None: not defined. Raises InputError
        as the single figures do.
        """
        score = "{:.4g} ± {:.2g}".format
        found: dict[str, str | float | None] = {"IS": score(*inception_score(samples["logits"], splits))}
        if reference is not None:
            sides, spatial = ([side.get(kind) for side in (samples, reference)] for kind in ("pooled", "spatial"))
            found["FID"], found["sFID"] = distance(*sides), None if spatial[0] is None else distance(*spatial)
            found["precision"], found["recall"] = precision_recall(*sides, neighbours)
            found["KID"] = score(*kernel_distance(*sides, subsets, subset_size))
        suffix = "" if self.spec == "inception" else f" (classifier {self.spec})"
        return {name + suffix: value for name, value in found.items()} | {"images": len(samples["pooled"])}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of features (N, D) and (M, D)."""
    return frechet_distance(gaussian(a), gaussian(b))


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = SEED) -> tuple[float, float]:
    """exp E KL(p(y | x) || p(y)) of logits (N, K): mean and standard deviation over splits (Salimans et al. 2016).

    The images are shuffled first: files often lie in order of their classes. Raises InputError for more splits than
    images.
    """
    if splits > len(logits):
        raise InputError(f"--splits {splits}: there are {len(logits)} images; give at most as many splits")
    log_p = torch.from_numpy(logits[np.random.RandomState(seed).permutation(len(logits))]).double().log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        log_marginal = part.logsumexp(0) - np.log(len(part))
        scores.append(float((part.exp() * (part - log_marginal)).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Shares of samples (N, D) in the reference's manifold, and of the reference (M, D) in the samples'.

    A manifold is the union of balls about its points, each up to the k-th neighbour (Kynkäänniemi et al. 2019).
    Raises InputError for fewer than k + 1 images on a side.
    """
    smaller = min(len(samples), len(reference))
    if smaller < k + 1:
        raise InputError(f"--neighbours {k}: precision and recall need {k + 1} images, there are {smaller}")

    def covered(points: torch.Tensor, manifold: torch.Tensor) -> float:
        radii = torch.cat([torch.cdist(part, manifold).kthvalue(k + 1).values for part in manifold.split(1000)])
        inside = [(torch.cdist(part, manifold) <= radii).any(1) for part in points.split(1000)]
        return float(torch.cat(inside).double().mean())

    a, b = torch.from_numpy(samples).double(), torch.from_numpy(reference).double()
    return covered(a, b), covered(b, a)


def kernel_distance(
    samples: np.ndarray, reference: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = SEED
) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018) of (N, D) and (M, D): mean and standard deviation over random subsets.

    The unbiased estimate of MMD² with the kernel (x·y / D + 1)³; it may be below 0. Raises InputError for subsets of
    more images than there are.
    """
    smaller, draw, estimates = min(len(samples), len(reference)), np.random.RandomState(seed), []
    if subset_size > smaller:
        raise InputError(f"--kid_subset_size {subset_size}: a set has {smaller} images; give 2 to {smaller}")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    for _ in range(subsets):
        x, y = (side[draw.choice(len(side), subset_size, replace=False)].astype(float) for side in (samples, reference))
        within = [(k.sum() - np.trace(k)) / (subset_size * (subset_size - 1)) for k in (kernel(x, x), kernel(y, y))]
        estimates.append(sum(within) - 2 * kernel(x, y).mean())
    return float(np.mean(estimates)), float(np.std(estimates))


def table(columns: Mapping[str, Mapping[str, str | float | None]]) -> str:
    """Markdown with a row for every figure and a column for every set, in the order in which they are first met."""

    def cell(value: str | float | None) -> str:
        return UNDEFINED if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = ([name, *(cell(column.get(name, "")) for column in columns.values())] for name in names)
    return markdown_table(["", *columns], rows)
