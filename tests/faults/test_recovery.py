"""Memory that runs out, and numbers that are none: halves and second attempts with the results of an ordinary run.

The bench has the results of halved batches, and that what fails in full precision has failed.
"""

from __future__ import annotations

import pytest
import torch

from dime.core.explain import Batch, Explainer, Explanations
from dime.core.guidance import Binary
from dime.core.job.recovery import RecoveringExplainer
from dime.core.networks.diffusion import DiffusionModel
from dime.core.settings import Settings
from guided_diffusion.unet import UNetModel
from tests.core.test_explain import Brightness
from tests.helpers import rnd
from tests.toys import CountingModel, toy_diffusion
from tests.worlds import SMALL_FLAGS, Run, World, run_main

OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]


@pytest.fixture
def small_machine(world: World, tmp_path, monkeypatch):
    """Runs main.py where evaluations of more than `room` images end with the error."""

    def run(room: int, error: Exception = OUT_OF_MEMORY[0], **flags: object) -> Run:
        forward = UNetModel.forward

        def limited(self, x, *rest, **more):
            if len(x) > room:
                raise error
            return forward(self, x, *rest, **more)

        monkeypatch.setattr(UNetModel, "forward", limited)
        return run_main(*world.command(tmp_path / "out", SMALL_FLAGS | {"num_batches": 2} | flags))

    return run


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_batches_are_halved_whatever_the_error_is_called(small_machine, error):
    run = small_machine(3, error, pad_batches=True)
    assert run.code == 0 and run.out.count("Out of memory") == 1, run.err  # the second batch begins with halves


@pytest.mark.parametrize(("flags", "room", "said"), [({}, 0, "single image"), ({"noise": "stream"}, 3, "--batch_size")])
def test_what_cannot_be_halved_is_one_line(small_machine, flags, room, said):
    run = small_machine(room, **flags)
    assert run.code == 2 and said in run.err.splitlines()[-1] and "Traceback" not in run.err


def test_other_errors_are_not_swallowed(small_machine):
    with pytest.raises(RuntimeError, match="illegal memory access"):
        small_machine(3, RuntimeError("an illegal memory access"))


class Overflowing(CountingModel):
    """Half precision: infinite wherever an image is bright at its first pixel."""

    def forward(self, x, t):
        return torch.where((x[:, :1, :1, :1] > 1.2), torch.inf, super().forward(x, t))


def test_what_overflows_is_tried_again_in_full_precision():
    x = rnd(5, 7, 3, 4, 4).clamp(-1, 1)
    batch = Batch(ids=list(range(7)), x=x)

    def explainer(model: CountingModel) -> Explainer:
        settings = Settings(start_step=4, l1_loss=0.01, classifier_scales=(1.0, 50.0))
        diffusion = DiffusionModel(model, toy_diffusion(20), {})
        return Explainer(Brightness(), diffusion, Binary(use_logits=True), settings)

    plain, precise = explainer(Overflowing()).explain(batch), explainer(CountingModel()).explain(batch)
    lost = ~plain.finite
    assert 0 < int(lost.sum()) < 7, "the example must have both"
    built = []
    recovering = RecoveringExplainer(explainer(Overflowing()), lambda: built.append(1) or explainer(CountingModel()))
    found: Explanations = recovering(batch)
    assert found.finite.all()
    assert torch.equal(found.cf[~lost], plain.cf[~lost])  # neighbours keep their bytes
    torch.testing.assert_close(found.cf[lost], precise.cf[lost], rtol=1e-5, atol=1e-6)  # sums of other lengths
    recovering(batch)
    assert built == [1]
