"""The diffusion model's network from a file, recognised by its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.networks.files import State, describe, install, read_state_dict
from dime.core.unet_flags import differing_flags, infer_flags
from guided_diffusion.checkpoint_util import stored_config
from guided_diffusion.script_util import create_model_and_diffusion
from guided_diffusion.unet import UNetModel


def load_unet(path: str | Path, flags: Mapping[str, Any], device: torch.device) -> UNetModel:
    """The U-Net of a checkpoint that flags (keys of model_and_diffusion_defaults) describe.

    With class_cond the labels are vectors of CelebA's 40 attributes. The weights stay float32 whatever
    use_fp16 says: `convert_to` is the caller's. A configuration stored in the file must agree with the flags;
    a file that does not fit them is an error that says which flags would.
    """
    state = read_state_dict(path)
    config = stored_config(state)
    if config is not None:
        _require_same_flags(path, flags, config)
    try:
        with torch.device("meta"):
            network, _ = create_model_and_diffusion(**flags, num_classes=len(ATTRIBUTES), multiclass=True)
    except ValueError as error:
        raise InputError(str(error)) from None
    _require_fitting_flags(path, network, state, int(flags["image_size"]))
    return install(network, state, path, device)


def _require_same_flags(path: str | Path, flags: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    differing = differing_flags(flags, config)
    if differing:
        listed = ", ".join(f"--{key} is {flags[key]!r}, the file was trained with {config[key]!r}" for key in differing)
        raise InputError(f"{path}: its stored configuration contradicts the flags: {listed}")


def _require_fitting_flags(path: str | Path, network: UNetModel, state: State, image_size: int) -> None:
    """Raise InputError, naming the flags that would fit, when the flags' network and the file's are not the same."""
    try:
        needed = infer_flags({name: tuple(value.shape) for name, value in state.items()}, image_size)
    except ValueError as error:
        raise InputError(f"{path}: holds {describe(dict(state))}: {error}") from None
    if needed["class_cond"] and (needed["num_classes"], needed["multiclass"]) != (len(ATTRIBUTES), True):
        kind = "0/1 vectors" if needed["multiclass"] else "a table indexed by class"
        raise InputError(
            f"{path}: is conditioned on {needed['num_classes']} classes through {kind}; supported are "
            f"unconditional networks and those conditioned on vectors of CelebA's {len(ATTRIBUTES)} attributes"
        )
    given = infer_flags({name: tuple(value.shape) for name, value in network.state_dict().items()}, image_size)
    wrong = [key for key in given if given[key] != needed[key] and key not in ("num_classes", "multiclass")]
    if wrong:
        none = "''"
        listed = ", ".join(f"--{key} {needed[key]!s} instead of {str(given[key]) or none}" for key in wrong)
        raise InputError(f"{path}: does not fit the flags; it needs {listed}")
