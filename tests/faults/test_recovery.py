"""Memory that runs out, and numbers that are none: halves and second attempts with the results of an ordinary run."""

from __future__ import annotations

import pytest
import torch

from dime.core.errors import InputError
from dime.core.explain import Batch, Explainer, Explanations
from dime.core.guidance import BinaryAttribute, Guidance
from dime.core.job.recovery import RecoveringExplainer
from dime.core.methods import Settings, dime
from dime.core.noise import PerImageNoise, StreamNoise
from tests.core.test_explain import Brightness
from tests.helpers import rnd
from tests.toys import CountingModel, toy_diffusion

X = rnd(5, 7, 3, 4, 4).clamp(-1, 1)
BATCH = Batch(ids=list(range(7)), x=X, label=torch.tensor([1, 0, 1, 0, 1, 0, 1]))
OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]


class Small(CountingModel):
    """Fits `room` images only."""

    def __init__(self, room: int, error: Exception = OUT_OF_MEMORY[0]) -> None:
        super().__init__()
        self.room, self.error = room, error

    def forward(self, x, t):
        if len(x) > self.room:
            raise self.error
        return super().forward(x, t)


class Overflowing(CountingModel):
    """Half precision: infinite wherever an image is bright at its first pixel."""

    def forward(self, x, t):
        output = super().forward(x, t)
        return torch.where((x[:, :1, :1, :1] > 1.2), torch.inf, output)


def explainer(**options) -> Explainer:
    settings = {
        "model": CountingModel(),
        "diffusion": toy_diffusion(20),
        "guidance": Guidance(Brightness(), BinaryAttribute(0, use_logits=True), l1=0.01),
        "method": dime(Settings(4)),
        "noise": PerImageNoise(4),
        "scales": [1.0, 50.0],
    }
    return Explainer(**{**settings, **options})


def figures(result: Explanations) -> dict[str, torch.Tensor]:
    names = ("pred", "target", "noisy", "cf", "cf_pred", "cf_p_target", "scale", "finite")
    return {name: getattr(result, name) for name in names}


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("room", "limit"), [(6, 3), (3, 3), (2, 1), (1, 1)])
def test_batches_are_halved_until_they_fit(room, limit, error, capsys):
    recovering = RecoveringExplainer(explainer(model=Small(room, error)))
    found, expected = figures(recovering(BATCH)), figures(explainer()(BATCH))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6)  # sums of other lengths
    assert recovering.limit == limit
    recovering(BATCH)
    assert capsys.readouterr().out.count("Out of memory") == 1


def test_padding_shrinks_too():
    recovering = RecoveringExplainer(explainer(model=Small(4), pad_to=7))
    assert figures(recovering(BATCH))["cf"].shape == X.shape
    assert recovering.explainer.pad_to == 3


def test_one_image_that_does_not_fit_is_an_error():
    with pytest.raises(InputError, match="single image"):
        RecoveringExplainer(explainer(model=Small(0)))(BATCH)


def test_a_stream_of_noise_cannot_be_split():
    with pytest.raises(InputError, match="--batch_size"):
        RecoveringExplainer(explainer(model=Small(3), noise=StreamNoise(4)))(BATCH)


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        RecoveringExplainer(explainer(model=Small(3, RuntimeError("an illegal memory access"))))(BATCH)


def test_what_overflows_is_tried_again_in_full_precision():
    half, full = explainer(model=Overflowing()), explainer()
    plain, precise = half(BATCH), full(BATCH)
    lost = ~plain.finite
    assert 0 < int(lost.sum()) < 7, "the example must have both"
    built = []
    recovering = RecoveringExplainer(half, lambda: built.append(1) or explainer())
    found = figures(recovering(BATCH))
    assert found["finite"].all()
    assert torch.equal(found["cf"][~lost], plain.cf[~lost])  # neighbours keep their bytes
    torch.testing.assert_close(found["cf"][lost], precise.cf[lost], rtol=1e-5, atol=1e-6)
    recovering(BATCH)
    assert built == [1]


def test_what_overflows_in_full_precision_too_has_failed():
    found = figures(RecoveringExplainer(explainer(model=Overflowing()), lambda: explainer(model=Overflowing()))(BATCH))
    plain = explainer(model=Overflowing())(BATCH)
    assert torch.equal(found["finite"], plain.finite) and not found["finite"].all()


def test_without_anything_more_precise_nothing_is_tried():
    found, plain = (
        figures(RecoveringExplainer(explainer(model=Overflowing()))(BATCH)),
        explainer(model=Overflowing())(BATCH),
    )
    assert torch.equal(found["finite"], plain.finite)
