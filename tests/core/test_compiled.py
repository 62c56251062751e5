"""--compile: what is compiled is used for its own shape alone, and only when it is right."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable

import pytest
import torch

from dime.core.arithmetic import CompiledUNet, compile_unet
from guided_diffusion.unet import UNetModel
from tests.helpers import fill_, relative_error, rnd

pytestmark = pytest.mark.own_process  # it starts threads of autograd

SHAPE = torch.Size((2, 3, 8, 8))
X, T = rnd(0, *SHAPE), torch.tensor([7])


@functools.cache
def tiny(num_classes: int | None = None) -> UNetModel:
    model = UNetModel(
        8, 3, 32, 6, 1, (2,), channel_mult=(1, 1), use_scale_shift_norm=True, num_classes=num_classes, multiclass=True
    )
    return fill_(model).requires_grad_(False)


def broken(damage: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    """A compiler whose code adds `damage` of the input to the output."""
    return lambda model: lambda x, t, y: model(x, t, y) + damage(x).view(-1, 1, 1, 1)


def marked(model: UNetModel) -> Callable:
    """A compiler whose code says that it was used: its output is a subclass."""

    class Marked(torch.Tensor):
        pass

    return lambda x, t, y: model(x, t, y).as_subclass(Marked)


@torch.no_grad()
def test_compiled_code_runs_for_its_own_shape_alone():
    compiled = compile_unet(tiny(), SHAPE, marked)
    assert isinstance(compiled, CompiledUNet)
    assert type(compiled(X, T)) is not torch.Tensor
    assert type(compiled(X[:1], T)) is torch.Tensor
    assert type(compiled(X, T.expand(2))) is torch.Tensor
    with torch.enable_grad():
        assert type(compiled(X, T)) is torch.Tensor
    assert torch.equal(compiled(X, T), tiny()(X, T))


def test_its_weights_are_the_networks_own():
    compiled = compile_unet(tiny(), SHAPE, lambda model: model)
    assert len(list(compiled.parameters())) == len(list(tiny().parameters()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: 0.01 * x.flatten(1).std(dim=1),
        lambda x: torch.full((len(x),), torch.nan),
    ],
    ids=["off", "nan"],
)
def test_wrong_code_is_refused(damage, capsys):
    assert compile_unet(tiny(), SHAPE, broken(damage)) is tiny()
    assert "is wrong and is not used" in capsys.readouterr().out


def test_without_a_compiler_it_goes_on_and_says_so(capsys):
    def missing(model: UNetModel) -> None:
        raise RuntimeError("no C++ compiler\nand much more")

    assert compile_unet(tiny(), SHAPE, missing) is tiny()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["--compile is not possible here, the U-Net runs uncompiled: no C++ compiler"]


@torch.no_grad()
def test_a_conditional_network():
    compiled = compile_unet(tiny(40), SHAPE, marked)
    y = (rnd(1, 2, 40) > 0).float()
    assert torch.equal(compiled(X, T, y=y), tiny(40)(X, T, y))


@torch.no_grad()
def test_the_network_is_one_graph():
    compiled = compile_unet(tiny(), SHAPE, functools.partial(torch.compile, backend="eager", fullgraph=True))
    assert isinstance(compiled, CompiledUNet)
    assert relative_error(compiled(X, T), tiny()(X, T).numpy()) < 1e-6


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.skipif(not os.environ.get("DIME_COMPILER_TESTS"), reason="takes minutes: set DIME_COMPILER_TESTS=1")
@torch.no_grad()
def test_torchs_own_compiler(capsys):
    model = fill_(UNetModel(8, 3, 32, 6, 1, (), channel_mult=(1,), use_scale_shift_norm=True)).requires_grad_(False)
    compiled = compile_unet(model, SHAPE)
    assert isinstance(compiled, CompiledUNet), capsys.readouterr().out
    assert relative_error(compiled(X, T), model(X, T).numpy()) < 1e-5  # float32 in another order
