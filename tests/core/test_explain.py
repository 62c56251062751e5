"""Batches: targets, escalation, frames, padding, failures; the Python interface; undoing what no decision needs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dime.core.errors import InputError
from dime.core.explain import Batch, Explainer, Explanations
from dime.core.guidance import Binary, Guidance
from dime.core.images import from_image, input_to_uint8, to_hwc, to_uint8
from dime.core.masks import shrunk
from dime.core.methods import METHODS, Method
from dime.core.networks.diffusion import DiffusionModel
from dime.core.settings import Settings
from tests.helpers import rnd
from tests.toys import CountingModel, toy_diffusion

TAU, SCALES, EVERYONE = 4, (1.0, 50.0, 5000.0), list(range(6))
X = rnd(5, 6, 3, 4, 4).clamp(-1, 1)


class Brightness(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * x.flatten(1).mean(1, keepdim=True)


def explainer(model: nn.Module | None = None, method: Method | None = None, **options) -> Explainer:
    own = {name: options.pop(name) for name in ("keep_frames", "pad_to", "classifier") if name in options}
    settings = {"start_step": TAU, "use_logits": True, "l1_loss": 0.01, "classifier_scales": SCALES}
    classifier = own.pop("classifier", Brightness())
    diffusion = DiffusionModel(model or CountingModel(), toy_diffusion(20), {})
    settings = Settings(**settings | options)
    return Explainer(classifier, diffusion, Binary(use_logits=True), settings, method=method, **own)


def explained(rows: list[int], **options) -> Explanations:
    return explainer(**options).explain(batch(rows))


def batch(rows: list[int]) -> Batch:
    return Batch(ids=[100 + row for row in rows], x=X[rows], label=torch.tensor([row % 2 for row in rows]))


def test_escalation_keeps_what_flipped_and_tries_the_rest_again():
    result = explained(EVERYONE, classifier_scales=SCALES)
    assert len(set(result.scale.tolist())) > 1, "the example must need more than one scale"
    for row in EVERYONE:
        tried = SCALES[: SCALES.index(result.scale[row].item()) + 1]
        for attempt in range(len(tried)):  # a scale is tried only after all smaller ones have failed
            alone = explained([row], classifier_scales=tried[: attempt + 1])
            assert bool(alone.flipped) == (attempt == len(tried) - 1 and bool(result.flipped[row]))
        torch.testing.assert_close(alone.cf[0], result.cf[row])
    hopeless = explained(EVERYONE, classifier_scales=[0.0, 1e-6])
    stubborn = ~hopeless.flipped  # they keep the last attempt
    assert stubborn.any() and (hopeless.scale[stubborn] == torch.tensor(1e-6)).all()


@pytest.mark.parametrize("rows", [[4], [0, 4], [4, 2, 1, 5], EVERYONE])
def test_neighbours_do_not_matter_where_every_chain_runs_on_full_batches(rows):
    sizes = set()

    class Spy(CountingModel):
        def forward(self, x, t):
            sizes.add(len(x))
            return super().forward(x, t)

    everyone, some = explained(EVERYONE, pad_to=8), explained(rows, pad_to=8, model=Spy())
    assert sizes == {8}
    assert torch.equal(some.cf, everyone.cf[rows])
    assert torch.equal(some.noisy, everyone.noisy[rows])
    assert torch.equal(some.cf_p_target, everyone.cf_p_target[rows])


class PoisonsOnce(CountingModel):
    """Gives no number for the fourth image when it is asked for the `poisoned`-th time."""

    poisoned = 0

    def forward(self, x, t):
        output = super().forward(x, t)
        row = (torch.arange(len(output)) == 3) & (self.evaluations == self.poisoned)
        return torch.where(row[:, None, None, None], torch.nan, output)


class Dim(Brightness):
    """Blind to what is dark: a NaN in a clean estimate passes no gradient back through its ReLU."""

    def forward(self, x):
        return super().forward(torch.relu(x))


@pytest.mark.parametrize("name", METHODS)
def test_no_method_hides_a_passing_nan(name):
    """Neither in its mask, which could leave the input in the place of what is broken, nor in a first pass."""
    method = METHODS[name](Settings(start_step=TAU, warmup_step=1, inner_steps="2"))
    options = {"method": method, "classifier_scales": [50.0], "l1_loss": 0.0, "classifier": Dim()}
    healthy = explained(EVERYONE, model=(model := PoisonsOnce()), **options)
    assert healthy.finite.all()
    others = torch.arange(6) != 3
    for call in range(1, model.evaluations + 1):
        model = PoisonsOnce()
        model.poisoned = call
        result = explained(EVERYONE, model=model, **options)
        assert result.finite.tolist() == others.tolist() and not result.flipped[3], f"evaluation {call}"
        assert torch.equal(result.cf[others], healthy.cf[others])


def test_a_conditional_model_is_told_each_images_own_labels():
    class Conditional(CountingModel):
        def forward(self, x, t, y):
            return super().forward(x + y[:, :1, None, None], t)

    conditions = rnd(9, 6, 40)
    told = explainer(model=Conditional(), pad_to=6)
    everyone = told.explain(replace(batch(EVERYONE), conditions=conditions))
    alone = told.explain(replace(batch([3, 1]), conditions=conditions[[3, 1]]))
    assert torch.equal(alone.cf, everyone.cf[[3, 1]])
    assert not torch.equal(everyone.cf, explained(EVERYONE, pad_to=6).cf)


class TwoShades(nn.Module):
    """Three classes: dark, bright, and one in between; with a batch norm, which a training mode would update."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.tensor([-4.0, 4.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.flatten(1).mean(1, keepdim=True) * self.weight)


