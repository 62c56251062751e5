"""Batches: targets, escalation over the scales, frames, padding, and images that fail."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dime.core.estimates import input_image
from dime.core.explain import Batch, Explainer
from dime.core.guidance import BinaryAttribute, Guidance
from dime.core.images import to_uint8
from dime.core.methods import METHODS, Settings, dime
from dime.core.noise import PerImageNoise
from dime.core.sampler import Sampler
from tests.helpers import rnd
from tests.toys import CountingModel, toy_diffusion

TAU = 4
X = rnd(5, 6, 3, 4, 4).clamp(-1, 1)


class Brightness(nn.Module):
    """One logit: how bright the image is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * x.flatten(1).mean(1, keepdim=True)


def explainer(**options) -> Explainer:
    settings = {
        "model": CountingModel(),
        "diffusion": toy_diffusion(20),
        "guidance": Guidance(Brightness(), BinaryAttribute(0, use_logits=True), l1=0.01),
        "method": dime(Settings(TAU)),
        "noise": PerImageNoise(4),
        "scales": [1.0, 50.0, 5000.0],
    }
    return Explainer(**{**settings, **options})


def batch(rows: list[int]) -> Batch:
    return Batch(ids=[100 + row for row in rows], x=X[rows], label=torch.tensor([row % 2 for row in rows]))


EVERYONE = list(range(6))


def test_predictions_and_targets():
    result = explainer()(batch(EVERYONE))
    logits = Brightness()(X)[:, 0]
    assert torch.equal(result.pred, (logits > 0).long())
    assert torch.equal(result.target, 1 - result.pred)
    torch.testing.assert_close(result.p_target, torch.sigmoid(torch.where(result.target == 1, logits, -logits)))


def test_the_figures_are_those_of_the_counterfactual():
    result = explainer()(batch(EVERYONE))
    logits = Brightness()(result.cf)[:, 0]
    assert torch.equal(result.cf_pred, (logits > 0).long())
    torch.testing.assert_close(result.cf_p_target, torch.sigmoid(torch.where(result.target == 1, logits, -logits)))
    assert torch.equal(result.flipped, result.cf_pred == result.target)


def test_escalation_keeps_what_flipped_and_tries_the_rest_again():
    scales = [1.0, 50.0, 5000.0]
    result = explainer(scales=scales)(batch(EVERYONE))
    assert len(set(result.scale.tolist())) > 1, "the example must need more than one scale"
    for row in EVERYONE:
        tried = scales[: scales.index(result.scale[row].item()) + 1]
        for attempt in range(len(tried)):  # a scale is tried only after all smaller ones have failed
            alone = explainer(scales=tried[: attempt + 1])(batch([row]))
            assert bool(alone.flipped) == (attempt == len(tried) - 1 and bool(result.flipped[row]))
        torch.testing.assert_close(alone.cf[0], result.cf[row])


def test_every_scale_starts_from_the_same_noised_image():
    started = []

    class Spy(Sampler):
        def __call__(self, denoiser, x, z_t, pull, noise, observe=None):
            started.append(z_t)
            return super().__call__(denoiser, x, z_t, pull, noise, observe)

    explainer(method=Spy(TAU, input_image), scales=[0.0, 0.0])(batch([0]))
    assert len(started) == 2 and torch.equal(started[0], started[1])


def test_images_that_never_flip_keep_the_last_attempt():
    result = explainer(scales=[0.0, 1e-6])(batch(EVERYONE))
    stubborn = ~result.flipped
    assert stubborn.any()
    assert (result.scale[stubborn] == torch.tensor(1e-6)).all()


@pytest.mark.parametrize("rows", [[4], [0, 4], [4, 2, 1, 5], EVERYONE])
def test_neighbours_do_not_matter(rows):
    everyone, some = explainer(pad_to=8)(batch(EVERYONE)), explainer(pad_to=8)(batch(rows))
    assert torch.equal(some.cf, everyone.cf[rows])
    assert torch.equal(some.noisy, everyone.noisy[rows])
    assert torch.equal(some.cf_p_target, everyone.cf_p_target[rows])


def test_padding_runs_every_chain_on_full_batches():
    sizes = set()

    class Spy(CountingModel):
        def forward(self, x, t):
            sizes.add(len(x))
            return super().forward(x, t)

    explainer(model=Spy(), pad_to=8)(batch([1, 2, 3]))
    assert sizes == {8}


