"""CD: do counterfactuals change other attributes as the data set couples them to the one explained?"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dime.core.datasets import ATTRIBUTES, read_annotations
from dime.core.errors import InputError
from dime.core.metrics.metric import Context, Features, Measurement, Metric, is_multiclass
from dime.core.metrics.mnac import attribute_changes, celeba_oracle
from dime.core.results import Pair, ResultTree

FEW_IMAGES = 10
"""A correlation that fewer images than these decide on is said to rest on few."""


def correlation_difference(labels: np.ndarray, changes: np.ndarray, query: int) -> Measurement:
    """CD = sum over attributes a of |d_a - c_a| (Jeanneret et al. 2022, DiME), all correlations with the query.

    An attribute whose change, or whose label, never varies has no correlation: it counts as 0, which a note says. CD
    itself is undefined where the query never varies. There is no interval: images drawn twice bias a sum of absolute
    values upwards.

    Args:
        labels: (M, C) of the data set, 0 or 1; c_a.
        changes: (N, C) oracle decision on the counterfactual minus on the input, in {-1, 0, 1}; d_a.
        query: the attribute explained.

    The measurement's detail is c (C,), d (C,), NaN where undefined, and the query.
    """
    c, d = correlations(labels, query), correlations(changes, query)
    n, reason, notes = len(changes), "", []
    if np.isnan(d[query]):
        reason = "the query attribute never varies: all counterfactuals change it alike, as the oracle sees it"
    elif np.isnan(c[query]):
        reason = "the query attribute never varies: all labels of the data set agree"
    else:
        same = changes.max(axis=0) == changes.min(axis=0)
        never = same & (changes[0] == 0)
        counts = {"never change": never.sum(), "change alike in all counterfactuals": (same & ~never).sum()}
        notes = [
            f"{k} attributes {what}: their correlation is undefined and counts as 0" for what, k in counts.items() if k
        ]
        informative = n - np.unique(changes[:, query], return_counts=True)[1].max()
        if informative < FEW_IMAGES:
            notes.append(f"rests on {informative} informative images; in all others the query changes alike")
    value = None if reason else float(np.abs(np.nan_to_num(d) - np.nan_to_num(c)).sum())
    return Measurement("CD", value, n, reason=reason, notes=tuple(notes), detail=(c, d, query))


def correlations(values: np.ndarray, query: int) -> np.ndarray:
    """Pearson correlation (C,) of every column of values (N, C) with one of them; NaN where a column is constant."""
    constant = values.max(axis=0) == values.min(axis=0)
    centred = values - values.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    norm[constant] = np.nan
    return centred.T @ centred[:, query] / (norm * norm[query])


def spurious_correlations(pairs: Sequence[Pair], oracle: Features, labels: np.ndarray, query: int) -> list[Measurement]:
    """CD of pairs. oracle: its logits. labels (M, 40): `train_labels`."""
    return [correlation_difference(labels, attribute_changes(pairs, oracle), query)]


def train_labels(celeba_path: str) -> np.ndarray:
    """The labels (M, 40), 0 or 1, of CelebA's train partition."""
    return read_annotations(celeba_path, "train")[list(ATTRIBUTES)].to_numpy()


def needs(context: Context, tree: ResultTree) -> tuple[Features, np.ndarray, int]:
    """The oracle's logits, the train labels, and the query attribute."""
    query = context.query_of(tree)
    if is_multiclass(tree) or query >= len(ATTRIBUTES):
        raise InputError(f"needs one of CelebA's 40 attributes as query, but {tree.exp_name} explains something else")
    oracle = celeba_oracle(context, tree)
    if context.celeba_path is None:
        raise InputError("needs --celeba-path, a folder in CelebA's layout, for the train labels")
    return *oracle, context.once(train_labels, context.celeba_path), query


def plot(cd: Measurement) -> Figure:
    """Bars: every attribute's correlation with the query attribute, sorted by the data set's."""
    of_labels, of_changes, query = cd.detail
    order = np.argsort(of_labels, kind="stable")
    rows = np.arange(len(order))
    figure = Figure(figsize=(7, 9), layout="constrained")
    axes = figure.subplots()
    axes.barh(rows + 0.2, of_labels[order], height=0.4, label="data set (train labels)")
    axes.barh(rows - 0.2, of_changes[order], height=0.4, label="counterfactuals (oracle)")
    axes.set_yticks(rows, [ATTRIBUTES[a].replace("_", " ") for a in order], fontsize=7)
    axes.set_xlabel(f"correlation with {ATTRIBUTES[query].replace('_', ' ')}")
    axes.set_title("CD is undefined" if cd.value is None else f"CD = {cd.value:.3f}")
    axes.axvline(0, color="black", linewidth=0.5)
    axes.legend(loc="lower right")
    return figure


CD = Metric(
    rows=("CD",),
    measure=spurious_correlations,
    needs=needs,
    flags=("--oracle-path", "--celeba-path", "--query-label"),
    printed={"CD": "CD Result:"},
    plot=plot,
)
