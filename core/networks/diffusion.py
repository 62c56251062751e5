"""Diffusion models from files: OpenAI's format and folders of diffusers, with as few flags as the file allows."""

from __future__ import annotations

import argparse
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
    CHANNEL_MULT,
    MODEL_FLAGS,
    NUM_CLASSES,
    create_diffusion,
    create_model,
    model_and_diffusion_defaults,
    str2bool,
)
from guided_diffusion.unet import UNetModel

Shapes = Mapping[str, Sequence[int]]

INDEPENDENT_FLAGS = (
    "dropout",
    "use_checkpoint",
    "use_fp16",
    "timestep_respacing",
    "use_kl",
    "rescale_learned_sigmas",
)
"""Flags that may differ between the training of a U-Net and its use; a mismatch in any other gives wrong images."""

LABELS = ("num_classes", "multiclass", "image_channels")
"""What belongs to a network and is no flag; the weights tell it."""

_ADM = {
    "attention_resolutions": "32,16,8",
    "num_res_blocks": "2",
    "learn_sigma": "True",
    "resblock_updown": "True",
    "use_scale_shift_norm": "True",
    "noise_schedule": "linear",
}
_ADM_256 = _ADM | {"image_size": "256", "num_channels": "256", "num_head_channels": "64", "diffusion_steps": "1000"}
_ACE_256 = _ADM | {"image_size": "256", "num_channels": "128", "num_head_channels": "64", "diffusion_steps": "500"}
MODEL_PRESETS: dict[str, dict[str, str]] = {
    # OpenAI's, for ImageNet (256x256_diffusion_uncond.pt, 256x256_diffusion.pt, 64x64_diffusion.pt)
    "imagenet256": _ADM_256 | {"class_cond": "False"},
    "imagenet256-classes": _ADM_256 | {"class_cond": "True"},
    "imagenet64": _ADM_256
    | {"image_size": "64", "num_channels": "192", "num_res_blocks": "3", "class_cond": "True"}
    | {"noise_schedule": "cosine", "use_new_attention_order": "True", "dropout": "0.1"},
    # DiME's for CelebA at 128, ACE's for CelebA-HQ and BDD
    "celeba128": _ADM | {"image_size": "128", "num_channels": "128", "num_heads": "4", "diffusion_steps": "500"},
    "celebahq256": _ACE_256,
    "bdd256": _ACE_256 | {"channel_mult": "1,2,3,4", "attention_resolutions": "16,8", "diffusion_steps": "1000"},
    # P2-weighting's, for FFHQ, CelebA-HQ, CUB, AFHQ, flowers and MetFaces
    "p2-256": _ADM_256 | {"num_channels": "128", "num_res_blocks": "1", "attention_resolutions": "16"},
}
"""The flags of checkpoints that are public, as their authors published them: name -> flag -> value."""


@dataclass(frozen=True)
class DiffusionModel:
    """A network, frozen and in eval mode, and the process that it denoises.

    With class_cond the network is called with labels y: where network.multiclass 0/1 vectors (N, num_classes) in
    floating point, else class indices (N,), integers below num_classes.

    Attributes:
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

    Args:
        flags: keys of model_and_diffusion_defaults(), those alone that somebody gave, as values or text. The others
            are taken from the configuration in the file, read off its weights, or keep their published defaults.

    The weights stay float32 whatever use_fp16 says: `convert_to` is the caller's. Raises InputError for files that are
    damaged, unsafe or of another kind, for flags that contradict the file (it says which would fit), and for those
    that the file needs and nobody gave.
    """
    given, path = _typed(flags), located(path)
    is_folder = Path(path).is_dir()
    stored = read_folder(Path(path), given.get("image_size")) if is_folder else _read_file(path)
    _require_same_flags(path, given, stored.flags)
    known = {**stored.flags, **given}
    needed = {} if is_folder else _inferred(path, stored.state, known.get("image_size", 0))
    _require_told(path, known)

    config = {**model_and_diffusion_defaults(), **needed, **known, **{key: needed[key] for key in LABELS if needed}}
    widths = CHANNEL_MULT.get(config["image_size"], ())
    if "channel_mult" not in known and _numbers(config["channel_mult"]) == list(widths):
        config["channel_mult"] = ""  # as it is published
    build = {key: config[key] for key in (*MODEL_FLAGS, "learn_sigma", *LABELS)}
    build["num_classes"] = build["num_classes"] or NUM_CLASSES  # class_cond alone decides
    try:
        with torch.device("meta"):
            network = create_model(**build, dialect=stored.dialect)
        process = create_diffusion(config, **stored.process)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path}: {error}") from None
    if needed:
        _require_fitting(path, network, needed, given)
    network.config = config | {key: value for key, value in stored.process.items() if key != "betas"}
    return DiffusionModel(install(network, stored.state, path, torch.device(device)), process, network.config)


