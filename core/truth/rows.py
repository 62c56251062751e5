"""The rows of the truth benchmark: how near a counterfactual comes to the true one, and what it cost.

A row of your own is a Row: what is measured on each image, and what becomes of it. Changes and distances are means of
absolute differences over pixels and channels, in grey levels (0 to 255).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dime.core.errors import InputError
from dime.core.guidance import Binary, Guidance
from dime.core.methods import METHODS, Settings
from dime.core.metrics.attribute_scores import area_under_curve
from dime.core.metrics.faces import SMALL_FS, face_features, face_similarity
from dime.core.metrics.features import Machine
from dime.core.metrics.flip_rate import FLIP_RATE
from dime.core.metrics.metric import Context, select_pairs
from dime.core.metrics.robust import ROBUST
from dime.core.results import ResultTree
from dime.core.sampler import Denoiser
from dime.core.summary import ImageRecord
from dime.core.truth.cases import Cases, outputs_on
from guided_diffusion.script_util import create_diffusion

TURNED = "attribute turned over"
OTHERS = "other attributes changed"
CHANGE = "change"
INSIDE = "change inside the region"
OUTSIDE = "change outside the region"
SHARE_OUTSIDE = "share of change outside"
LOCALISATION = "localisation"
ALIGNMENT = "alignment"
DISTANCE = "distance to the truth"
RECOVERED = "recovered"
RECOVERED_INSIDE = "recovered inside the region"
RECOVERED_ADDED = "recovered where the attribute comes"
RECOVERED_REMOVED = "recovered where it goes"
EVALUATIONS = "evaluations per image"


@dataclass(frozen=True)
class Row:
    """One number about an experiment; docs/truth.md says what each means.

    per_image: N cases -> values (N,) or (N, K), NaN on images that have none. combine: the values of the images that
    count -> the number, NaN where it is undefined. among: which images count: all, those whose counterfactual reached
    its target (flipped), or those that have a true counterfactual which can be seen (true). interval: whether
    resampling the images says how sure the number is.
    """

    name: str
    per_image: Callable[[Cases], np.ndarray]
    combine: Callable[[np.ndarray], float] = np.mean
    among: Literal["all", "flipped", "true"] = "true"
    interval: bool = True


def within(values: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The mean (N,) of values (N, H, W) over the pixels of a region; NaN where it is empty."""
    count = region.sum(axis=(1, 2))
    return np.where(region, values, 0).sum(axis=(1, 2)) / np.where(count, count, np.nan)


def share_outside(c: Cases) -> np.ndarray:
    """The share (N,) of all change that lies outside the region; NaN for an image that did not change."""
    total = c.changed.sum(axis=(1, 2))
    return np.where(c.region, 0, c.changed).sum(axis=(1, 2)) / np.where(total, total, np.nan)


def localisation(c: Cases) -> np.ndarray:
    """P (N,) that a pixel of the region changed more than one outside: 1/2 by chance; NaN if it is the whole image."""
    return np.array([area_under_curve(a.ravel(), r.ravel()) for a, r in zip(c.changed, c.region, strict=True)])


def alignment(c: Cases) -> np.ndarray:
    """Cosine (N,) between the change made, cf - x, and the true one, truth - x; NaN where either change is zero."""
    made, true = ((image.astype(float) - c.x).reshape(len(c.x), -1) for image in (c.cf, c.truth))
    norm = np.linalg.norm(made, axis=1) * np.linalg.norm(true, axis=1)
    return (made * true).sum(axis=1) / np.where(norm, norm, np.nan)


def distances(c: Cases) -> np.ndarray:
    """How far counterfactual and input are from the truth, (N, 2)."""
    return np.stack([c.missed.mean(axis=(1, 2)), c.needed.mean(axis=(1, 2))], axis=1)


def recovered(distances: np.ndarray) -> float:
    """How much of the way to the truth was gone: 1 - Σ d(cf, truth) / Σ d(x, truth), of these distances (N, 2).

    1: the counterfactuals are the true ones; 0: no nearer than their inputs; negative: further away. Sums, not ratios
    per image, so that an image that needs next to no change does not outweigh all others. NaN when no image needs any.
    """
    left, start = distances.sum(axis=0)
    return float(1 - left / start) if start else float("nan")


