"""CD: do counterfactuals change other attributes as the data set couples them to the one explained?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dime.core.datasets import ATTRIBUTES, read_annotations
from dime.core.errors import InputError
from dime.core.metrics.measurement import Measurement
from dime.core.metrics.metric import Context, Features, Metric, is_multiclass
from dime.core.metrics.mnac import attribute_changes, celeba_oracle
from dime.core.metrics.plots import png
from dime.core.results import Pair, ResultTree

FEW_IMAGES = 10
"""A correlation that fewer images than these decide on is said to rest on few."""


@dataclass(frozen=True)
class CorrelationDifference:
    """The CD metric and what it is made of; all correlations are with the query attribute.

    dataset, explanations: (C,), NaN where undefined. never: how many attributes no counterfactual changes. alike: how
    many others all of them change in the same way. informative: in how many images the query changes otherwise than
    in most.
    """

    dataset: np.ndarray
    explanations: np.ndarray
    never: int
    alike: int
    informative: int
    query: int

    @property
    def undefined(self) -> str:
        """Why there is no CD; '' where there is one."""
        if np.isnan(self.explanations[self.query]):
            return "the query attribute never varies: all counterfactuals change it alike, as the oracle sees it"
        if np.isnan(self.dataset[self.query]):
            return "the query attribute never varies: all labels of the data set agree"
        return ""

    @property
    def value(self) -> float:
        """CD = sum over attributes of |d_a - c_a| (Jeanneret et al. 2022, DiME); NaN where it is undefined.

        An attribute whose change, or whose label, never varies has no correlation with any other: it counts as 0.
        """
        difference = np.nan_to_num(self.explanations) - np.nan_to_num(self.dataset)
        return float("nan") if self.undefined else float(np.abs(difference).sum())

    @property
    def notes(self) -> tuple[str, ...]:
        """What limits the value, if there is one."""
        if self.undefined:
            return ()
        counts = {"never change": self.never, "change alike in all counterfactuals": self.alike}
        lines = [
            f"{n} attributes {what}: their correlation is undefined and counts as 0" for what, n in counts.items() if n
        ]
        if self.informative < FEW_IMAGES:
            lines.append(f"rests on {self.informative} informative images; in all others the query changes alike")
        return tuple(lines)


def correlation_difference(labels: np.ndarray, changes: np.ndarray, query: int) -> CorrelationDifference:
    """Compare how attributes go together in a data set and under counterfactuals.

    Args:
        labels: (M, C) of the data set, 0 or 1.
        changes: (N, C) oracle decision on the counterfactual minus on the input, in {-1, 0, 1}.
        query: the attribute explained.
    """
    same = changes.max(axis=0) == changes.min(axis=0)
    never = same & (changes[0] == 0)
    most = np.unique(changes[:, query], return_counts=True)[1].max()
    return CorrelationDifference(
        correlations(labels, query),
        correlations(changes, query),
        never=int(never.sum()),
        alike=int((same & ~never).sum()),
        informative=int(len(changes) - most),
        query=query,
    )


def correlations(values: np.ndarray, query: int) -> np.ndarray:
    """Pearson correlation (C,) of every column of values (N, C) with one of them; NaN where a column is constant."""
    constant = values.max(axis=0) == values.min(axis=0)
    centred = values - values.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    norm[constant] = np.nan
    return centred.T @ centred[:, query] / (norm * norm[query])


def spurious_correlations(pairs: Sequence[Pair], oracle: Features, labels: np.ndarray, query: int) -> list[Measurement]:
    """CD of pairs. oracle: its logits. labels (M, 40): `train_labels`.

    There is no interval: images drawn twice bias a sum of absolute values upwards.
    """
    found = correlation_difference(labels, attribute_changes(pairs, oracle), query)
    return [Measurement("CD", found.value, len(pairs), None, found.undefined, found.notes, found)]


def train_labels(celeba_path: str | Path) -> np.ndarray:
    """The labels (M, 40), 0 or 1, of CelebA's train partition."""
    return read_annotations(str(celeba_path), "train")[list(ATTRIBUTES)].to_numpy()


def _labels(context: Context) -> np.ndarray:
    if context.celeba_path is None:
        raise InputError("needs --celeba-path, a folder in CelebA's layout, for the train labels")
    return train_labels(context.celeba_path)


def needs(context: Context, tree: ResultTree) -> tuple[Features, np.ndarray, int]:
    """The oracle's logits, the train labels, and the query attribute."""
    query = context.query_of(tree)
    if is_multiclass(tree) or query >= len(ATTRIBUTES):
        raise InputError(f"needs one of CelebA's 40 attributes as query, but {tree.exp_name} explains something else")
    return *celeba_oracle(context, tree), context.once(_labels), query


def plot(cd: Measurement) -> bytes:
    """Bars: every attribute's correlation with the query attribute, sorted by the data set's."""
    found: CorrelationDifference = cd.detail
    order = np.argsort(found.dataset, kind="stable")
    rows = np.arange(len(order))
    figure = Figure(figsize=(7, 9), layout="constrained")
    axes = figure.subplots()
    axes.barh(rows + 0.2, found.dataset[order], height=0.4, label="data set (train labels)")
    axes.barh(rows - 0.2, found.explanations[order], height=0.4, label="counterfactuals (oracle)")
    axes.set_yticks(rows, [ATTRIBUTES[a].replace("_", " ") for a in order], fontsize=7)
    axes.set_xlabel(f"correlation with {ATTRIBUTES[found.query].replace('_', ' ')}")
    axes.set_title("CD is undefined" if cd.value is None else f"CD = {cd.value:.3f}")
    axes.axvline(0, color="black", linewidth=0.5)
    axes.legend(loc="lower right")
    return png(figure)


CD = Metric(
    rows=("CD",),
    measure=spurious_correlations,
    needs=needs,
    flags=("--oracle-path", "--celeba-path", "--query-label"),
    printed={"CD": "CD Result:"},
    plot=plot,
)
