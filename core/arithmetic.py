"""How the U-Net computes: number format, memory layout, and the memory behind it (docs/speed.md).

The classifier is left as it is: it is what is being explained, and its gradients are held to the published figures.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from guided_diffusion.unet import UNetModel

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# the parameters of glibc's mallopt (malloc.h)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


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

    glibc returns large blocks to the system at once and gets them back empty, page by page: on a CPU that takes up to
    a quarter of an evaluation's time.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)
