"""The last, cheap step: what a counterfactual changes and its decision does not need is undone.

Regions are ordered by what their change is worth to the classifier, and a bisection finds the fewest that keep the
decision. It asks the classifier alone, never the diffusion model.
"""

from __future__ import annotations

import torch

from dime.core.guidance import Pull
from dime.core.masks import averaged, largest, worth

WIDTH = 5
"""Side of the squares over which worth is averaged, and over which the borders of what is kept fade."""
ROUNDS = 8
"""Evaluations of the classifier: the share of pixels that is kept is found to 1/256."""


def shrunk(cf: torch.Tensor, pull: Pull) -> torch.Tensor:
    """The counterfactuals (N, C, H, W) of pull.x with a part of their changes undone.

    Every image that reaches its target, at the confidence of the guidance, still does; where nothing can be undone it
    is returned as it is.
    """
    change, served = cf - pull.x, worth(pull.x, cf, pull, WIDTH)
    low, kept = torch.zeros(len(cf), 1, 1, 1, device=cf.device), cf
    high = torch.ones_like(low)
    for _ in range(ROUNDS):
        share = (low + high) / 2
        candidate = pull.x + averaged(largest(served, share).to(cf.dtype), WIDTH) * change
        enough = pull.reached(candidate).view_as(share)
        kept = torch.where(enough, candidate, kept)
        low, high = torch.where(enough, low, share), torch.where(enough, share, high)
    return kept
