"""Chains on a pretended GPU: fake tensors hold no numbers, so that whatever asks the host for one raises an error."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dime.core.arithmetic import prepare_unet
from dime.core.guidance import Binary, Guidance
from dime.core.methods import METHODS, Settings
from dime.core.sampler import Denoiser
from dime.models.classifiers import SmallCNN
from guided_diffusion.script_util import create_gaussian_diffusion, create_model_and_diffusion
from tests.helpers import BASE, rnd
from tests.toys import ToyPull

pytestmark = pytest.mark.own_process  # it starts threads of autograd

TAU = 3
GPU = torch.device("cuda", 0)
CASES = {method: {} for method in METHODS if method != "gmd"} | {  # gmd needs autograd, which knows real GPUs alone
    "dime, one inner step": {"inner_steps": "1"},
    "dime, two by ddim": {"inner_steps": "2", "inner_sampler": "ddim"},
    "fastdime, masked": {"warmup_step": 1},
    "maskdime, one mask": {"per_channel": False},
}


class Watch(TorchDispatchMode):
    """Collects what mixes devices or asks the host."""

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


def test_gradients_ask_nothing_of_the_host():
    weights = {"l1": 0.05, "l2": 0.1, "l_perc": 1.0}
    guidance = Guidance(SmallCNN().eval(), Binary(31, use_logits=True), lambda u: u.square(), **weights)
    x, u = rnd(0, 2, 3, 16, 16), rnd(1, 2, 3, 16, 16)
    pull = guidance.towards(x, guidance.input_features(x), torch.tensor([1, 0]), scale=8)
    with Watch() as watch:
        for gradient in (pull.class_gradient, pull.perceptual_gradient, pull.distance_gradient):
            assert gradient(u).shape == u.shape
    assert watch.found == []


def test_the_watch_sees_a_copy_and_a_question():
    with FakeTensorMode(), Watch() as watch:
        torch.zeros(3, device=GPU).cpu()
    assert watch.found
    with Watch() as watch:
        float(torch.zeros(1))
    assert watch.found