def test_frames_are_kept_only_when_wanted():
    assert explainer()(batch(EVERYONE)).frames == {}
    result = explainer(keep_frames=frozenset({"x_t", "z_t"}))(batch(EVERYONE))
    assert {kind: tuple(images.shape) for kind, images in result.frames.items()} == {
        "x_t": (6, TAU, 3, 4, 4),
        "z_t": (6, TAU, 3, 4, 4),
    }
    assert torch.equal(result.frames["x_t"][:, 0], to_uint8(X))  # the first clean estimate is the input
    assert torch.equal(result.frames["z_t"][:, 0], to_uint8(result.noisy))


def test_frames_are_those_of_the_last_scale_tried():
    result = explainer(keep_frames=frozenset({"z_t"}))(batch(EVERYONE))
    for row in EVERYONE:
        # an attempt's noise depends on its place in the list, so the scales before it must be tried as well
        alone = explainer(keep_frames=frozenset({"z_t"}))(batch([row]))
        assert torch.equal(alone.frames["z_t"][0], result.frames["z_t"][row])


class PoisonsDarkImages(CountingModel):
    """Gives no number for images with a marked first pixel."""

    def forward(self, x, t):
        output = super().forward(x, t)
        output[self.poisoned] = torch.nan
        return output


@pytest.mark.parametrize("row", EVERYONE)  # targets of both kinds
def test_what_is_not_a_number_never_counts_as_flipped(row):
    model = PoisonsDarkImages()
    model.poisoned = row
    result = explainer(model=model, scales=[5000.0])(batch(EVERYONE))
    healthy = explainer(scales=[5000.0])(batch(EVERYONE))
    others = [other for other in EVERYONE if other != row]
    assert not result.finite[row] and not result.flipped[row]
    assert result.finite[others].all()
    assert torch.equal(result.cf[others], healthy.cf[others])


@pytest.mark.parametrize("evaluation", range(7))
def test_a_passing_nan_is_noticed(evaluation):
    """Also where it reaches a clean estimate only, whose gradient a ReLU then makes zero: at tau = 4, seven of them."""

    class Dim(Brightness):
        def forward(self, x):
            return super().forward(torch.relu(x))

    class PoisonsOnce(CountingModel):
        def forward(self, x, t):
            output = super().forward(x, t)
            if self.evaluations == evaluation + 1:
                output[3] = torch.nan
            return output

    model = PoisonsOnce()
    guidance = Guidance(Dim(), BinaryAttribute(0, use_logits=True))
    result = explainer(model=model, guidance=guidance, scales=[5000.0])(batch(EVERYONE))
    assert model.evaluations == 7
    assert result.finite.tolist() == [row != 3 for row in EVERYONE]


@pytest.mark.parametrize("name", METHODS)
def test_no_method_hides_a_passing_nan(name):
    """Neither in its mask, which could leave the input in the place of what is broken, nor in a first pass."""

    class PoisonsOnce(CountingModel):
        poisoned_call = 0

        def forward(self, x, t):
            output = super().forward(x, t)
            if self.evaluations == self.poisoned_call:
                row = torch.arange(len(output)) == 3
                output = torch.where(row[:, None, None, None], torch.nan, output)
            return output

    method = METHODS[name](Settings(start_step=TAU, warmup_step=1, inner_steps="2"))
    model = PoisonsOnce()
    assert explainer(model=model, method=method, scales=[50.0])(batch(EVERYONE)).finite.all()
    for call in range(1, model.evaluations + 1):
        model = PoisonsOnce()
        model.poisoned_call = call
        result = explainer(model=model, method=method, scales=[50.0])(batch(EVERYONE))
        assert result.finite.tolist() == [row != 3 for row in EVERYONE], f"evaluation {call}"


def test_a_conditional_model_is_told_each_images_own_labels():
    class Conditional(CountingModel):
        def forward(self, x, t, y):
            return super().forward(x + y[:, :1, None, None], t)

    conditions = rnd(9, 6, 40)
    labelled = batch(EVERYONE)
    everyone = explainer(model=Conditional(), pad_to=6)(Batch(labelled.ids, labelled.x, labelled.label, conditions))
    some = batch([3, 1])
    alone = explainer(model=Conditional(), pad_to=6)(Batch(some.ids, some.x, some.label, conditions[[3, 1]]))
    assert torch.equal(alone.cf, everyone.cf[[3, 1]])
    assert not torch.equal(everyone.cf, explainer(pad_to=6)(labelled).cf)
