"""The U-Net compiled for one shape (--compile), trusted only after it has been compared with itself uncompiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from dime.core.cli import say
from guided_diffusion.unet import UNetModel

Evaluation = Callable[..., torch.Tensor]
"""A network: images (N, 3, H, W), timesteps (1,) and labels y or None -> (N, C, H, W)."""

WORSE, SLACK = 2.0, 1e-5
"""Compiled code may be WORSE times as far from float64 as eager code is, plus SLACK (relative to the output)."""


class CompiledUNet(nn.Module):
    """A network that evaluates images of one shape in compiled code, and everything else, gradients too, eagerly.

    Args:
        model: the network. fast: its compiled form. shape: of the images that `fast` is for.
    """

    def __init__(self, model: UNetModel, fast: Evaluation, shape: torch.Size) -> None:
        super().__init__()
        self.model = model
        self.shape = shape
        self._fast = (fast,)  # in a tuple it is no submodule: its weights are the model's

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """As UNetModel.forward."""
        if x.shape != self.shape or timesteps.shape != (1,) or torch.is_grad_enabled():
            return self.model(x, timesteps, y)
        if x.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        return self._fast[0](x, timesteps, y).clone()  # the next evaluation overwrites a CUDA graph's output


@torch.no_grad()
def compile_unet(model: UNetModel, shape: torch.Size, compiler: Callable[..., Evaluation] | None = None) -> nn.Module:
    """The network compiled for images (N, 3, H, W) of this shape; itself where that fails or is wrong, which is said.

    Args:
        model: on its device, in the precision and layout that it will have.
        compiler: takes the network and gives its compiled form; torch.compile unless another is given.
    """
    try:
        compiled = CompiledUNet(model, (compiler or _torch_compiled)(model), shape)
        errors = list(_errors(compiled, model, shape))
    except Exception as error:  # whatever a missing C++ compiler, Triton or driver ends in
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"--compile is not possible here, the U-Net runs uncompiled: {reason}")
        return model
    wrong = [
        f"{fast:.1e} where uncompiled code is off by {eager:.1e}" for fast, eager in errors if not _fair(fast, eager)
    ]
    if wrong:
        say(f"--compile: the compiled U-Net is wrong and is not used (off by {wrong[0]})")
        return model
    return compiled


def _torch_compiled(model: UNetModel) -> Evaluation:
    on_gpu = next(model.parameters()).is_cuda
    # On a GPU with CUDA graphs: small batches spend their time on launching kernels.
    return torch.compile(model, dynamic=False, fullgraph=True, mode="reduce-overhead" if on_gpu else "default")


def _fair(fast: float, eager: float) -> bool:
    return fast <= WORSE * eager + SLACK  # NaN is not


def _errors(compiled: CompiledUNet, model: UNetModel, shape: torch.Size) -> Iterator[tuple[float, float]]:
    """How far compiled and eager code are from float64, on varied images and on constant ones.

    Constant ones, because a group norm's variance is then the difference of equal numbers.
    """
    exact = copy.deepcopy(model).double().to(memory_format=torch.contiguous_format)
    device = next(model.parameters()).device
    varied = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = None if model.num_classes is None else torch.zeros(shape[0], model.num_classes, device=device)
    for x, t in ((varied, 250), (varied, 0), (torch.full(shape, 0.5), 0), (torch.full(shape, -1.0), 250)):
        x, t = x.to(device), torch.tensor([t], device=device)
        reference = exact(x[:1].double(), t, None if y is None else y[:1])  # one image: it takes float64 long
        fast, eager = (network(x, t, y)[:1].double() for network in (compiled, model))
        scale = reference.norm().clamp_min(1e-30)
        yield float((fast - reference).norm() / scale), float((eager - reference).norm() / scale)
