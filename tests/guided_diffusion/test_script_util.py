"""The classic flags: defaults, parsing, what they build, what they refuse."""

import argparse
import json

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import LossType, ModelMeanType, ModelVarType
from guided_diffusion.script_util import (
    CHANNEL_MULT,
    FLAG_HELP,
    NUM_CLASSES,
    add_dict_to_argparser,
    args_to_dict,
    create_gaussian_diffusion,
    create_model,
    create_model_and_diffusion,
    diffusion_defaults,
    model_and_diffusion_defaults,
    str2bool,
)
from tests.helpers import BASE


def parse(command: str, defaults: dict) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_dict_to_argparser(parser, defaults)
    return parser.parse_args(command.split())


def test_defaults_are_the_published_ones():
    assert NUM_CLASSES == 1000
    assert diffusion_defaults().items() <= model_and_diffusion_defaults().items()
    published = """image_size=64 num_channels=128 num_res_blocks=2 num_heads=4 num_heads_upsample=-1
    num_head_channels=-1 attention_resolutions='16,8' channel_mult='' dropout=0.0 class_cond=False
    use_checkpoint=False use_scale_shift_norm=True resblock_updown=False use_fp16=False use_new_attention_order=False
    learn_sigma=False diffusion_steps=1000 noise_schedule='linear' timestep_respacing='' use_kl=False
    predict_xstart=False rescale_timesteps=False rescale_learned_sigmas=False"""
    assert {f"{key}={value!r}" for key, value in model_and_diffusion_defaults().items()} == set(published.split())

    assert FLAG_HELP.keys() == model_and_diffusion_defaults().keys()
    parser = argparse.ArgumentParser()
    add_dict_to_argparser(parser, {**model_and_diffusion_defaults(), "other": None})
    text = " ".join(parser.format_help().split())
    assert all(sentence in text for sentence in FLAG_HELP.values())


def test_flags_are_typed_like_their_defaults():
    args = parse("--a 3 --b 0.5 --c yes --d x,y --e z", {"a": 1, "b": 1.0, "c": False, "d": "", "e": None, "f": None})
    assert vars(args) == {"a": 3, "b": 0.5, "c": True, "d": "x,y", "e": "z", "f": None}
    assert args_to_dict(args, ["a", "f"]) == {"a": 3, "f": None}
    assert all(str2bool(text) is True for text in ["yes", "true", "t", "y", "1", "True", "YES", True])
    assert all(str2bool(text) is False for text in ["no", "false", "f", "n", "0", "False", "NO", False])
    with pytest.raises(argparse.ArgumentTypeError, match="'maybe'"):
        str2bool("maybe")


def test_config_holds_every_flag_as_a_plain_value_and_widths_have_defaults():
    flags = {**model_and_diffusion_defaults(), **BASE}
    model, _ = create_model_and_diffusion(**BASE, num_classes=40, multiclass=True)
    assert model.config == {**flags, "num_classes": 40, "multiclass": True, "image_channels": 3}
    assert json.loads(json.dumps(model.config)) == model.config
    model, diffusion = create_model_and_diffusion(**{**BASE, "timestep_respacing": [10, 5]})
    assert model.config["timestep_respacing"] == "10,5" and diffusion.num_timesteps == 15

    model, _ = create_model_and_diffusion(**{**BASE, "image_size": 96, "channel_mult": "1,2"}, image_channels=1)
    assert model.image_size == 96
    assert (model.in_channels, model.out[2].out_channels) == (1, 2)  # the noise, and its variance
    published = {256: (1, 1, 2, 2, 4, 4), 224: (1, 1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4), 28: (1, 1, 2)}
    assert published.items() < CHANNEL_MULT.items()
    with torch.device("meta"):
        model = create_model(512, num_channels=64, num_res_blocks=1, attention_resolutions="")
    first_convolutions = [block[0].in_layers[2] for block in list(model.input_blocks)[1::2]]
    assert [conv.out_channels for conv in first_convolutions] == [32, 64, 64, 128, 128, 256, 256]


@pytest.mark.parametrize(
    ("flags", "attribute", "value"),
    [
        ({"predict_v": True}, "model_mean_type", ModelMeanType.V),
        ({"steps": 3, "betas": np.array([0.1, 0.2, 0.3])}, "original_num_steps", 3),
        ({}, "model_var_type", ModelVarType.FIXED_LARGE),
        ({"sigma_small": True}, "model_var_type", ModelVarType.FIXED_SMALL),
        ({"use_kl": True, "rescale_learned_sigmas": True}, "loss_type", LossType.RESCALED_KL),
        ({"timestep_respacing": "ddim25"}, "num_timesteps", 25),
        ({"noise_schedule": "cosine", "steps": 1}, "betas", [0.999]),
    ],
)
def test_diffusion_flags(flags, attribute, value):
    """The others are behind the figures of test_gaussian_diffusion.py."""
    assert getattr(create_gaussian_diffusion(**flags), attribute) == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image_size": 96, "channel_mult": ""}, "--image_size 96 has no default widths .* give --channel_mult"),
        ({"channel_mult": "1,two"}, "--channel_mult '1,two': expected positive numbers"),
        ({"channel_mult": "1,-2"}, "--channel_mult '1,-2'"),
        ({"attention_resolutions": "16;8"}, "--attention_resolutions '16;8'"),
        ({"attention_resolutions": "16,0"}, "--attention_resolutions '16,0'"),
        ({"timestep_respacing": "501"}, "--timestep_respacing: cannot take 501"),
        ({"noise_schedule": "sqrt"}, "--noise_schedule 'sqrt' is unknown: expected linear or cosine"),
        ({"diffusion_steps": 10}, "--diffusion_steps 10: the linear schedule needs at least 21"),
        ({"diffusion_steps": 0, "noise_schedule": "cosine"}, "--diffusion_steps 0: expected at least 1"),
        ({"num_chanels": 128}, "unknown flags num_chanels;"),
    ],
)
def test_values_that_do_not_fit_name_their_flag(flags, message):
    with pytest.raises((ValueError, TypeError), match=message):
        create_model_and_diffusion(**{**BASE, **flags})
