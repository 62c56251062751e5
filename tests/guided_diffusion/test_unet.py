"""The classic flags and the U-Net that they build: published outputs and names, precision, labels, what is refused."""

import argparse
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from guided_diffusion import nn as layers
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
from guided_diffusion.unet import (
    AttentionBlock,
    Downsample,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    UNetModel,
    Upsample,
)
from tests.helpers import BASE, KEYS, fill_, filled, golden, relative_error, rnd


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
        ({"attention_resolutions": "16;8"}, "--attention_resolutions '16;8'"),
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


VARIANTS = {
    "base": {},
    "additive_emb": {"use_scale_shift_norm": False},
    "labels_multi": {"class_cond": True, "num_classes": 40, "multiclass": True},
}
PAPER = {"image_size": 128, "num_channels": 128, "num_res_blocks": 2, "channel_mult": ""}
PAPER |= {"attention_resolutions": "32,16,8", "timestep_respacing": "200"}
"""The U-Net of the DiME paper, where it differs from BASE."""

ROUNDING = 2e-5
"""Float32 sums in another order, relative to the largest value."""


def build(**flags) -> UNetModel:
    return create_model_and_diffusion(**{**BASE, **flags})[0]


@torch.no_grad()
def test_the_papers_network():
    """The other published ones, from files: tests/core/networks/test_diffusion.py."""
    model, published = build(**PAPER), KEYS["unet_celeba128"]
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published
    assert list(model.state_dict()) == list(published)  # optimiser states number the parameters
    model.load_state_dict(filled(published))
    output = model.eval()(rnd(1, 1, 3, 128, 128), torch.tensor([250.0]))
    assert relative_error(output[:, :, ::8, ::8], golden("unet")["celeba128"]) <= ROUNDING


INPUTS = rnd(1, 2, 3, 64, 64), torch.tensor([3.0, 480.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["base", "additive_emb", "labels_multi"])
@torch.no_grad()
def test_one_timestep_for_all_images(variant, dtype):
    x, labels = INPUTS[0], (rnd(2, 2, 40) > 0).float() if variant == "labels_multi" else None
    model = fill_(build(**VARIANTS[variant]))
    model.convert_to(dtype)
    expected = model(x, torch.tensor([480, 480]), labels).numpy()
    # bfloat16: scale and shift are not rounded to 8 bits when they join the norm's parameters
    assert relative_error(model(x, torch.tensor([480]), labels), expected) <= {torch.float32: ROUNDING}.get(dtype, 0.03)


@pytest.mark.parametrize("side", [8, 32])
def test_a_norm_in_half_precision_computes_in_float32(side):
    norm, x = fill_(layers.normalization(64)), (3 + rnd(0, 2, 64, side, side)).bfloat16()
    expected = norm(x.float()).bfloat16()
    assert torch.equal(norm(x), expected)
    gradients = []
    for u in (x.clone().requires_grad_(), x.float().requires_grad_()):
        norm.zero_grad()
        norm(u).float().square().sum().backward()
        gradients.append(norm.weight.grad.clone())
    assert gradients[0].dtype == torch.float32
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=side / 16)  # sums of numbers that were rounded to 8 bits


@torch.no_grad()
def test_half_precision_is_close_and_comes_back():
    model = fill_(build())
    x, t = rnd(1, 1, 3, 16, 16), torch.tensor([3.0])  # small: float16 is slow on a CPU
    expected = model(x, t)
    # Half as many bits give errors near 2^-8 (bfloat16) or 2^-11 (float16) per operation, some tens in a row.
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 0.015)):
        model.convert_to(dtype)
        output = model(x, t)
        assert output.dtype == torch.float32 and model(x.to(dtype), t).dtype == dtype
        assert 0 < (output - expected).norm() / expected.norm() < tolerance  # 0: it did not compute in half precision
    model.convert_to_fp16()
    for name, module in model.named_modules():
        convolution = isinstance(module, (nn.Conv1d, nn.Conv2d)) and not name.startswith("out.")
        for parameter in module.parameters(recurse=False):
            assert parameter.dtype == (torch.float16 if convolution else torch.float32), name
    model.convert_to_fp32()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    output = fill_(model).double()(x.double(), t)
    assert output.dtype == torch.float64 and relative_error(output, expected.numpy()) <= ROUNDING


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_recomputes_and_leaves_gradients_as_they_are(dropout):
    gradients, calls = [], []
    for use_checkpoint in (False, True):
        model = fill_(build(use_checkpoint=use_checkpoint, dropout=dropout)).train()
        model.middle_block[0].in_layers[0].register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(0)
        model(rnd(3, 1, 3, 32, 32), torch.tensor([7])).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))
    assert len(calls) == 1 + 2


@torch.no_grad()
def test_dropout_acts_in_training_alone_and_an_untrained_network_predicts_zero():
    assert build()(*INPUTS).abs().max() == 0
    plain, model = fill_(build()), fill_(build(dropout=0.5))
    assert torch.equal(plain(*INPUTS), model(*INPUTS))
    assert not torch.equal(plain(*INPUTS), model.train()(*INPUTS))