def _typed(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags with text turned into what their defaults are; InputError for unknown ones and unfit values."""
    defaults = model_and_diffusion_defaults()
    typed = {}
    for key, value in flags.items():
        if key not in defaults:
            raise InputError(f"{key!r} is no flag of a diffusion model; those are {', '.join(defaults)}")
        kind = type(defaults[key])
        try:
            typed[key] = (str2bool if kind is bool else kind)(value) if isinstance(value, str) else value
        except (ValueError, argparse.ArgumentTypeError):
            raise InputError(f"--{key} {value!r}: expected {'True or False' if kind is bool else 'a number'}") from None
    return typed


def _read_file(path: str | Path) -> StoredModel:
    state = read_state_dict(path)
    return StoredModel(state, stored_config(state) or {})


def _inferred(path: str | Path, state: Mapping[str, torch.Tensor], image_size: int) -> dict[str, Any]:
    try:
        return infer_flags({name: tuple(value.shape) for name, value in state.items()}, image_size)
    except ValueError as error:
        hint = "; of a model of diffusers give the folder" if "conv_in.weight" in state else ""
        raise InputError(f"{path}: holds {describe(dict(state))}: {error}{hint}") from None


def _require_same_flags(path: str | Path, given: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    differing = differing_flags({**stored, **given}, stored)
    if differing:
        known = {**stored, **given}
        listed = ", ".join(f"--{key} is {known[key]!r}, the file was trained with {stored[key]!r}" for key in differing)
        raise InputError(f"{path}: its stored configuration contradicts the flags: {listed}")


def _require_told(path: str | Path, known: Mapping[str, Any]) -> None:
    """Raise InputError for what weights do not tell and nobody said."""
    missing = [] if "image_size" in known else ["--image_size"]
    if "num_heads" not in known and known.get("num_head_channels", -1) == -1:
        missing.append("--num_heads or --num_head_channels (of attention)")
    if missing:
        raise InputError(
            f"{path}: its weights do not tell everything about the network: give {' and '.join(missing)} "
            "as it was trained with"
        )


def _require_fitting(path: str | Path, network: UNetModel, needed: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise InputError, naming the flags that would fit, when the flags' network and the file's are not the same."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = infer_flags(shapes, network.image_size)
    wrong = [key for key in found if key in given and found[key] != needed[key]]
    if wrong:
        none = "''"
        listed = ", ".join(f"--{key} {needed[key]!s} instead of {str(found[key]) or none}" for key in wrong)
        raise InputError(f"{path}: does not fit the flags; it needs {listed}")


# --- flags that the weights tell, and flags that mean the same


def infer_flags(shapes: Shapes, image_size: int) -> dict[str, Any]:
    """The flags that give a U-Net these parameters.

    Args:
        shapes: parameter name -> shape.
        image_size: attention is named by resolution, which the weights do not tell; this one is taken as given.

    Returns:
        The keys num_channels, channel_mult, num_res_blocks, attention_resolutions, learn_sigma, class_cond,
        resblock_updown, use_scale_shift_norm (flags) and num_classes (None without labels), multiclass
        (labels are 0/1 vectors), image_channels. The number of heads leaves no trace in the weights and is not among
        them.

    Raises ValueError when these are not the parameters of such a U-Net.
    """
    try:
        num_channels = shapes["time_embed.0.weight"][1]
        ups = [name for name in shapes if _is_upsampling(name)]
        levels = 1 + len(ups)
        blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
        # the residual blocks and one block that halves the size
        blocks_per_level = blocks // levels
        first_blocks = [1 + level * blocks_per_level for level in range(levels)]
        widths = [shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0] for block in first_blocks]
        attention = [
            image_size // 2**level
            for level, block in enumerate(first_blocks)
            if f"input_blocks.{block}.1.qkv.weight" in shapes
        ]
        channels = shapes["input_blocks.0.0.weight"][1]
        multiclass = "label_emb.bias" in shapes
        num_classes = shapes["label_emb.weight"][1 if multiclass else 0] if "label_emb.weight" in shapes else None
        return {
            "num_channels": num_channels,
            "channel_mult": ",".join(f"{width / num_channels:g}" for width in widths),
            "num_res_blocks": blocks_per_level - 1,
            "attention_resolutions": ",".join(str(resolution) for resolution in attention),
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


def _is_upsampling(name: str) -> bool:
    """Whether this is the first weight of a block that doubles the size: always the last part of an output
    block, a plain convolution, or a residual block where an ordinary one (part 0) stands before it.
    """
    parts = name.split(".")
    if parts[0] != "output_blocks" or parts[2] == "0":
        return False
    return parts[3:] in (["conv", "weight"], ["in_layers", "0", "weight"])


def differing_flags(flags: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The flags whose value means another network, or another process, than the stored configuration's.

    Spelling does not count: '8,16' is '16,8', the default widths may be written out, and the number of heads
    means nothing where num_head_channels is given. Keys that only one of the two has are not compared.
    """
    given, stored = _meaning(flags), _meaning(config)
    return [key for key in given if key in stored and given[key] != stored[key]]


def _meaning(flags: Mapping[str, Any]) -> dict[str, Any]:
    meaning = {key: value for key, value in flags.items() if key not in INDEPENDENT_FLAGS}
    if "attention_resolutions" in meaning:
        meaning["attention_resolutions"] = set(_numbers(meaning["attention_resolutions"]))
    if "channel_mult" in meaning:
        default = CHANNEL_MULT.get(meaning.get("image_size"), ())
        meaning["channel_mult"] = _numbers(meaning["channel_mult"]) or list(default)
    if meaning.get("num_heads_upsample") == -1:
        meaning["num_heads_upsample"] = meaning.get("num_heads")
    if meaning.get("num_head_channels", -1) != -1:
        meaning |= dict.fromkeys(("num_heads", "num_heads_upsample"))
    return meaning


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part.strip()]
