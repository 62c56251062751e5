"""Layout, allocator and compiled code: what changes is speed, not the result. Chains on a pretended GPU."""

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
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dime.core.arithmetic import CompiledUNet, compile_unet, prepare_unet
from dime.core.guidance import Binary, Guidance
from dime.core.methods import METHODS, Settings
from dime.core.sampler import Denoiser
from dime.models.classifiers import SmallCNN
from guided_diffusion.script_util import create_gaussian_diffusion, create_model_and_diffusion
from guided_diffusion.unet import UNetModel
from tests.helpers import BASE, CPU, fill_, relative_error, rnd
from tests.toys import ToyPull

GPU = torch.device("cuda", 0)
SHAPE = torch.Size((2, 3, 8, 8))
X, T = rnd(0, *SHAPE), torch.tensor([7])


def unet() -> nn.Module:
    return fill_(create_model_and_diffusion(**BASE)[0])


def is_channels_last(network: nn.Module) -> bool:
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


COMPILER = pytest.mark.skipif(
    not (shutil.which("g++") and os.environ.get("DIME_COMPILER_TESTS")),
    reason="torch's own compiler takes minutes and a C++ compiler: set DIME_COMPILER_TESTS=1",
)


class Marked(torch.Tensor):
    """What compiled code gives here."""


def compiled(monkeypatch, compiler: Callable, *network) -> Callable:
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
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=COMPILER)])
@torch.no_grad()
def test_the_network_is_one_graph(monkeypatch, backend, capsys):
    network = compiled(monkeypatch, functools.partial(torch.compile, backend=backend, fullgraph=True))
    assert isinstance(network, CompiledUNet), capsys.readouterr().out
    assert relative_error(network(X, T), tiny()(X, T).numpy()) < 1e-5  # float32 in another order


TAU = 3
CASES = {method: {} for method in METHODS if method != "gmd"} | {  # gmd needs autograd, which knows real GPUs alone
    "dime, one inner step": {"inner_steps": "1"},
    "dime, two by ddim": {"inner_steps": "2", "inner_sampler": "ddim"},
    "fastdime, masked": {"warmup_step": 1},
    "maskdime, one mask": {"per_channel": False},
}


class Watch(TorchDispatchMode):
    """Collects what mixes devices or asks the host: fake tensors hold no numbers, and raise an error at the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1 or "local_scalar" in str(function):
            self.found.append(str(function))
        return result


def moved(network: nn.Module) -> nn.Module:
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None:
                    table[name] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)
    return network


@pytest.mark.own_process  # it starts threads of autograd
@pytest.mark.parametrize(("name", "precision"), [("dime", "fp32"), *((name, "fp16") for name in CASES)])
def test_a_chain_stays_on_the_device(name, precision):
    tiny = {"image_size": 16, "channel_mult": "1", "attention_resolutions": "16"}
    model = prepare_unet(create_model_and_diffusion(**BASE | tiny)[0].eval(), precision, GPU)
    diffusion = create_gaussian_diffusion(steps=500, learn_sigma=True, timestep_respacing="20")
    method = METHODS[name.split(",")[0]](Settings(start_step=TAU, **CASES[name]))
    with FakeTensorMode():
        denoiser, x = Denoiser(moved(model), diffusion), torch.zeros(2, 3, 16, 16, device=GPU)

        def chain() -> torch.Tensor:
            noisy = denoiser.noised(x, TAU, torch.randn_like(x))
            return method(denoiser, x, noisy, ToyPull(), lambda i: lambda shape: torch.randn(shape, device=GPU))

        chain()  # the tables of the schedule move to the device when they are first used
        with Watch() as watch:
            assert chain().device == GPU
    assert watch.found == []


@pytest.mark.own_process
def test_gradients_ask_nothing_of_the_host():
    weights = {"l1": 0.05, "l2": 0.1, "l_perc": 1.0}
    guidance = Guidance(SmallCNN().eval(), Binary(31, use_logits=True), lambda u: u.square(), **weights)
    x, u = rnd(0, 2, 3, 16, 16), rnd(1, 2, 3, 16, 16)
    pull = guidance.towards(x, guidance.input_features(x), torch.tensor([1, 0]), scale=8)
    with Watch() as watch:
        for gradient in (pull.class_gradient, pull.perceptual_gradient, pull.distance_gradient):
            assert gradient(u).shape == u.shape
    assert watch.found == []


@pytest.mark.own_process
def test_the_watch_sees_a_copy_and_a_question():
    with FakeTensorMode(), Watch() as watch:
        torch.zeros(3, device=GPU).cpu()
    assert watch.found
    with Watch() as watch:
        float(torch.zeros(1))
    assert watch.found
