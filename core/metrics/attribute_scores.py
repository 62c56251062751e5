"""How well logits tell attributes: accuracy and area under the ROC curve of each."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu


def attribute_scores(attributes: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """A row for each attribute: its name, accuracy and auc, both fractions; auc is NaN where all labels agree.

    From logits (N, C) and labels (N, C), 0 or 1; decisions are logit > 0.
    """
    positive = labels > 0.5
    auc = [area_under_curve(*columns) for columns in zip(logits.T, positive.T, strict=True)]
    return pd.DataFrame({"attribute": list(attributes), "accuracy": ((logits > 0) == positive).mean(0), "auc": auc})


def criterion(scores: pd.DataFrame) -> float:
    """What the best checkpoint is chosen by: the mean AUC, which no threshold enters, else the mean accuracy."""
    return float(scores["auc"].mean() if scores["auc"].notna().any() else scores["accuracy"].mean())


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores above a negative), ties counting half: Mann and Whitney's U; NaN without both."""
    above, below = scores[positive], scores[~positive]
    if not len(above) or not len(below):
        return float("nan")
    return float(mannwhitneyu(above, below, method="asymptotic").statistic / (len(above) * len(below)))
