"""The numbers of the papers as functions: features and decisions in, values per image or one number out.

Names as in the papers: FVA and FS (faces), MNAC (attributes), CD (correlations), COUT (transition), MAD, flip
rate. The Fréchet distances have a file of their own (core.evaluation.frechet).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

SAME_FACE = 0.5
"""Cosine of VGGFace2 features above which two images count as one person."""
TRANSITION_STEPS = 50
"""Into how many equal parts COUT cuts the pixels of an image."""


def face_similarity(features: torch.Tensor, cf_features: torch.Tensor) -> np.ndarray:
    """Cosine (N,) between face features (N, D) of inputs and counterfactuals; its mean is the FS of later papers."""
    return F.cosine_similarity(features.double(), cf_features.double()).numpy()


def same_face(similarity: np.ndarray) -> np.ndarray:
    """Which counterfactuals (N,) show the input's person, 0 or 1; the mean is the FVA (Rodríguez et al. 2021, DiVE)."""
    return (similarity > SAME_FACE).astype(float)


def decide(logits: torch.Tensor) -> np.ndarray:
    """Decisions (N, C), 0 or 1, of independent binary logits: sigmoid above one half."""
    return (torch.sigmoid(logits) > 0.5).long().numpy()


def attributes_changed(decisions: np.ndarray, cf_decisions: np.ndarray) -> np.ndarray:
    """How many attributes (N,) differ between decisions (N, C); the mean is the MNAC (Rodríguez et al. 2021, DiVE)."""
    return (decisions != cf_decisions).sum(axis=1).astype(float)


@dataclass(frozen=True)
class CorrelationDifference:
    """The CD metric and what it is made of; all correlations are with the query attribute.

    dataset, explanations: (C,), 0 where undefined. undefined: how many attributes the counterfactuals never change.
    """

    dataset: np.ndarray
    explanations: np.ndarray
    undefined: int

    @property
    def value(self) -> float:
        """CD = sum over attributes of |d_a - c_a| (Jeanneret et al. 2022, DiME)."""
        return float(np.abs(self.explanations - self.dataset).sum())


def correlation_difference(labels: np.ndarray, changes: np.ndarray, query: int) -> CorrelationDifference:
    """Do counterfactuals change other attributes as the data set couples them to the query attribute?

    Args:
        labels: (M, C) of the data set, 0 or 1.
        changes: (N, C) oracle decision on the counterfactual minus on the input, in {-1, 0, 1}.
        query: the attribute explained.
    """
    dataset, explanations = correlations(labels, query), correlations(changes, query)
    undefined = int(np.isnan(explanations).sum())
    return CorrelationDifference(np.nan_to_num(dataset), np.nan_to_num(explanations), undefined)


def correlations(values: np.ndarray, query: int) -> np.ndarray:
    """Pearson correlation (C,) of every column of values (N, C) with one of them; NaN where a column is constant."""
    constant = values.max(axis=0) == values.min(axis=0)
    centred = values - values.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    norm[constant] = np.nan
    return centred.T @ centred[:, query] / (norm * norm[query])


def transition(
    classify: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, x_cf: torch.Tensor, query: int
) -> np.ndarray:
    """How the prediction changes while an input turns into its counterfactual, most changed pixels first.

    Args:
        classify: images (N, 3, H, W) in [-1, 1] -> binary logits (N, C).
        x, x_cf: saved inputs and counterfactuals (N, 3, H, W).
        query: the decision explained.

    Returns:
        (N, K+1) probability of the input's own class after 0 … K steps of max(1, H·W // 50) pixels (COUT,
        Khorram and Fuxin 2022).
    """
    pixels = x[0, 0].numel()
    step = max(1, pixels // TRANSITION_STEPS)
    # in whole grey levels, so that equal changes are ties on every machine; ties go from top left to bottom right
    change = ((x_cf - x) * 127.5).round().abs().sum(dim=1).flatten(1)
    rank = change.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(x[:, :1])
    curve = []
    for changed in range(0, pixels + step, step):
        logits = classify(torch.where(rank < changed, x_cf, x))[:, query]
        curve.append(torch.sigmoid(logits))
        if changed == 0:
            positive = logits > 0
    p = torch.stack(curve, dim=1).double()
    return torch.where(positive[:, None], p, 1 - p).cpu().numpy()


def cout(curves: np.ndarray, pixels: int) -> np.ndarray:
    """COUT (N,) of transition curves (N, K+1): area under p(other class) minus area under p(own class), about ±1."""
    step = max(1, pixels // TRANSITION_STEPS)
    return (_area(1 - curves) - _area(curves)) * step / pixels


def _area(curves: np.ndarray) -> np.ndarray:
    """Trapezoidal rule with unit steps."""
    return curves.sum(axis=1) - (curves[:, 0] + curves[:, -1]) / 2


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of n images, given as a function of the indices (n,) of a resample."""
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
