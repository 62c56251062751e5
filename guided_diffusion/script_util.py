"""The classic command-line flags and what they build: a U-Net and its diffusion process."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from guided_diffusion import gaussian_diffusion as gd
from guided_diffusion.respace import SpacedDiffusion, space_timesteps
from guided_diffusion.unet import UNetModel

NUM_CLASSES = 1000
"""Classes of a class-conditional network unless said otherwise (ImageNet)."""

CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    224: (1, 1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    28: (1, 1, 2),
}
"""Width of each resolution level in units of num_channels, by image size."""

MODEL_FLAGS: dict[str, tuple[Any, str]] = {
    "image_size": (64, "side of the square images in pixels"),
    "num_channels": (128, "base width of the U-Net; a multiple of 32"),
    "num_res_blocks": (2, "residual blocks at each resolution level"),
    "num_heads": (4, "attention heads, unless num_head_channels is given"),
    "num_heads_upsample": (-1, "attention heads on the way up; -1 means num_heads"),
    "num_head_channels": (-1, "channels of one attention head, in place of num_heads; -1 means num_heads decides"),
    "attention_resolutions": ("16,8", "sides of the feature maps that get attention, separated by commas"),
    "channel_mult": ("", "width of each level in units of num_channels, separated by commas; '' means by image_size"),
    "dropout": (0.0, "dropout probability inside residual blocks"),
    "class_cond": (False, "condition the network on class labels"),
    "use_checkpoint": (False, "recompute activations in the backward pass: less memory, more time"),
    "use_scale_shift_norm": (True, "the embedding scales and shifts the normalised features instead of being added"),
    "resblock_updown": (False, "residual blocks change the resolution instead of plain convolutions"),
    "use_fp16": (False, "convolutions in half precision"),
    "use_new_attention_order": (False, "attention splits q, k, v before the heads"),
}
"""The flags of the network: default and a sentence on each."""

DIFFUSION_FLAGS: dict[str, tuple[Any, str]] = {
    "learn_sigma": (False, "the network predicts the variance of each step as well"),
    "diffusion_steps": (1000, "timesteps of the process that the network is trained on"),
    "noise_schedule": ("linear", "how the noise grows: linear or cosine"),
    "timestep_respacing": (
        "",
        "timesteps that are used: a count, a count for each of several equal sections separated by commas, "
        "or ddimN for N evenly spaced ones; '' means all",
    ),
    "use_kl": (False, "train on the variational bound alone"),
    "predict_xstart": (False, "the network predicts the clean image instead of the noise"),
    "rescale_timesteps": (False, "show the network timesteps as if there were 1000 of them"),
    "rescale_learned_sigmas": (False, "weigh the variational term of the loss by timesteps / 1000"),
}
"""The flags of the diffusion process: default and a sentence on each."""

INDEPENDENT_FLAGS = {"dropout", "use_checkpoint", "use_fp16", "timestep_respacing", "use_kl", "rescale_learned_sigmas"}
"""Flags that may differ between the training of a U-Net and its use; a mismatch in any other gives wrong images."""

FLAG_HELP = {key: sentence for key, (_, sentence) in (MODEL_FLAGS | DIFFUSION_FLAGS).items()}


def diffusion_defaults() -> dict[str, Any]:
    """The flags of the diffusion process with their defaults."""
    return {key: default for key, (default, _) in DIFFUSION_FLAGS.items()}


def model_and_diffusion_defaults() -> dict[str, Any]:
    """The flags of network and diffusion process with their defaults."""
    return {key: default for key, (default, _) in (MODEL_FLAGS | DIFFUSION_FLAGS).items()}


def create_model_and_diffusion(
    *, num_classes: int = NUM_CLASSES, multiclass: bool = False, image_channels: int = 3, **flags: Any
) -> tuple[UNetModel, SpacedDiffusion]:
    """The network and the diffusion process that the flags describe.

    Args:
        num_classes: length of the label vector, or number of classes; matters with class_cond only.
        multiclass: labels are 0/1 vectors (N, num_classes) instead of class indices (N,).
        image_channels: 3 for colour, 1 for grey.
        flags: keys of model_and_diffusion_defaults(); what is left out keeps its default.

    `model.config` of the network holds all of these as plain values. Raises ValueError for values that do not fit
    together, TypeError for unknown flags.
    """
    defaults = model_and_diffusion_defaults()
    if unknown := sorted(flags.keys() - defaults.keys()):
        raise TypeError(f"create_model_and_diffusion: unknown flags {', '.join(unknown)}; known: {', '.join(defaults)}")
    flags = {**defaults, **flags}
    if not isinstance(flags["timestep_respacing"], str):
        flags["timestep_respacing"] = ",".join(map(str, flags["timestep_respacing"]))
    beside = {"num_classes": num_classes, "multiclass": multiclass, "image_channels": image_channels}
    model = create_model(**{key: flags[key] for key in MODEL_FLAGS}, learn_sigma=flags["learn_sigma"], **beside)
    model.config = {**flags, **beside}
    return model, create_diffusion(flags)


def create_diffusion(flags: Mapping[str, Any], **beside: Any) -> SpacedDiffusion:
    """The diffusion process that a program's flags describe: keys of diffusion_defaults(), others are left alone.

    beside: what create_gaussian_diffusion takes and no flag says. Raises ValueError for values that do not fit.
    """
    settings = {key: flags[key] for key in DIFFUSION_FLAGS}
    return create_gaussian_diffusion(steps=settings.pop("diffusion_steps"), **settings, **beside)


def create_model(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    channel_mult: str = "",
    learn_sigma: bool = False,
    class_cond: bool = False,
    use_checkpoint: bool = False,
    attention_resolutions: str = "16",
    *,
    num_classes: int = NUM_CLASSES,
    image_channels: int = 3,
    **options: Any,
) -> UNetModel:
    """The U-Net that the flags describe (MODEL_FLAGS has a sentence on each).

    options: those that UNetModel has under the same name and with the same default.
    """
    factors = _numbers("attention_resolutions", attention_resolutions, int)
    if not channel_mult and image_size not in CHANNEL_MULT:
        sizes = ", ".join(str(size) for size in sorted(CHANNEL_MULT))
        raise ValueError(
            f"--image_size {image_size} has no default widths (there are some for {sizes}): "
            "give --channel_mult, for example 1,2,3,4"
        )
    widths = _numbers("channel_mult", channel_mult) if channel_mult else CHANNEL_MULT[image_size]
    smallest = 2 ** (len(widths) - 1)
    if image_size < 1 or image_size % smallest:
        raise ValueError(f"--image_size {image_size}: {len(widths)} levels need a positive multiple of {smallest}")
    if num_res_blocks < 1:
        raise ValueError(f"--num_res_blocks {num_res_blocks}: expected at least 1")
    return UNetModel(
        image_size=image_size,
        in_channels=image_channels,
        model_channels=num_channels,
        out_channels=image_channels * (2 if learn_sigma else 1),
        num_res_blocks=num_res_blocks,
        attention_resolutions=tuple(image_size // resolution for resolution in factors),
        channel_mult=widths,
        num_classes=num_classes if class_cond else None,
        use_checkpoint=use_checkpoint,
        **options,
    )


def create_gaussian_diffusion(
    *,
    steps: int = 1000,
    learn_sigma: bool = False,
    sigma_small: bool = False,
    noise_schedule: str = "linear",
    use_kl: bool = False,
    predict_xstart: bool = False,
    rescale_timesteps: bool = False,
    rescale_learned_sigmas: bool = False,
    timestep_respacing: str | Iterable[int] = "",
    predict_v: bool = False,
    betas: np.ndarray | None = None,
) -> SpacedDiffusion:
    """The diffusion process that the flags describe.

    Args:
        sigma_small: the posterior's variance instead of β where the network does not learn it.
        predict_v: the network predicts v = sqrt(ᾱ) ε - sqrt(1 - ᾱ) x_0 (Salimans and Ho 2022).
        betas: β, (steps,), in place of noise_schedule.
    """
    if betas is None:
        betas = gd.get_named_beta_schedule(noise_schedule, steps)
    means, variances, losses = gd.ModelMeanType, gd.ModelVarType, gd.LossType
    fixed = variances.FIXED_SMALL if sigma_small else variances.FIXED_LARGE
    squared = losses.RESCALED_MSE if rescale_learned_sigmas else losses.MSE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, timestep_respacing or [steps]),
        betas=betas,
        model_mean_type=means.V if predict_v else means.START_X if predict_xstart else means.EPSILON,
        model_var_type=variances.LEARNED_RANGE if learn_sigma else fixed,
        loss_type=losses.RESCALED_KL if use_kl else squared,
        rescale_timesteps=rescale_timesteps,
    )


def differing_flags(flags: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The flags whose value means another network, or another process, than the stored configuration's.

    Spelling does not count: '8,16' is '16,8', the default widths may be written out, and the number of heads means
    nothing where num_head_channels is given. Keys of one of the two alone are not compared. Raises ValueError.
    """
    given, stored = _meaning(flags), _meaning(config)
    return [key for key in given if key in stored and given[key] != stored[key]]


