"""The last, cheap step: what a counterfactual changes and its decision does not need is undone.

Regions are ordered by what their change is worth to the classifier, and a bisection finds the fewest that keep the
decision. It asks the classifier alone, never the diffusion model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dime.core.guidance import Pull

WIDTH = 5
"""Side of the squares over which worth is averaged, and over which the borders of what is kept fade."""
ROUNDS = 8
"""Evaluations of the classifier: the share of pixels that is kept is found to 1/256."""


def shrunk(cf: torch.Tensor, pull: Pull) -> torch.Tensor:
    """The counterfactuals (N, C, H, W) of pull.x with a part of their changes undone.

    Every image that reaches its target, at the confidence of the guidance, still does; where nothing can be undone it
    is returned as it is.
    """
    change = cf - pull.x
    # midway, where the decision is open: at its end a sure classifier has no gradient left
    worth = -(_loss_gradient((pull.x + cf) / 2, pull) * change).sum(dim=1, keepdim=True)
    ranked = _smooth(worth).flatten(1).argsort(descending=True).argsort().view_as(worth)
    pixels, kept = ranked[0].numel(), cf
    low, high = torch.zeros(2, len(cf), 1, 1, 1, device=cf.device)
    high = high + 1
    for _ in range(ROUNDS):
        share = (low + high) / 2
        candidate = pull.x + _smooth((ranked < share * pixels).to(cf.dtype)) * change
        enough = pull.reached(candidate).view_as(share)
        kept = torch.where(enough, candidate, kept)
        low, high = torch.where(enough, low, share), torch.where(enough, share, high)
    return kept


def _loss_gradient(at: torch.Tensor, pull: Pull) -> torch.Tensor:
    with torch.enable_grad():
        u = at.detach().requires_grad_()
        loss = pull.guidance.decision.loss(pull.guidance.classifier(u), pull.y)
        return torch.autograd.grad(loss.sum(), u)[0]


def _smooth(image: torch.Tensor) -> torch.Tensor:
    """Means over squares; outside the image, its own pixels are not diluted."""
    return F.avg_pool2d(image, WIDTH, stride=1, padding=WIDTH // 2, count_include_pad=False)
