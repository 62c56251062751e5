"""How well logits tell attributes: accuracy and area under the ROC curve of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu


@dataclass(frozen=True)
class AttributeScores:
    """`accuracy`, `auc`: (C,), fractions; auc is NaN where all labels agree. Their means are over those that exist."""

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
        return float(self.accuracy.mean())

    @property
    def mean_auc(self) -> float:
        return float(np.nanmean(self.auc)) if np.isfinite(self.auc).any() else float("nan")

    @property
    def criterion(self) -> float:
        """What the best checkpoint is chosen by: the mean AUC, which no threshold enters, else the accuracy."""
        return self.mean_auc if np.isfinite(self.mean_auc) else self.mean_accuracy

    def csv(self) -> str:
        """One line for each attribute."""
        table = pd.DataFrame({"attribute": list(self.attributes), "accuracy": self.accuracy, "auc": self.auc})
        return table.to_csv(index=False, na_rep="nan", lineterminator="\r\n")


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores above a negative), ties counting half: Mann and Whitney's U; NaN without both."""
    above, below = scores[positive], scores[~positive]
    if not len(above) or not len(below):
        return float("nan")
    return float(mannwhitneyu(above, below, method="asymptotic").statistic / (len(above) * len(below)))
