"""COUT: how soon does the decision flip while pixels turn into the counterfactual's, most changed first?"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import trapezoid

from dime.core.guidance import Decision
from dime.core.metrics.features import Machine, read_images, shared
from dime.core.metrics.metric import Measurement, Metric, mean
from dime.core.results import Pair

TRANSITION_STEPS = 50
"""Into how many equal parts the pixels of an image are cut."""


def transition(
    classify: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, x_cf: torch.Tensor, decision: Decision
) -> np.ndarray:
    """How the prediction changes while an input turns into its counterfactual, most changed pixels first.

    Args:
        classify: images (N, 3, H, W) in [-1, 1] -> logits (N, K).
        x, x_cf: saved inputs and counterfactuals (N, 3, H, W).
        decision: the one explained.

    Returns:
        (N, K+1) probability of what is predicted for the input, after 0 … K steps of max(1, H·W // 50) pixels (COUT,
        Khorram and Fuxin 2022).
    """
    pixels = x[0, 0].numel()
    step = max(1, pixels // TRANSITION_STEPS)
    # in whole grey levels, so that equal changes are ties on every machine; ties go from top left to bottom right
    change = ((x_cf - x) * 127.5).round().abs().sum(dim=1).flatten(1)
    rank = change.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(x[:, :1])
    logits = [classify(torch.where(rank < changed, x_cf, x)) for changed in range(0, pixels + step, step)]
    own = decision.predict(logits[0])
    curve = torch.stack([decision.probability(step_logits, own) for step_logits in logits], dim=1)
    return curve.cpu().double().numpy()  # on the CPU: not every device has float64


def cout(curves: np.ndarray, pixels: int) -> np.ndarray:
    """COUT (N,) of transition curves (N, K+1): area under p(another class) minus area under p(own class), about ±1."""
    step = max(1, pixels // TRANSITION_STEPS)
    return trapezoid(1 - 2 * curves, axis=1) * step / pixels


def class_transition(
    pairs: Sequence[Pair], classify: Callable[[torch.Tensor], torch.Tensor], decision: Decision, machine: Machine
) -> list[Measurement]:
    """COUT of pairs; its detail are the curves (N, K+1). The original prediction is made anew from the saved input."""

    def compute(images: list[torch.Tensor]) -> np.ndarray:
        return transition(classify, *torch.stack(images, dim=1).to(machine.device), decision)

    files = [(pair.original, pair.counterfactual) for pair in pairs]
    curves, pixels = np.concatenate(shared(files, read_images, compute, machine)), read_images(files[0])[0, 0].numel()
    return [replace(mean("COUT", cout(curves, pixels)), detail=curves)]


def plot(measured: Measurement) -> Figure:
    """Mean probability of the input's own class and of the others, while pixels become the counterfactual's."""
    own = measured.detail.mean(axis=0)
    share = np.linspace(0, 100, len(own))
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(share, own, label="class of the input")
    axes.plot(share, 1 - own, label="any other class")
    axes.set(xlabel="pixels exchanged (%)", ylabel="mean probability", xlim=(0, 100), ylim=(0, 1))
    axes.legend()
    return figure


COUT = Metric(
    rows=("COUT",),
    measure=class_transition,
    needs=lambda context, tree: (*context.explained(tree), context.machine),
    flags=("--classifier-path", "--trust-classifier", "--query-label"),
    partition="cor",
    flipped_only=False,
    plot=plot,
)
