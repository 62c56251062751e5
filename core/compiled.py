"""The U-Net compiled for one shape (--compile), trusted only after it has been compared with itself uncompiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dime.core.cli import say
from guided_diffusion.unet import UNetModel

Evaluation = Callable[..., torch.Tensor]
"""A network: images (N, C, H, W), timesteps (1,) and labels y or None -> (N, C', H, W)."""

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far compiled code may be from eager code, relative to the output: TF32, and roundings in another order."""


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
    """The network compiled for images (N, C, H, W) of this shape; itself where that fails or is wrong, which is said.

    Args:
        model: on its device, in the precision and layout that it will have.
        compiler: takes the network and gives its compiled form; torch.compile unless another is given.
    """
    try:
        compiled = CompiledUNet(model, (compiler or _torch_compiled)(model), shape)
        errors = [_error(compiled, model, shape, t) for t in (0, 250)]
    except Exception as error:  # whatever a missing C++ compiler, Triton or driver ends in
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"--compile is not possible here, the U-Net runs uncompiled: {reason}")
        return model
    wrong = [error for error in errors if not error <= TOLERANCE[model.dtype]]  # NaN is wrong, too
    if wrong:
        say(f"--compile: the compiled U-Net is wrong and is not used (off by {wrong[0]:.1e})")
        return model
    return compiled


def _torch_compiled(model: UNetModel) -> Evaluation:
    on_gpu = next(model.parameters()).is_cuda
    # On a GPU with CUDA graphs: small batches spend their time on launching kernels.
    return torch.compile(model, dynamic=False, fullgraph=True, mode="reduce-overhead" if on_gpu else "default")


def _error(compiled: CompiledUNet, model: UNetModel, shape: torch.Size, step: int) -> float:
    """How far compiled code is from eager code on noise, relative to the output."""
    device = next(model.parameters()).device
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    y = None if model.num_classes is None else torch.zeros(shape[0], model.num_classes, device=device)
    t = torch.tensor([step], device=device)
    fast, eager = (network(x, t, y).double() for network in (compiled, model))
    return float((fast - eager).norm() / eager.norm().clamp_min(1e-30))
