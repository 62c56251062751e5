"""Diffusion models from files: OpenAI's format and folders of diffusers, with as few flags as the file allows."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dime.core.errors import InputError
from dime.core.files import located
from dime.core.networks.diffusers import StoredModel, read_folder
from dime.core.networks.files import describe, install, read_state_dict
from guided_diffusion.checkpoint_util import stored_config
from guided_diffusion.respace import SpacedDiffusion
from guided_diffusion.script_util import (
    MODEL_FLAGS,
    NUM_CLASSES,
    create_diffusion,
    create_model,
    differing_flags,
    model_and_diffusion_defaults,
    str2bool,
)
from guided_diffusion.unet import UNetModel

LABELS = ("num_classes", "multiclass", "image_channels")
"""What belongs to a network and is no flag; the weights tell it."""


@dataclass(frozen=True)
class DiffusionModel:
    """A network, frozen and in eval mode, and the process that it denoises.

    With class_cond the network is called with labels y: where network.multiclass 0/1 vectors (N, num_classes) in
    floating point, else class indices (N,), integers below num_classes.

    flags: every key of model_and_diffusion_defaults() as it is for this model; num_classes, multiclass and
    image_channels; of a model of diffusers predict_v and sigma_small (create_gaussian_diffusion).
    """

    network: UNetModel
    process: SpacedDiffusion
    flags: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where its network lies."""
        return next(self.network.parameters(), torch.empty(0)).device

    @property
    def image_size(self) -> int:
        """Side of its images."""
        return self.network.image_size

    @property
    def channels(self) -> int:
        """Channels of its images: 3 for colour, 1 for grey."""
        return self.network.in_channels

    @property
    def class_cond(self) -> bool:
        """Whether its network wants labels."""
        return self.network.num_classes is not None

    def check(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Raise InputError unless images x (N, C, H, W) and their labels y are what the network takes."""
        network, model = self.network, "the diffusion model (--model_path)"
        if x.shape[1] != self.channels:
            raise InputError(f"{model} has {self.channels} channels, the images have {x.shape[1]}")
        if not self.class_cond:
            return
        kind = "0/1 vectors of length" if network.multiclass else "class indices below"
        shape = (len(x), network.num_classes) if network.multiclass else (len(x),)
        largest = 1 if network.multiclass else network.num_classes - 1
        if y is None or y.shape != shape or y.min() < 0 or y.max() > largest:
            found = "none" if y is None else f"{tuple(y.shape)} numbers from {y.min():g} to {y.max():g}"
            raise InputError(f"{model} needs labels, {kind} {network.num_classes}; the data has {found}")


def load_diffusion(path: str | Path, flags: Mapping[str, Any], device: torch.device | str) -> DiffusionModel:
    """The diffusion model in a file of OpenAI's format or in a folder of diffusers.

    flags: keys of model_and_diffusion_defaults(), those alone that somebody gave, as values or text. The others are
    taken from the configuration in the file, read off its weights, or keep their published defaults.

    The weights stay float32 whatever use_fp16 says: `convert_to` is the caller's. Raises InputError for files that are
    damaged, unsafe or of another kind, for flags that contradict the file (it says which would fit), and for those
    that the file needs and nobody gave.
    """
    given, path = _typed(flags), located(path)
    if is_folder := Path(path).is_dir():
        stored = read_folder(Path(path), given.get("image_size"))
    else:
        state = read_state_dict(path)
        stored = StoredModel(state, stored_config(state) or {})
    known = {**stored.flags, **given}
    try:
        differing = differing_flags(known, stored.flags)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if differing:
        listed = [f"--{key} is {known[key]!r}, the file was trained with {stored.flags[key]!r}" for key in differing]
        raise InputError(f"{path}: its stored configuration contradicts the flags: {', '.join(listed)}")

    shapes = {name: tuple(value.shape) for name, value in stored.state.items()}
    try:
        needed = {} if is_folder else infer_flags(shapes, known.get("image_size", 0))
    except ValueError as error:
        hint = "; of a model of diffusers give the folder" if "conv_in.weight" in shapes else ""
        raise InputError(f"{path}: holds {describe(dict(stored.state))}: {error}{hint}") from None
    asked = [] if "image_size" in known else ["--image_size"]
    if "num_heads" not in known and known.get("num_head_channels", -1) == -1:
        asked.append("--num_heads or --num_head_channels (of attention)")
    if flags := " and ".join(asked):
        raise InputError(f"{path}: its weights do not tell everything: give {flags} as it was trained with")

    config = {**model_and_diffusion_defaults(), **needed, **known, **{key: needed[key] for key in LABELS if needed}}
    if "channel_mult" not in known and not differing_flags({**config, "channel_mult": ""}, config):
        config["channel_mult"] = ""  # the default widths, as they are published
    build = {key: config[key] for key in (*MODEL_FLAGS, "learn_sigma", *LABELS)}
    build["num_classes"] = build["num_classes"] or NUM_CLASSES  # class_cond alone decides
    try:
        with torch.device("meta"):
            network = create_model(**build, dialect=stored.dialect)
        process = create_diffusion(config, **stored.process)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path}: {error}") from None
    if needed:
        built = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        found = infer_flags(built, network.image_size)
        if wrong := [key for key in found if key in given and found[key] != needed[key]]:
            listed = [f"--{key} {needed[key]} instead of {str(found[key]) or repr('')}" for key in wrong]
            raise InputError(f"{path}: does not fit the flags; it needs {', '.join(listed)}")
    network.config = config | {key: value for key, value in stored.process.items() if key != "betas"}
    return DiffusionModel(install(network, stored.state, path, torch.device(device)), process, network.config)


def infer_flags(shapes: Mapping[str, Sequence[int]], image_size: int) -> dict[str, Any]:
    """The flags that give a U-Net these parameters.

    shapes: parameter name -> shape. image_size: attention is named by resolution, which the weights do not tell.

    Beside flags: num_classes (None without labels), multiclass (labels are 0/1 vectors), image_channels. The number of
    heads leaves no trace in the weights. Raises ValueError when these are not the parameters of such a U-Net.
    """
    # what doubles the size is the last part of an output block, whose part 0 is an ordinary residual block
    upsampling = re.compile(r"output_blocks\.\d+\.[1-9]\.(conv\.weight|in_layers\.0\.weight)")
    try:
        num_channels, channels = shapes["time_embed.0.weight"][1], shapes["input_blocks.0.0.weight"][1]
        ups = [name for name in shapes if upsampling.fullmatch(name)]
        blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
        per_level = blocks // (1 + len(ups))  # the residual blocks and one block that halves the size
        firsts = [f"input_blocks.{1 + level * per_level}" for level in range(1 + len(ups))]
        widths = [shapes[f"{first}.0.in_layers.2.weight"][0] for first in firsts]
        attending = [image_size // 2**i for i, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes]
        multiclass = "label_emb.bias" in shapes
        num_classes = shapes["label_emb.weight"][1 if multiclass else 0] if "label_emb.weight" in shapes else None
        return {
            "num_channels": num_channels,
            "channel_mult": ",".join(f"{width / num_channels:g}" for width in widths),
            "num_res_blocks": per_level - 1,
            "attention_resolutions": ",".join(map(str, attending)),
            "learn_sigma": shapes["out.2.weight"][0] == 2 * channels,
            "class_cond": num_classes is not None,
            "resblock_updown": any(name.endswith("in_layers.0.weight") for name in ups),
            "use_scale_shift_norm": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
            "num_classes": num_classes,
            "multiclass": multiclass,
            "image_channels": channels,
        }
    except (LookupError, ArithmeticError, ValueError):
        raise ValueError("not the parameters of a U-Net of guided-diffusion") from None


def _typed(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags with text turned into what their defaults are; InputError for unknown ones and unfit values."""
    defaults, typed = model_and_diffusion_defaults(), {}
    for key, value in flags.items():
        if key not in defaults:
            raise InputError(f"{key!r} is no flag of a diffusion model; those are {', '.join(defaults)}")
        kind = type(defaults[key])
        try:
            typed[key] = (str2bool if kind is bool else kind)(value) if isinstance(value, str) else value
        except (ValueError, argparse.ArgumentTypeError):
            raise InputError(f"--{key} {value!r}: expected {'True or False' if kind is bool else 'a number'}") from None
    return typed
