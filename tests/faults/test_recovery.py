"""Memory that runs out, and numbers that are none, with the results of an ordinary run; in main.py: the bench."""

import pytest
import torch

from dime.core.errors import InputError
from dime.core.explain import Batch, Explainer
from dime.core.guidance import Binary
from dime.core.job.recovery import RecoveringExplainer
from dime.core.networks.diffusion import DiffusionModel
from dime.core.settings import Settings
from tests.core.test_explain import Brightness
from tests.helpers import rnd
from tests.toys import CountingModel, toy_diffusion

OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]
BATCH = Batch(ids=list(range(7)), x=rnd(5, 7, 3, 4, 4).clamp(-1, 1))


def explainer(model: CountingModel, pad_to: int | None = None, **flags) -> Explainer:
    settings = Settings(start_step=4, l1_loss=0.01, classifier_scales=(1.0, 50.0), **flags)
    diffusion = DiffusionModel(model, toy_diffusion(20), {})
    return Explainer(Brightness(), diffusion, Binary(use_logits=True), settings, pad_to=pad_to)


class SmallMachine(CountingModel):
    """Evaluations of more than `room` images end with the error."""

    def __init__(self, room: int, error: Exception = OUT_OF_MEMORY[0]) -> None:
        super().__init__()
        self.room, self.error = room, error

    def forward(self, x, t):
        if len(x) > self.room:
            raise self.error
        return super().forward(x, t)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("pad_to", [None, 8])
def test_batches_are_halved_whatever_the_error_is_called(error, pad_to, capsys):
    recovering = RecoveringExplainer(explainer(SmallMachine(3, error), pad_to))
    for _ in range(2):  # the second batch begins with halves
        # sums of other lengths
        torch.testing.assert_close(
            recovering(BATCH).cf, explainer(CountingModel()).explain(BATCH).cf, rtol=1e-5, atol=1e-6
        )
    assert capsys.readouterr().out.count("Out of memory") == 1


@pytest.mark.parametrize(
    ("model", "flags", "error", "said"),
    [
        (SmallMachine(0), {}, InputError, "single image"),
        (SmallMachine(3), {"noise": "stream"}, InputError, "--batch_size"),
        (SmallMachine(3, RuntimeError("an illegal memory access")), {}, RuntimeError, "illegal memory access"),
    ],
)
def test_what_cannot_be_halved_and_other_errors(model, flags, error, said):
    with pytest.raises(error, match=said):
        RecoveringExplainer(explainer(model, **flags))(BATCH)


class Overflowing(CountingModel):
    """Half precision: infinite wherever an image is bright at its first pixel."""

    def forward(self, x, t):
        return torch.where((x[:, :1, :1, :1] > 1.2), torch.inf, super().forward(x, t))


def test_what_overflows_is_tried_again_in_full_precision():
    plain, precise = explainer(Overflowing()).explain(BATCH), explainer(CountingModel()).explain(BATCH)
    lost = ~plain.finite
    assert 0 < int(lost.sum()) < 7, "the example must have both"
    built = []
    recovering = RecoveringExplainer(explainer(Overflowing()), lambda: built.append(1) or explainer(CountingModel()))
    found = recovering(BATCH)
    assert found.finite.all()
    assert torch.equal(found.cf[~lost], plain.cf[~lost])  # neighbours keep their bytes
    torch.testing.assert_close(found.cf[lost], precise.cf[lost], rtol=1e-5, atol=1e-6)  # sums of other lengths
    recovering(BATCH)
    assert built == [1]