def _meaning(flags: Mapping[str, Any]) -> dict[str, Any]:
    meaning = {key: value for key, value in flags.items() if key not in INDEPENDENT_FLAGS}
    if "attention_resolutions" in meaning:
        meaning["attention_resolutions"] = set(_numbers("attention_resolutions", meaning["attention_resolutions"]))
    if "channel_mult" in meaning:
        default = CHANNEL_MULT.get(meaning.get("image_size"), ())
        meaning["channel_mult"] = _numbers("channel_mult", meaning["channel_mult"]) or list(default)
    if meaning.get("num_heads_upsample") == -1:
        meaning["num_heads_upsample"] = meaning.get("num_heads")
    if meaning.get("num_head_channels", -1) != -1:
        meaning |= dict.fromkeys(("num_heads", "num_heads_upsample"))
    return meaning


def add_dict_to_argparser(parser: argparse.ArgumentParser, default_dict: Mapping[str, Any]) -> None:
    """Give the parser one flag `--key` for every entry, typed like its default value (None: text)."""
    for key, default in default_dict.items():
        kind = str if default is None else str2bool if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{key}", default=default, type=kind, help=FLAG_HELP.get(key))


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The values of these flags, by name."""
    return {key: getattr(args, key) for key in keys}


def str2bool(value: str | bool) -> bool:
    """Flag type: yes/true/t/y/1 and no/false/f/n/0, in any case."""
    text = str(value).lower()
    if text in ("yes", "true", "t", "y", "1"):
        return True
    if text in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{value!r} is not a truth value: expected True or False")


def _numbers(flag: str, text: str, kind: type = float) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [0]
    if any(value <= 0 for value in values):
        raise ValueError(f"--{flag} {text!r}: expected positive numbers separated by commas")
    return values