class ToyModel(DiffusionModel):
    image_size, channels = 4, 3


def interface(classifier: nn.Module, **options) -> Explainer:
    settings = Settings(start_step=TAU, classifier_scales=(50.0, 5000.0))
    return Explainer(classifier, ToyModel(CountingModel(), toy_diffusion(20), {}), settings=settings, **options)


def test_the_users_network_comes_out_as_it_went_in(capsys):
    network = TwoShades()
    network.weight.requires_grad_(True)
    hook = network.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    interface(network)(X)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), drawn) and torch.is_grad_enabled()  # nothing global is touched
    assert "training mode" in capsys.readouterr().out
    assert network.training and network.norm.training and network.weight.requires_grad
    assert network.weight.grad is None and hook.id in network._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_target_is_the_runner_up_unless_one_is_given():
    network = TwoShades().eval()
    ranked = network(X).argsort(dim=1, descending=True)
    assert torch.equal(interface(network)(X).target, ranked[:, 1])
    third = ranked[:, 2]
    for given in (third, third.tolist()):
        assert torch.equal(interface(network)(X, given).target, third)
    third[2] = ranked[2, 0]
    with pytest.raises(InputError, match=r"image 2: its target \d is its prediction already"):
        interface(network)(X, third)


def test_pictures_files_and_tensors_give_the_same(tmp_path):
    network = TwoShades().eval()
    pictures = [Image.fromarray(image) for image in to_hwc(input_to_uint8(X))]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    expected = interface(network)(torch.stack([from_image(picture) for picture in pictures]))
    for images in (pictures, [tmp_path / f"{number}.png" for number in range(6)]):
        result = interface(network)(images)
        # the transform maps 8 bits to [-1, 1] by another formula: 1e-7 apart, times a scale of 5000
        torch.testing.assert_close(result.cf, expected.cf, atol=1e-3, rtol=0)
    assert [picture.size for picture in result.images()] == [(4, 4)] * 6


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"\(1, 3, 8, 8\).*expected floats \(N, 3, 4, 4\)"),
        (torch.zeros(1, 1, 4, 4), "expected floats"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 4, 4), 200.0), r"expected values in \[-1, 1\]"),
        (["nowhere.png"], "nowhere.png"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        interface(TwoShades().eval())(images)


def test_the_record_says_what_was_done():
    result = interface(TwoShades().eval())(X)
    assert torch.equal(result.label, result.pred)  # nobody said better
    difference = np.abs(to_hwc(input_to_uint8(X)).astype(float) - to_hwc(to_uint8(result.cf))) / 255
    np.testing.assert_allclose(result.l_1, difference.mean(axis=(1, 2, 3)), rtol=1e-6)
    assert set(result.scale.tolist()) <= {50.0, 5000.0}
    wanted = result.pred.clone()  # images whose target is their prediction are left alone
    wanted[0] = (wanted[0] + 1) % 3
    result = interface(TwoShades().eval()).explain(replace(batch(EVERYONE), target=wanted))
    assert torch.equal(result.cf[1:], X[1:]) and not torch.equal(result.cf[0], X[0])


def test_an_unusable_setting_is_refused_at_once():
    with pytest.raises(InputError, match="--start_step 20: the process has 20 timesteps"):
        explainer(start_step=20)
    with pytest.raises(InputError, match="perceptual"):
        explainer(l_perc=1.0)


CONFIDENCE = 0.9
GREY = torch.zeros(3, 3, 32, 32)
CORNER = (..., slice(4, 12), slice(4, 12))


class Corner(nn.Module):
    """One logit: how bright a square of the image is, of which a quarter would be enough."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 40 * (x[CORNER].flatten(1).mean(1, keepdim=True) - 0.1)


def pull(confidence: float = 0.0, y: tuple[int, ...] = (1, 1, 1)):
    guidance = Guidance(Corner(), Binary(use_logits=True), confidence=confidence)
    return guidance.towards(GREY[: len(y)], None, torch.tensor(y), 1.0)


def test_only_what_the_decision_needs_stays():
    cf = GREY + 0.5 * rnd(1, 3, 3, 32, 32).sign()
    cf[CORNER] = 0.5
    small = shrunk(cf, pull())
    changed = (small != GREY).any(dim=1).flatten(1).sum(dim=1)
    # the square has 64 pixels; a fifth of its brightness suffices, with a border of two pixels around that
    assert (changed < 100).all()
    assert torch.equal(small[..., 20:, 20:], GREY[..., 20:, 20:])
    cf = torch.stack([GREY[0], GREY[1] - 0.5, GREY[2] + 0.5])
    cf[2, 0, 0, 0] = torch.nan
    small = shrunk(cf, pull())  # what fails and what is no number stays as it is
    assert torch.equal(small[:2], cf[:2]) and not small[2].isfinite().all()


@pytest.mark.parametrize("confidence", [0.0, CONFIDENCE, 0.999])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_reached_is_never_lost(confidence, seed):
    cf = GREY + rnd(seed, 3, 3, 32, 32) / 4 + 0.15
    asked = pull(confidence)
    before = asked.reached(cf)
    small = shrunk(cf, asked)
    assert (asked.reached(small) | ~before).all()
    assert ((small - GREY).abs() <= (cf - GREY).abs() + 1e-6).all()  # nothing is changed that was not


def test_the_pull_eases_off_beyond_the_confidence():
    at = float(torch.logit(torch.tensor(CONFIDENCE))) / 40 + 0.1
    levels = torch.tensor([0.0, at, 0.3])  # p below, at, and far beyond
    image = GREY + levels.view(3, 1, 1, 1)
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
        return explainer.explain(Batch([0, 1, 2], GREY + rnd(1, 3, 3, 32, 32) / 20))

    plain, sure = explained(), explained(confidence=CONFIDENCE)
    assert plain.flipped.all() and (plain.cf_p_target < CONFIDENCE).any()
    assert sure.flipped.all() and (sure.cf_p_target >= CONFIDENCE).all()
    assert (sure.scale > plain.scale).any()
    small = explained(confidence=CONFIDENCE, shrink=True)
    assert (small.cf_p_target >= CONFIDENCE).all() and (small.l_1 <= sure.l_1).all() and (small.l_1 < sure.l_1).any()
