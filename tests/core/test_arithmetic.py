"""Layout, allocator and compiled code: what changes is speed, not the result."""

import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dime.core.arithmetic import CompiledUNet, compile_unet, prepare_unet
from guided_diffusion.script_util import create_model_and_diffusion
from guided_diffusion.unet import UNetModel
from tests.helpers import BASE, CPU, fill_, relative_error, rnd

GPU = torch.device("cuda", 0)
SHAPE = torch.Size((2, 3, 8, 8))
X, T = rnd(0, *SHAPE), torch.tensor([7])


def unet() -> torch.nn.Module:
    return fill_(create_model_and_diffusion(**BASE)[0])


def is_channels_last(network: torch.nn.Module) -> bool:
    weights = [p for p in network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@torch.no_grad()
def test_a_prepared_network_says_the_same_in_the_layout_of_its_device():
    for precision, expected in (("fp32", False), ("fp16", True)):
        assert is_channels_last(prepare_unet(unet(), precision, GPU)) == expected
    x = rnd(0, 2, 3, 32, 32)
    expected = unet()(x, T.expand(2)).numpy()
    # 2e-5: float32 sums in another order; 2e-2: bfloat16 has 8 bits, some tens of operations in a row
    for precision, tolerance in (("fp32", 2e-5), ("bf16", 2e-2)):
        model = prepare_unet(unet(), precision, CPU)
        assert is_channels_last(model) and model(x, T).is_contiguous()  # the caller notices nothing
        assert relative_error(model(x, T), expected) < tolerance


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_freed_memory_is_kept():
    script = """
import resource, torch
from dime.core.arithmetic import keep_freed_memory

def page_faults():
    torch.ones(20_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = page_faults()
keep_freed_memory()
print(before, min(page_faults() for _ in range(10)))  # where alignment splits a block, the next one does not fit it
"""
    root = Path(__file__).parents[2]
    before, after = map(int, subprocess.check_output([sys.executable, "-c", script], cwd=root).split())
    assert before > 100  # 80 MB, in pages of 4 kB or of 2 MB (nothing to see where those are larger still)
    assert after < before / 10


@functools.cache
def tiny(num_classes: int | None = None, multiclass: bool = False) -> UNetModel:
    model = UNetModel(8, 3, 32, 6, 1, (2,), channel_mult=(1, 1), num_classes=num_classes, multiclass=multiclass)
    return fill_(model).requires_grad_(False)


class Marked(torch.Tensor):
    """What compiled code gives here."""


def compiled(monkeypatch, compiler: Callable, *network) -> Callable:
    """The tiny network, compiled by this instead of torch.compile."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiler(model))
    return compile_unet(tiny(*network), SHAPE)


def marked(model: UNetModel) -> Callable:
    return lambda x, t, y: model(x, t, y).as_subclass(Marked)


@torch.no_grad()
def test_compiled_code_runs_for_its_own_shape_alone(monkeypatch):
    network = compiled(monkeypatch, marked)
    assert type(network(X, T)) is Marked and torch.equal(network(X, T), tiny()(X, T))
    for images, timesteps in ((X[:1], T), (X, T.expand(2))):
        assert type(network(images, timesteps)) is torch.Tensor
    with torch.enable_grad():
        assert type(network(X, T)) is torch.Tensor
    assert (network.image_size, network.in_channels, network.num_classes) == (8, 3, None)
    for multiclass, y in ((True, (rnd(1, 2, 40) > 0).float()), (False, torch.tensor([0, 39]))):
        found = compiled(monkeypatch, marked, 40, multiclass)(X, T, y=y)
        assert type(found) is Marked and torch.equal(found, tiny(40, multiclass)(X, T, y))


@pytest.mark.parametrize("damage", [lambda x: 0.01 * x.flatten(1).std(dim=1), lambda x: torch.full((2,), torch.nan)])
def test_wrong_code_is_refused_and_without_a_compiler_it_goes_on(monkeypatch, damage, capsys):
    def broken(model: UNetModel) -> Callable:
        return lambda x, t, y: model(x, t, y) + damage(x).view(-1, 1, 1, 1)

    assert compiled(monkeypatch, broken) is tiny()
    assert "is wrong and is not used" in capsys.readouterr().out

    def missing(model: UNetModel) -> None:
        raise RuntimeError("no C++ compiler\nand much more")

    assert compiled(monkeypatch, missing) is tiny()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["--compile is not possible here, the U-Net runs uncompiled: no C++ compiler"]


@pytest.mark.own_process  # it starts threads of autograd
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@torch.no_grad()
def test_the_network_is_one_graph(monkeypatch, backend, capsys):
    if backend == "inductor" and not (shutil.which("g++") and os.environ.get("DIME_COMPILER_TESTS")):
        pytest.skip("torch's own compiler takes minutes and a C++ compiler: set DIME_COMPILER_TESTS=1")
    network = compiled(monkeypatch, functools.partial(torch.compile, backend=backend, fullgraph=True))
    assert isinstance(network, CompiledUNet), capsys.readouterr().out
    assert relative_error(network(X, T), tiny()(X, T).numpy()) < 1e-5  # float32 in another order
