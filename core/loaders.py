"""Diffusion models for the Python interface."""

from pathlib import Path
from typing import Any

import torch

from dime.core.arithmetic import prepare_unet
from dime.core.networks import diffusion
from dime.core.networks.diffusion import DiffusionModel
from dime.core.presets import PRESETS
from guided_diffusion.script_util import model_and_diffusion_defaults


def load_diffusion(
    model: str | Path, *, device: str | torch.device = "cpu", precision: str = "fp32", **flags: Any
) -> DiffusionModel:
    """A diffusion model, ready to compute.

    Args:
        model: a file of weights, a diffusers folder, or a preset that names one ("demo").
        precision: arithmetic of its convolutions, fp32, bf16 or fp16.
        flags: how the network was built and trained, as far as its file does not say it, and timestep_respacing.

    Raises InputError for a file that is missing, damaged, unsafe or of another network.
    """
    known = PRESETS.get(str(model), {})
    own = {name: value for name, value in known.items() if name in model_and_diffusion_defaults()}
    loaded = diffusion.load_diffusion(known.get("model_path", model), own | flags, device)
    prepare_unet(loaded.network, precision, loaded.device)
    return loaded
