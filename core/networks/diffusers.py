"""Diffusion models of Hugging Face's diffusers, read without that library: a UNet2DModel and its scheduler.

A folder is what a pipeline's save_pretrained writes (unet/, scheduler/), or flat, as google/ddpm-* are. Its U-Net is
this project's under other names; what is computed otherwise is said by a Dialect.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dime.core.errors import InputError
from dime.core.networks.files import read_json, read_state_dict
from guided_diffusion.gaussian_diffusion import get_named_beta_schedule
from guided_diffusion.unet import Dialect, Level

UNET = {
    "_class_name": ("UNet2DModel",),
    **{"sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": (False,)},
    **{"time_embedding_type": ("positional",), "time_embedding_dim": (None,), "num_train_timesteps": None},
    **{"freq_shift": 0, "flip_sin_to_cos": True, "class_embed_type": (None,), "num_class_embeds": None},
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": ("UNetMidBlock2D",),
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    **{"layers_per_block": 2, "dropout": 0.0, "act_fn": ("silu", "swish"), "mid_block_scale_factor": (1,)},
    **{"downsample_type": ("conv", "resnet"), "downsample_padding": (1, 0), "upsample_type": ("conv", "resnet")},
    **{"norm_num_groups": 32, "norm_eps": 1e-5, "resnet_time_scale_shift": ("default", "scale_shift")},
    **{"add_attention": True, "attention_head_dim": 8, "attn_norm_num_groups": None},
}
"""The settings of a UNet2DModel with the library's defaults; a tuple: supported with these values alone."""
SCHEDULER = {
    "_class_name": tuple(
        f"{kind}Scheduler" for kind in ("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "UniPCMultistep")
    ),
    **{"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "trained_betas": None},
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "rescale_betas_zero_snr": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"),
}
"""Likewise of a scheduler, which may have others: how it steps back is not used here."""
PARTS = {
    **{"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"},
    **{"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"},
    **{"linear_1": "0", "linear_2": "2", "group_norm": "norm", "to_q": "qkv", "to_out.0": "proj_out"},
    **{"query": "qkv", "proj_attn": "proj_out"},  # the library's older names
}
"""The parts of their blocks, and what they are called here."""
QKV = {"to_q": ("to_q", "to_k", "to_v"), "query": ("query", "key", "value")}


class StoredModel(NamedTuple):
    """A diffusion model as it lies on the disk.

    state: the network's weights, under UNetModel's names. flags: what is stored of its flags, and of num_classes,
    multiclass and image_channels. dialect: see UNetModel. process: what create_gaussian_diffusion takes beside flags.
    """

    state: Mapping[str, torch.Tensor]
    flags: Mapping[str, Any]
    dialect: Dialect = Dialect()
    process: Mapping[str, Any] = {}


def read_folder(folder: Path, image_size: int | None = None) -> StoredModel:
    """The model in a folder of diffusers.

    image_size: of a network that does not say its own. Raises InputError for what is missing, damaged or not supported.
    """
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    if others := [name for name in index if not name.startswith("_") and name not in ("unet", "scheduler")]:
        raise InputError(
            f"{folder}: a pipeline with {', '.join(others)} beside unet and scheduler: latent and conditional models "
            "are not supported, expected one that denoises pixels (DDPMPipeline, DDIMPipeline)"
        )
    unet, config = _settings(folder, "unet", "config.json", UNET)
    if unknown := [key for key in config if key not in UNET and not key.startswith("_")]:
        raise InputError(f"{unet}: {unknown[0]} is no known setting of a UNet2DModel")
    config["sample_size"] = config["sample_size"] or image_size
    _, settings = _settings(folder, "scheduler", "scheduler_config.json", SCHEDULER)
    try:
        downs = _levels(config["down_block_types"], "Down", config["downsample_type"])
        ups = _levels(config["up_block_types"], "Up", config["upsample_type"])[::-1]
        flags, dialect, process = _flags(config, settings, downs), _dialect(config, downs, ups), _process(settings)
        places = dict(_places(downs, ups, config["layers_per_block"], config["add_attention"]))
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{unet}: not supported: {error}") from None
    endings = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
    files = [unet.with_name(f"diffusion_pytorch_model{ending}") for ending in endings]
    weights = next((file for file in files if file.is_file()), files[0])
    return StoredModel(_renamed(read_state_dict(weights), places), flags, dialect, process)


def _settings(folder: Path, part: str, file: str, defaults: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """A part's configuration, in its own folder or in the one folder of the flat layout, and the settings in it.

    What it leaves out has the library's defaults. Raises InputError for unsupported settings.
    """
    path = folder / part / file if (folder / part / file).is_file() else folder / file
    if not path.is_file():
        raise InputError(f"{folder}: has neither {part}/{file} nor {file}; expected a folder of diffusers")
    settings = {key: value[0] if isinstance(value, tuple) else value for key, value in defaults.items()}
    settings |= read_json(path)
    for key, values in defaults.items():
        if isinstance(values, tuple) and settings[key] not in values:
            expected = " or ".join(map(str, values))
            raise InputError(f"{path}: {key} {settings[key]} is not supported, expected {expected}")
    return path, settings


def _levels(kinds: list[str], way: str, resample: str) -> list[Level]:
    """The levels that block types of the way "Down" or "Up" stand for."""
    levels = {
        f"{way}Block2D": Level(attention=False, updown=False),
        f"Attn{way}Block2D": Level(attention=True, updown=resample == "resnet"),
        f"Resnet{way}sampleBlock2D": Level(attention=False, updown=True),
    }
    if unknown := [kind for kind in kinds if kind not in levels]:
        raise ValueError(f"blocks {unknown[0]}, expected {', '.join(levels)}")
    return [levels[kind] for kind in kinds]


def _flags(config: dict[str, Any], settings: dict[str, Any], downs: list[Level]) -> dict[str, Any]:
    """What flags can say of a model, and its num_classes, multiclass and image_channels."""
    size, widths, channels = config["sample_size"], config["block_out_channels"], config["in_channels"]
    height, width = size if isinstance(size, list) else (size, size)
    learned = config["out_channels"] == 2 * channels
    variance, schedule, trained = (settings[key] for key in ("variance_type", "beta_schedule", "trained_betas"))
    if height != width:
        raise ValueError(f"images of {height}x{width}, expected square ones")
    is_told = variance is None or learned == (variance == "learned_range")
    if not is_told or config["out_channels"] not in (channels, 2 * channels):
        raise ValueError(f"{channels} channels in, {config['out_channels']} out, and variance_type {variance}")
    if config["attn_norm_num_groups"] not in (None, config["norm_num_groups"]):
        raise ValueError("attn_norm_num_groups other than norm_num_groups")
    flags = {
        "num_channels": widths[0],
        "channel_mult": ",".join(f"{width / widths[0]:g}" for width in widths),
        "num_res_blocks": config["layers_per_block"],
        "num_heads": 1,
        "num_head_channels": config["attention_head_dim"] or -1,
        "dropout": config["dropout"],
        "class_cond": config["num_class_embeds"] is not None,
        "num_classes": config["num_class_embeds"],
        "multiclass": False,
        "image_channels": channels,
        "use_scale_shift_norm": config["resnet_time_scale_shift"] == "scale_shift",
        "resblock_updown": any(level.updown for level in downs[:-1]),
        "use_new_attention_order": True,
        "learn_sigma": learned,
        "diffusion_steps": len(trained or range(settings["num_train_timesteps"])),
        "noise_schedule": "trained" if trained else {"squaredcos_cap_v2": "cosine"}.get(schedule, schedule),
        "predict_xstart": settings["prediction_type"] == "sample",
        "rescale_timesteps": False,
    }
    if height:
        attending = [str(height // 2**i) for i, level in enumerate(downs) if level.attention]
        flags |= {"image_size": height, "attention_resolutions": ",".join(attending)}
    return flags


def _dialect(config: dict[str, Any], downs: list[Level], ups: list[Level]) -> Dialect:
    """What its U-Net does otherwise than this project's."""
    return Dialect(
        norm_groups=config["norm_num_groups"],
        norm_eps=config["norm_eps"],
        sin_first=not config["flip_sin_to_cos"],
        freq_shift=config["freq_shift"],
        pad_end=config["downsample_padding"] == 0,
        middle_attention=config["add_attention"],
        # the library's own oddity: with scale and shift, its middle attends to features that are not normalised
        middle_norm=config["resnet_time_scale_shift"] == "default" or config["attn_norm_num_groups"] is not None,
        down=tuple(downs),
        up=tuple(ups),
    )


def _process(settings: dict[str, Any]) -> dict[str, Any]:
    """What create_gaussian_diffusion takes beside flags."""
    steps, start, end = (settings[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    betas = {
        "linear": lambda: np.linspace(start, end, steps),
        "scaled_linear": lambda: np.linspace(start**0.5, end**0.5, steps) ** 2,
        "squaredcos_cap_v2": lambda: get_named_beta_schedule("cosine", steps),
    }
    trained = settings["trained_betas"]
    return {
        "betas": np.array(trained) if trained else betas[settings["beta_schedule"]](),
        "predict_v": settings["prediction_type"] == "v_prediction",
        "sigma_small": settings["variance_type"] in (None, "fixed_small", "fixed_small_log"),
    }


def _places(downs: list[Level], ups: list[Level], layers: int, middle_attention: bool) -> Iterator[tuple[str, str]]:
    """Their blocks, and where those stand here."""
    yield from {
        "time_embedding": "time_embed",
        "class_embedding": "label_emb",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": f"middle_block.{1 + middle_attention}",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items()
    for i, level in enumerate(downs):
        for j in range(layers):
            block = 1 + i * (layers + 1) + j
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{block}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{block}.1"
        conv, op = ("", "") if level.updown else (".conv", ".op")
        yield f"down_blocks.{i}.downsamplers.0{conv}", f"input_blocks.{(i + 1) * (layers + 1)}.0{op}"
    for i, level in enumerate(reversed(ups)):
        for j in range(layers + 1):
            block = i * (layers + 1) + j
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{block}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{block}.1"
        conv = "" if level.updown else ".conv"
        yield f"up_blocks.{i}.upsamplers.0{conv}", f"output_blocks.{block}.{1 + level.attention}{conv}"


def _renamed(state: Mapping[str, torch.Tensor], places: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Their weights under our names; a name that has no place stays, to be told as unknown."""
    renamed = {}
    for name, value in state.items():
        block = next((block for block in places if name.startswith(f"{block}.")), "")
        part, _, kind = name.removeprefix(f"{block}.").rpartition(".")
        if part in ("to_k", "to_v", "key", "value"):
            continue  # they come with their query
        if part in QKV:
            value = torch.cat([state[f"{block}.{part}.{kind}"] for part in QKV[part]])
        if part in (*QKV, "to_out.0", "proj_attn") and kind == "weight":
            value = value.unsqueeze(-1)  # here it is a convolution over positions
        own = ".".join(filter(None, (places.get(block), PARTS.get(part, part), kind)))
        renamed[own if block else name] = value
    return renamed
