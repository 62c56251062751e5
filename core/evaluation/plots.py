"""The two figures of the metrics, as PNG files; no display is needed."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure

from dime.core.datasets import ATTRIBUTES
from dime.core.metrics import CorrelationDifference


def correlation_plot(result: CorrelationDifference, query: int) -> bytes:
    """Bars: every attribute's correlation with the query attribute in the data set and under the counterfactuals.

    Attributes are sorted by the data set's correlation.
    """
    order = np.argsort(result.dataset, kind="stable")
    rows = np.arange(len(order))
    figure = Figure(figsize=(7, 9), layout="constrained")
    axes = figure.subplots()
    axes.barh(rows + 0.2, result.dataset[order], height=0.4, label="data set (train labels)")
    axes.barh(rows - 0.2, result.explanations[order], height=0.4, label="counterfactuals (oracle)")
    axes.set_yticks(rows, [ATTRIBUTES[a].replace("_", " ") for a in order], fontsize=7)
    axes.set_xlabel(f"correlation with {ATTRIBUTES[query].replace('_', ' ')}")
    axes.set_title(f"CD = {result.value:.3f}")
    axes.axvline(0, color="black", linewidth=0.5)
    axes.legend(loc="lower right")
    return png(figure)


def transition_plot(curves: np.ndarray) -> bytes:
    """Mean probability of the input's own class and of the other one, while pixels become the
    counterfactual's.

    curves: (N, K+1) probability of the own class.
    """
    share = np.linspace(0, 100, curves.shape[1])
    own = curves.mean(axis=0)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(share, own, label="class of the input")
    axes.plot(share, 1 - own, label="class of the counterfactual")
    axes.set(xlabel="pixels exchanged (%)", ylabel="mean probability", xlim=(0, 100), ylim=(0, 1))
    axes.legend()
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
