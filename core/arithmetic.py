"""How the U-Net computes: number format, memory layout, compiled code, and the memory behind it (docs/speed.md).

The classifier is left as it is: it is what is being explained, and its gradients are held to the published figures.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch

from dime.core.cli import say
from dime.core.networks.checks import first_line
from guided_diffusion.nn import PRECISIONS
from guided_diffusion.unet import UNetModel

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far compiled code may be from eager code, relative to the output: TF32, and roundings in another order."""


def prepare_unet(model: UNetModel, precision: str, device: torch.device, published: bool = False) -> UNetModel:
    """The network, changed in place: its convolutions in a precision, its weights in the layout that is fastest there.

    Channels-last on a CPU (oneDNN then reorders nothing) and, in half precision, on a GPU (tensor cores); features
    follow the weights. torch's group norm of channels-last features on a CPU takes the variance as E[x²] - E[x]²: 1e-6
    to 1e-5 off for noised images, more for perfectly constant ones, which a noised image never is.

    published: keep the layout, and with it the more exact group norm, for figures to be compared with published ones
    and for gradients through the network (gmd).
    """
    model.convert_to(PRECISIONS[precision])
    if not published and (device.type == "cpu" or precision != "fp32"):
        model.to(memory_format=torch.channels_last)
    return model


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones; without glibc, do nothing.

    glibc gives large blocks back at once, and gets them empty, page by page: up to a quarter of a CPU's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX of malloc.h
        mallopt(-1, -1)  # M_TRIM_THRESHOLD


class CompiledUNet:
    """A network (--compile) that evaluates images of one shape in compiled code, all else, gradients too, eagerly.

    It has every attribute of the network. fast: its compiled form, for images (N, C, H, W) of that shape.
    """

    def __init__(self, model: UNetModel, fast: Callable[..., torch.Tensor], shape: torch.Size) -> None:
        self.model, self.fast, self.shape = model, fast, shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, x: torch.Tensor, timesteps: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """As UNetModel.forward."""
        if x.shape != self.shape or timesteps.shape != (1,) or torch.is_grad_enabled():
            return self.model(x, timesteps, y)
        if x.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        return self.fast(x, timesteps, y).clone()  # the next evaluation overwrites a CUDA graph's output


@torch.no_grad()
def compile_unet(model: UNetModel, shape: torch.Size) -> UNetModel | CompiledUNet:
    """The network compiled for images (N, C, H, W) of this shape; itself where that fails or is wrong, which is said.

    model: on its device, in the precision and layout that it will have.
    """
    device = next(model.parameters()).device
    x, y = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device), None
    if model.num_classes is not None:
        labels = (shape[0], model.num_classes) if model.multiclass else shape[:1]
        y = torch.zeros(labels, dtype=torch.float32 if model.multiclass else torch.long, device=device)
    try:
        # on a GPU with CUDA graphs: small batches spend their time on launching kernels
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        compiled = CompiledUNet(model, torch.compile(model, dynamic=False, fullgraph=True, mode=mode), shape)
        for t in torch.tensor([[0], [250]], device=device):
            ours, eager = (network(x, t, y).double() for network in (compiled, model))
            error = float((ours - eager).norm() / eager.norm().clamp_min(1e-30))
            if not error <= TOLERANCE[model.dtype]:  # NaN is wrong, too
                say(f"--compile: the compiled U-Net is wrong and is not used (off by {error:.1e})")
                return model
    except Exception as error:  # whatever a missing C++ compiler, Triton or driver ends in
        say(f"--compile is not possible here, the U-Net runs uncompiled: {first_line(error)}")
        return model
    return compiled
