"""The classic command-line flags and what they build: a U-Net and its diffusion process."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

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

FLAG_HELP = {
    "image_size": "side of the square images in pixels",
    "num_channels": "base width of the U-Net; a multiple of 32",
    "num_res_blocks": "residual blocks at each resolution level",
    "num_heads": "attention heads, unless num_head_channels is given",
    "num_heads_upsample": "attention heads on the way up; -1 means num_heads",
    "num_head_channels": "channels of one attention head, in place of num_heads; -1 means num_heads decides",
    "attention_resolutions": "sides of the feature maps that get attention, separated by commas",
    "channel_mult": "width of each level in units of num_channels, separated by commas; '' means by image_size",
    "dropout": "dropout probability inside residual blocks",
    "class_cond": "condition the network on class labels",
    "use_checkpoint": "recompute activations in the backward pass: less memory, more time",
    "use_scale_shift_norm": "the embedding scales and shifts the normalised features instead of being added",
    "resblock_updown": "residual blocks change the resolution instead of plain convolutions",
    "use_fp16": "convolutions in half precision",
    "use_new_attention_order": "attention splits q, k, v before the heads",
    "learn_sigma": "the network predicts the variance of each step as well",
    "diffusion_steps": "timesteps of the process that the network is trained on",
    "noise_schedule": "how the noise grows: linear or cosine",
    "timestep_respacing": (
        "timesteps that are used: a count, a count for each of several equal sections separated by commas, "
        "or ddimN for N evenly spaced ones; '' means all"
    ),
    "use_kl": "train on the variational bound alone",
    "predict_xstart": "the network predicts the clean image instead of the noise",
    "rescale_timesteps": "show the network timesteps as if there were 1000 of them",
    "rescale_learned_sigmas": "weigh the variational term of the loss by timesteps / 1000",
}
"""One sentence on each key of model_and_diffusion_defaults()."""


def diffusion_defaults() -> dict[str, Any]:
    """The flags of the diffusion process with their defaults."""
    return {
        "learn_sigma": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "timestep_respacing": "",
        "use_kl": False,
        "predict_xstart": False,
        "rescale_timesteps": False,
        "rescale_learned_sigmas": False,
    }


def model_and_diffusion_defaults() -> dict[str, Any]:
    """The flags of network and diffusion process with their defaults."""
    return {
        "image_size": 64,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "num_head_channels": -1,
        "attention_resolutions": "16,8",
        "channel_mult": "",
        "dropout": 0.0,
        "class_cond": False,
        "use_checkpoint": False,
        "use_scale_shift_norm": True,
        "resblock_updown": False,
        "use_fp16": False,
        "use_new_attention_order": False,
        **diffusion_defaults(),
    }


def create_model_and_diffusion(
    *, num_classes: int = NUM_CLASSES, multiclass: bool = False, **flags: Any
) -> tuple[UNetModel, SpacedDiffusion]:
    """The network and the diffusion process that the flags describe.

    Args:
        num_classes: length of the label vector, or number of classes; matters with class_cond only.
        multiclass: labels are 0/1 vectors (N, num_classes) instead of class indices (N,).
        flags: keys of model_and_diffusion_defaults(); what is left out keeps its default.

    `model.config` of the network holds all of these as plain values. Raises ValueError for values that do not fit
    together, TypeError for unknown flags.
    """
    defaults = model_and_diffusion_defaults()
    unknown = sorted(flags.keys() - defaults.keys())
    if unknown:
        raise TypeError(f"create_model_and_diffusion: unknown flags {', '.join(unknown)}; known: {', '.join(defaults)}")
    flags = {**defaults, **flags}
    model_flags = {key: value for key, value in flags.items() if key not in diffusion_defaults()}

    model = create_model(
        **model_flags, learn_sigma=flags["learn_sigma"], num_classes=num_classes, multiclass=multiclass
    )
    model.config = {**flags, "num_classes": num_classes, "multiclass": multiclass}
    if not isinstance(flags["timestep_respacing"], str):
        model.config["timestep_respacing"] = ",".join(str(count) for count in flags["timestep_respacing"])
    return model, create_diffusion(flags)


def create_diffusion(flags: Mapping[str, Any]) -> SpacedDiffusion:
    """The diffusion process that a program's flags describe: keys of diffusion_defaults(), others are left alone.

    Raises ValueError for values that do not fit together.
    """
    settings = {key: flags[key] for key in diffusion_defaults()}
    return create_gaussian_diffusion(steps=settings.pop("diffusion_steps"), **settings)


def create_model(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    channel_mult: str = "",
    learn_sigma: bool = False,
    class_cond: bool = False,
    use_checkpoint: bool = False,
    attention_resolutions: str = "16",
    num_heads: int = 1,
    num_head_channels: int = -1,
    num_heads_upsample: int = -1,
    use_scale_shift_norm: bool = False,
    dropout: float = 0.0,
    resblock_updown: bool = False,
    use_fp16: bool = False,
    use_new_attention_order: bool = False,
    num_classes: int = NUM_CLASSES,
    multiclass: bool = False,
) -> UNetModel:
    """The U-Net for RGB images that the flags describe (FLAG_HELP has a sentence on each)."""
    factors = _numbers("attention_resolutions", attention_resolutions, int)
    widths = _channel_mult(channel_mult, image_size)
    smallest = 2 ** (len(widths) - 1)
    if image_size < 1 or image_size % smallest:
        raise ValueError(f"--image_size {image_size}: {len(widths)} levels need a positive multiple of {smallest}")
    if num_res_blocks < 1:
        raise ValueError(f"--num_res_blocks {num_res_blocks}: expected at least 1")
    return UNetModel(
        image_size=image_size,
        in_channels=3,
        model_channels=num_channels,
        out_channels=6 if learn_sigma else 3,
        num_res_blocks=num_res_blocks,
        attention_resolutions=tuple(image_size // resolution for resolution in factors),
        dropout=dropout,
        channel_mult=widths,
        num_classes=num_classes if class_cond else None,
        multiclass=multiclass,
        use_checkpoint=use_checkpoint,
        use_fp16=use_fp16,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_new_attention_order=use_new_attention_order,
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
) -> SpacedDiffusion:
    """The diffusion process that the flags describe.

    sigma_small takes the posterior's variance instead of β where the network does not learn it.
    """
    if steps < 1:
        raise ValueError(f"--diffusion_steps {steps}: expected at least 1")
    if use_kl:
        loss_type = gd.LossType.RESCALED_KL
    elif rescale_learned_sigmas:
        loss_type = gd.LossType.RESCALED_MSE
    else:
        loss_type = gd.LossType.MSE
    if learn_sigma:
        var_type = gd.ModelVarType.LEARNED_RANGE
    else:
        var_type = gd.ModelVarType.FIXED_SMALL if sigma_small else gd.ModelVarType.FIXED_LARGE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, timestep_respacing or [steps]),
        betas=gd.get_named_beta_schedule(noise_schedule, steps),
        model_mean_type=gd.ModelMeanType.START_X if predict_xstart else gd.ModelMeanType.EPSILON,
        model_var_type=var_type,
        loss_type=loss_type,
        rescale_timesteps=rescale_timesteps,
    )


def add_dict_to_argparser(
    parser: argparse.ArgumentParser, default_dict: Mapping[str, Any], help: Mapping[str, str] = FLAG_HELP
) -> None:
    """Give the parser one flag `--key` for every entry, typed like its default value (None: text)."""
    for key, default in default_dict.items():
        kind = str if default is None else str2bool if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{key}", default=default, type=kind, help=help.get(key))


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The values of these flags, by name."""
    return {key: getattr(args, key) for key in keys}


def str2bool(value: str | bool) -> bool:
    """Flag type: yes/true/t/y/1 and no/false/f/n/0, in any case."""
    if isinstance(value, bool):
        return value
    if value.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if value.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{value!r} is not a truth value: expected True or False")


def _channel_mult(text: str, image_size: int) -> tuple[float, ...]:
    if text:
        return tuple(_numbers("channel_mult", text, float))
    if image_size not in CHANNEL_MULT:
        sizes = ", ".join(str(size) for size in sorted(CHANNEL_MULT))
        raise ValueError(
            f"--image_size {image_size} has no default widths (there are some for {sizes}): "
            "give --channel_mult, for example 1,2,3,4"
        )
    return CHANNEL_MULT[image_size]


def _numbers(flag: str, text: str, kind: type) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [0]
    if any(value <= 0 for value in values):
        raise ValueError(f"--{flag} {text!r}: expected positive numbers separated by commas")
    return values