def test_num_heads_upsample_counts_on_the_way_up_alone():
    def heads(model: nn.Module) -> set[int]:
        return {block.num_heads for block in model.modules() if isinstance(block, AttentionBlock)}

    model = build(num_heads=4, num_heads_upsample=2)
    assert heads(model.input_blocks) == heads(model.middle_block) == {4}
    assert heads(model.output_blocks) == {2}
    assert heads(build(num_heads=4)) == {4}
    assert heads(build(num_head_channels=32, num_heads_upsample=8)) == {2}
    with torch.no_grad():
        pooled = UNetModel(16, 3, 32, 3, 1, (), channel_mult=(1, 2), conv_resample=False)
        assert not any("op" in name or name.endswith("conv.weight") for name in pooled.state_dict())
        assert pooled(rnd(0, 1, 3, 16, 16), torch.tensor([1])).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("flags", "side", "labels", "message"),
    [
        ({"image_channels": 1}, 32, None, "images have 3 channels: this network is for 1"),
        ({}, 30, None, "images are 32x30: the levels (--channel_mult) need sides divisible by 4"),
        ({}, 32, torch.tensor([1]), "without classes"),
        ({"class_cond": True}, 32, None, "1000 classes: give labels y"),
        ({"class_cond": True}, 32, torch.tensor([1, 2]), "labels y are (2,): expected (1,)"),
        ({"class_cond": True, "num_classes": 40, "multiclass": True}, 32, torch.tensor([1]), "expected (1, 40)"),
        ({"num_channels": 48}, 32, None, "--num_channels 48 times 1 of --channel_mult is 48 channels"),
        ({"channel_mult": "1,1.5,2"}, 32, None, "times 1.5 of --channel_mult is 48 channels"),
        ({"num_heads": 3}, 32, None, "--num_heads (or --num_heads_upsample) 3 does not divide the 64 channels"),
        ({"num_head_channels": 48}, 32, None, "--num_head_channels 48 does not divide the 64 channels"),
        ({"num_heads": 0}, 32, None, "--num_heads (or --num_heads_upsample) 0"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(flags, side, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(**flags)(rnd(0, 1, 3, 32, side), torch.tensor([1]), labels)


@torch.no_grad()
def test_forks_build_with_the_published_blocks():
    x, emb = rnd(0, 2, 64, 8, 8), rnd(1, 2, 128)
    block = ResBlock(
        64, 128, 0.1, out_channels=32, use_conv=True, use_scale_shift_norm=True, dims=2, use_checkpoint=True, up=True
    )
    assert block(x, emb).shape == (2, 32, 16, 16)
    assert block.skip_connection.kernel_size == (3, 3)
    assert ResBlock(channels=64, emb_channels=128, dropout=0, down=True)(x, emb).shape == (2, 64, 4, 4)
    assert Downsample(64, use_conv=True, dims=2, out_channels=32)(x).shape == (2, 32, 4, 4)
    assert Upsample(64, use_conv=True, dims=2, out_channels=32)(x).shape == (2, 32, 16, 16)
    attention = AttentionBlock(64, num_heads=1, num_head_channels=16, use_checkpoint=False)
    assert attention.num_heads == 4 and attention(x).shape == x.shape
    for build_volume in (lambda: UNetModel(16, 3, 32, 3, 1, (), dims=3), lambda: Upsample(64, True, dims=1)):
        with pytest.raises(ValueError, match="this network is for images, dims 2"):
            build_volume()

    class AddEmbedding(TimestepBlock):
        def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
            return x + emb[:, :64, None, None]

    assert torch.equal(TimestepEmbedSequential(nn.Identity(), AddEmbedding())(x, emb), x + emb[:, :64, None, None])


@pytest.mark.parametrize(("attention", "legacy"), [(QKVAttention, False), (QKVAttentionLegacy, True)])
def test_attention_of_qkv_alone(attention, legacy):
    q, k, v = rnd(0, 3, 2, 4, 16, 9).double()  # (N, heads, ch, T)
    qkv = torch.stack([q, k, v], dim=2 if legacy else 1).flatten(1, 3)
    weights = torch.einsum("nhct,nhcs->nhts", q, k).mul(16**-0.5).softmax(-1)
    torch.testing.assert_close(attention(4)(qkv), torch.einsum("nhts,nhcs->nhct", weights, v).flatten(1, 2))


def test_pieces_that_forks_use():
    for dims in (1, 2, 3):
        x = rnd(0, 1, 2, *[4] * dims)
        assert layers.conv_nd(dims, 2, 3, 3, padding=1)(x).shape == (1, 3, *[4] * dims)
        assert layers.avg_pool_nd(dims, kernel_size=2, stride=2)(x).shape == (1, 2, *[2] * dims)
    layer = fill_(layers.linear(3, 2))
    weight = layer.weight.detach().clone()
    averages = [torch.ones_like(p) for p in layer.parameters()]
    layers.update_ema(averages, layer.parameters(), rate=0.9)
    torch.testing.assert_close(averages[0], 0.9 + 0.1 * weight)
    assert layers.scale_module(layer, 2.0) is layer and torch.equal(layer.weight, 2 * weight)
    assert layers.zero_module(layer) is layer and not layer.weight.any() and not layer.bias.any()
    t = torch.tensor([0, 3, 499])
    embedding = layers.timestep_embedding(t, 9).double()
    angles = t[:, None] * torch.tensor([10000.0]).double() ** (-torch.arange(4) / 4)
    expected = torch.cat([angles.cos(), angles.sin(), torch.zeros(3, 1)], dim=1)
    torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=0)  # angles up to 499, in float32
    assert torch.equal(layers.timestep_embedding(t, 8), layers.timestep_embedding(t.float(), 8))
