"""How well logits tell attributes: accuracy and area under the ROC curve of each."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class AttributeScores:
    """`accuracy`, `auc`: (C,), fractions; auc is NaN where all labels agree."""

    attributes: Sequence[str]
    accuracy: np.ndarray
    auc: np.ndarray

    @classmethod
    def of(cls, attributes: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> AttributeScores:
        """From logits (N, C) and labels (N, C), 0 or 1; decisions are logit > 0."""
        accuracy = ((logits > 0) == (labels > 0.5)).mean(0)
        auc = np.array([area_under_curve(logits[:, c], labels[:, c] > 0.5) for c in range(logits.shape[1])])
        return cls(attributes, accuracy, auc)

    @property
    def mean_accuracy(self) -> float:
        """Over all attributes."""
        return float(self.accuracy.mean())

    @property
    def mean_auc(self) -> float:
        """Over the attributes that have one; NaN if none has."""
        return float(np.nanmean(self.auc)) if np.isfinite(self.auc).any() else float("nan")

    @property
    def criterion(self) -> float:
        """What the best checkpoint is chosen by: the mean AUC, which no threshold enters, else the accuracy."""
        return self.mean_auc if np.isfinite(self.mean_auc) else self.mean_accuracy

    def csv(self) -> str:
        """One line for each attribute."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["attribute", "accuracy", "auc"])
        writer.writerows(zip(self.attributes, self.accuracy.tolist(), self.auc.tolist(), strict=True))
        return text.getvalue()


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores above a negative), ties counting half: Mann and Whitney's U from ranks; NaN without both."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))
