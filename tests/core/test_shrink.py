"""Undoing what a decision does not need, and the confidence that is asked for: on classifiers in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dime.core.explain import Batch, Explainer
from dime.core.guidance import Binary, Guidance
from dime.core.networks.diffusion import DiffusionModel
from dime.core.settings import Settings
from dime.core.shrink import shrunk
from tests.helpers import rnd
from tests.toys import CountingModel, toy_diffusion

CONFIDENCE = 0.9
LOGIT = torch.logit(torch.tensor(CONFIDENCE))
X = torch.zeros(3, 3, 32, 32)
CORNER = (..., slice(4, 12), slice(4, 12))


class Corner(nn.Module):
    """One logit: how bright a square of the image is, of which a quarter would be enough."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 40 * (x[CORNER].flatten(1).mean(1, keepdim=True) - 0.1)


def pull(confidence: float = 0.0, y: tuple[int, ...] = (1, 1, 1)):
    guidance = Guidance(Corner(), Binary(use_logits=True), confidence=confidence)
    return guidance.towards(X[: len(y)], None, torch.tensor(y), 1.0)


def test_only_what_the_decision_needs_stays():
    cf = X + 0.5 * rnd(1, 3, 3, 32, 32).sign()
    cf[CORNER] = 0.5
    small = shrunk(cf, pull())
    changed = (small != X).any(dim=1).flatten(1).sum(dim=1)
    # the square has 64 pixels; a fifth of its brightness suffices, with a border of two pixels around that
    assert (changed < 100).all()
    assert torch.equal(small[..., 20:, 20:], X[..., 20:, 20:])


@pytest.mark.parametrize("confidence", [0.0, CONFIDENCE, 0.999])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_reached_is_never_lost(confidence, seed):
    cf = X + rnd(seed, 3, 3, 32, 32) / 4 + 0.15
    asked = pull(confidence)
    before = asked.reached(cf)
    small = shrunk(cf, asked)
    assert (asked.reached(small) | ~before).all()
    assert ((small - X).abs() <= (cf - X).abs() + 1e-6).all()  # nothing is changed that was not


def test_what_fails_and_what_is_no_number_stays_as_it_is():
    cf = torch.stack([X[0], X[1] - 0.5, X[2] + 0.5])
    cf[2, 0, 0, 0] = torch.nan
    small = shrunk(cf, pull())
    assert torch.equal(small[:2], cf[:2])
    assert not small[2].isfinite().all()


def test_the_pull_eases_off_beyond_the_confidence():
    levels = torch.tensor([0.0, float(LOGIT) / 40 + 0.1, 0.3])  # p below, at, and far beyond
    image = X + levels.view(3, 1, 1, 1)
    full, eased = pull().class_gradient(image), pull(CONFIDENCE).class_gradient(image)
    torch.testing.assert_close(eased[:2], full[:2])
    share = (1 - Corner()(image[2:]).sigmoid()) / (1 - CONFIDENCE)
    torch.testing.assert_close(eased[2], full[2] * share.item())
    assert share < 0.01


def test_scales_are_tried_until_the_confidence_is_reached():
    def explained(**settings):
        scales, diffusion = [1.2**k for k in range(20)], DiffusionModel(CountingModel(), toy_diffusion(20), {})
        settings = Settings(start_step=4, use_logits=True, classifier_scales=scales, method="inverted", **settings)
        explainer = Explainer(Corner(), diffusion, Binary(use_logits=True), settings)
        return explainer.explain(Batch([0, 1, 2], X + rnd(1, 3, 3, 32, 32) / 20))

    plain, sure = explained(), explained(confidence=CONFIDENCE)
    assert plain.flipped.all() and (plain.cf_p_target < CONFIDENCE).any()
    assert sure.flipped.all() and (sure.cf_p_target >= CONFIDENCE).all()
    assert (sure.scale > plain.scale).any()
    small = explained(confidence=CONFIDENCE, shrink=True)
    assert (small.cf_p_target >= CONFIDENCE).all() and (small.l_1 <= sure.l_1).all() and (small.l_1 < sure.l_1).any()