ROWS = (
    Row(TURNED, lambda c: c.cf_seen[:, c.query] == c.target),
    Row(OTHERS, lambda c: ((c.seen != c.cf_seen) & ~c.expected).sum(axis=1)),
    Row(CHANGE, lambda c: c.changed.mean(axis=(1, 2))),
    Row(INSIDE, lambda c: within(c.changed, c.region)),
    Row(OUTSIDE, lambda c: within(c.changed, ~c.region)),
    Row(SHARE_OUTSIDE, share_outside),
    Row(LOCALISATION, localisation),
    Row(ALIGNMENT, alignment),
    Row(DISTANCE, lambda c: c.missed.mean(axis=(1, 2))),
    Row(RECOVERED, distances, recovered),
    Row(RECOVERED_ADDED, lambda c: np.where(c.target[:, None] == 1, distances(c), np.nan), recovered),
    Row(RECOVERED_REMOVED, lambda c: np.where(c.target[:, None] == 0, distances(c), np.nan), recovered),
    Row(RECOVERED_INSIDE, lambda c: np.stack([within(d, c.region) for d in (c.missed, c.needed)], axis=1), recovered),
)
"""What is right about a counterfactual: measured on the true counterfactuals and on the inputs as well."""

FLIPS = Row(FLIP_RATE, lambda c: c.flipped, among="all")


def similarity(path: str, machine: Machine) -> Row:
    """FS by the features of a small CNN: cosine of input and counterfactual."""
    network = face_features(path, machine).network
    return Row(SMALL_FS, lambda c: face_similarity(*(outputs_on(each, network, machine) for each in (c.x, c.cf))))


def robustness(trees: Sequence[ResultTree], context: Context) -> list[Row]:
    """The rows of core/metrics/robust.py. Raises InputError where what they need is not there."""
    made = []
    for metric in ROBUST:
        known = {}
        for tree in trees:
            pairs = select_pairs(tree, flipped_only=metric.flipped_only)
            values = metric.measure(pairs, *metric.needs(context, tree))[0].detail
            known |= {pair.info: value for pair, value in zip(pairs, values, strict=True)}

        def per_image(c: Cases, known: Mapping[Path, float] = known) -> np.ndarray:
            return np.array([known.get(case.pair.info, np.nan) for case in c.each])

        made.append(Row(metric.rows[0], per_image, among="all"))
    return made


def evaluations(flags: Mapping[str, Any], attempts: int = 1) -> int:
    """How often a method evaluates the U-Net in so many attempts: counted, on a network that does nothing.

    flags: of main.py; those of the diffusion process, the method and its settings.
    """
    calls, outputs = [], 2 if flags["learn_sigma"] else 1

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(t)
        return x.new_zeros(len(x), outputs * x.shape[1], *x.shape[2:])

    x, guidance = torch.zeros(1, 3, 8, 8), Guidance(lambda x: x.mean(dim=(2, 3)), Binary())
    pull = guidance.towards(x, None, torch.ones(1), scale=0)
    method, denoiser = METHODS[flags["method"]](Settings.of(flags)), Denoiser(network, create_diffusion(flags))
    inversion = method.invert(denoiser, x, x, torch.zeros)
    for _ in range(attempts):
        method(denoiser, x, x, pull, noise=lambda i: torch.zeros, inversion=inversion)
    return len(calls)


def evaluations_spent(trees: Sequence[ResultTree]) -> Row:
    """The row of evaluations per image, all scales tried together. Raises InputError where a run does not say them."""
    spent = {}
    for tree in trees:
        flags = next(iter(tree.configurations()), {})
        try:
            scales = np.float32(flags["classifier_scales"]).tolist()
            after = [evaluations(flags, attempts) for attempts in range(1, len(scales) + 1)]
            for pair in tree.pairs():
                record = ImageRecord.from_text(pair.id, pair.info.read_text())
                spent[pair.info] = after[scales.index(record.scale)]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{tree.results}: its files do not say which scales were tried ({error})") from None
    return Row(EVALUATIONS, lambda c: np.array([spent[case.pair.info] for case in c.each]), among="all")
