"""A U-Net's flags from the shapes of its weights: there and back again."""

from __future__ import annotations

import json

import pytest
import torch

from dime.core.unet_flags import differing_flags, infer_flags
from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from tests.helpers import BASE, GOLDEN

KEYS = json.loads((GOLDEN / "state_dict_keys.json").read_text())
VARIANTS = {
    "base": {},
    "head_channels": {},
    "new_attention": {},
    "conv_resample": {"resblock_updown": False},
    "additive_emb": {"use_scale_shift_norm": False},
    "fixed_sigma": {"learn_sigma": False},
    "labels_index": {"class_cond": True, "num_classes": 10},
    "labels_multi": {"class_cond": True, "num_classes": 40, "multiclass": True},
    "res2_mult124": {"num_res_blocks": 2, "channel_mult": "1,2,4", "num_channels": 64},
}
OF_BASE = {
    "num_channels": 32,
    "channel_mult": "1,2,2",
    "num_res_blocks": 1,
    "attention_resolutions": "16",  # 8 lies below the lowest level of three, 16
    "learn_sigma": True,
    "class_cond": False,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "num_classes": None,
    "multiclass": False,
}


def shapes_of(flags: dict) -> dict[str, list[int]]:
    with torch.device("meta"):
        network, _ = create_model_and_diffusion(**flags)
    return {name: list(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_flags_of_published_variants(variant):
    assert infer_flags(KEYS[f"unet_{variant}"], 64) == OF_BASE | VARIANTS[variant]


def test_flags_of_the_papers_network():
    inferred = infer_flags(KEYS["unet_celeba128"], 128)
    assert inferred == OF_BASE | {
        "num_channels": 128,
        "num_res_blocks": 2,
        "channel_mult": "1,1,2,3,4",
        "attention_resolutions": "32,16,8",
    }


@pytest.mark.parametrize("variant", [*VARIANTS, "celeba128"])
def test_inferred_flags_build_the_same_network(variant):
    size = 128 if variant == "celeba128" else 64
    inferred = infer_flags(KEYS[f"unet_{variant}"], size)
    inferred["num_classes"] = inferred["num_classes"] or 1000
    assert shapes_of({"image_size": size, **inferred}) == KEYS[f"unet_{variant}"]


@pytest.mark.parametrize(
    ("image_size", "flags"),
    [
        (
            512,
            {"channel_mult": "", "attention_resolutions": "32,16,8", "num_channels": 64},
        ),  # half the width at first
        (28, {"channel_mult": "", "attention_resolutions": "7"}),
        (64, {"channel_mult": "1,2", "attention_resolutions": ""}),
        (64, {"channel_mult": "1,2,3,4", "attention_resolutions": "64,8", "num_res_blocks": 3}),
    ],
)
def test_round_trip_of_other_networks(image_size, flags):
    built = shapes_of({"image_size": image_size, **flags})
    inferred = infer_flags(built, image_size)
    assert shapes_of({"image_size": image_size, **inferred, "num_classes": 1000}) == built


@pytest.mark.parametrize("other", ["classifier", "oracle", "vggface2_resnet50"])
def test_other_networks_are_not_unets(other):
    shapes = KEYS[other].get("feat_extract", KEYS[other])
    with pytest.raises(ValueError, match="not the parameters of a U-Net"):
        infer_flags(shapes, 64)


def test_nothing_is_not_a_unet():
    with pytest.raises(ValueError, match="not the parameters of a U-Net"):
        infer_flags({}, 64)


DEFAULTS = {**model_and_diffusion_defaults(), **BASE}


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({}, []),
        ({"num_heads": 2}, ["num_heads", "num_heads_upsample"]),
        ({"num_head_channels": 64}, ["num_heads", "num_heads_upsample", "num_head_channels"]),
        ({"use_new_attention_order": True}, ["use_new_attention_order"]),
        ({"num_heads_upsample": 4}, []),
        ({"attention_resolutions": "8, 16"}, []),
        ({"attention_resolutions": "8"}, ["attention_resolutions"]),
        ({"channel_mult": "1,2,2.0"}, []),
        ({"channel_mult": ""}, ["channel_mult"]),
        ({"diffusion_steps": 1000}, ["diffusion_steps"]),
        ({"timestep_respacing": "", "use_fp16": True, "dropout": 0.1, "use_checkpoint": True}, []),
    ],
)
def test_differing_flags(change, differing):
    assert set(differing_flags(DEFAULTS, {**DEFAULTS, **change})) == set(differing)


def test_heads_do_not_matter_where_head_channels_are_given():
    a, b = ({**DEFAULTS, "num_head_channels": 16, "num_heads": heads} for heads in (1, 4))
    assert differing_flags(a, b) == []


def test_default_widths_may_be_written_out():
    a, b = ({**DEFAULTS, "image_size": 64, "channel_mult": text} for text in ("", "1,2,3,4"))
    assert differing_flags(a, b) == []


def test_keys_of_one_side_are_not_compared():
    assert differing_flags({"num_heads": 2}, {"use_kl": True}) == []
