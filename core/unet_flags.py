"""Which flags a U-Net checkpoint was built with, read off the names and shapes of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guided_diffusion.script_util import CHANNEL_MULT

Shapes = Mapping[str, Sequence[int]]

IMAGE_CHANNELS = 3
INDEPENDENT_FLAGS = (
    "dropout",
    "use_checkpoint",
    "use_fp16",
    "timestep_respacing",
    "use_kl",
    "rescale_learned_sigmas",
)
"""Flags that may differ between the training of a U-Net and its use; a mismatch in any other gives wrong images."""


def infer_flags(shapes: Shapes, image_size: int) -> dict[str, int | str | bool | None]:
    """The flags that give a U-Net these parameters.

    Args:
        shapes: parameter name -> shape.
        image_size: attention is named by resolution, which the weights do not tell; this one is taken as given.

    Returns:
        The keys num_channels, channel_mult, num_res_blocks, attention_resolutions, learn_sigma, class_cond,
        resblock_updown, use_scale_shift_norm (flags) and num_classes (None without labels), multiclass
        (labels are 0/1 vectors). The number of heads leaves no trace in the weights and is not among them.

    Raises ValueError when these are not the parameters of such a U-Net.
    """
    try:
        return _infer(shapes, image_size)
    except (KeyError, IndexError, ZeroDivisionError):
        raise ValueError("not the parameters of a U-Net of guided-diffusion") from None


def _infer(shapes: Shapes, image_size: int) -> dict[str, int | str | bool | None]:
    num_channels = shapes["time_embed.0.weight"][1]
    ups = [name for name in shapes if _is_upsampling(name, shapes)]
    levels = 1 + len(ups)
    # the residual blocks and one block that halves the size
    blocks_per_level = _count(shapes, "input_blocks") // levels
    first_blocks = [1 + level * blocks_per_level for level in range(levels)]
    widths = [shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0] for block in first_blocks]
    attention = [
        image_size // 2**level
        for level, block in enumerate(first_blocks)
        if f"input_blocks.{block}.1.qkv.weight" in shapes
    ]
    multiclass = "label_emb.bias" in shapes
    num_classes = shapes["label_emb.weight"][1 if multiclass else 0] if "label_emb.weight" in shapes else None
    return {
        "num_channels": num_channels,
        "channel_mult": ",".join(f"{width / num_channels:g}" for width in widths),
        "num_res_blocks": blocks_per_level - 1,
        "attention_resolutions": ",".join(str(resolution) for resolution in attention),
        "learn_sigma": shapes["out.2.weight"][0] == 2 * IMAGE_CHANNELS,
        "class_cond": num_classes is not None,
        "resblock_updown": any(name.endswith("in_layers.0.weight") for name in ups),
        "use_scale_shift_norm": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "num_classes": num_classes,
        "multiclass": multiclass,
    }


def _is_upsampling(name: str, shapes: Shapes) -> bool:
    """Whether this is the first weight of a block that doubles the size: always the last part of an output
    block, a plain convolution, or a residual block where an ordinary one (part 0) stands before it.
    """
    parts = name.split(".")
    if parts[0] != "output_blocks" or parts[2] == "0":
        return False
    return parts[3:] in (["conv", "weight"], ["in_layers", "0", "weight"])


def _count(shapes: Shapes, stack: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith(f"{stack}.")), default=-1)


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
