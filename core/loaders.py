"""Networks for the Python interface: by file, by kind and name, or by the name of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dime.core.arithmetic import prepare_unet
from dime.core.networks import classifiers, diffusion, features
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


def load_classifier(spec: str | Path, *, device: str | torch.device = "cpu", **description: Any) -> nn.Module:
    """A classifier: images (N, C, H, W) in [-1, 1] -> logits (N, K).

    Args:
        spec: a file, KIND:NAME[@weights] (models/README.md), or a preset that names one ("demo").
        description: size, mean, std and value_range of the images that it takes, where the file does not say it.

    Its attributes `num_outputs` and `names` tell what the outputs are. Raises InputError.
    """
    path = PRESETS.get(str(spec), {}).get("classifier_path", spec)
    return classifiers.load_classifier(path, torch.device(device), **description)


def load_perceptual(
    layer: int | None = None, path: str | Path = "", *, device: str | torch.device = "cpu"
) -> nn.Module:
    """A network for the perceptual distance: VGG19's first `layer` layers, a small CNN's levels, or a preset's."""
    known = PRESETS.get(str(path), {})
    layer = layer or known.get("l_perc_layer", 18)
    return features.load_perceptual(layer, torch.device(device), known.get("perceptual_path", path))
