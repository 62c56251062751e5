"""Loading the diffusion model: what fits comes back whole; what does not is one line that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dime.core import checkpoints
from dime.core.errors import InputError
from guided_diffusion.checkpoint_util import save_state_dict
from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from tests.helpers import BASE, GOLDEN, filled, golden, relative_error, rnd

CPU = torch.device("cpu")
KEYS = json.loads((GOLDEN / "state_dict_keys.json").read_text())
FLAGS = {**model_and_diffusion_defaults(), **BASE}
TOLERANCE = 2e-5  # float32 on another machine, other kernels


def one_line(load, *args) -> str:
    """The message of the InputError that a call raises; it must be one line."""
    with pytest.raises(InputError) as caught:
        load(*args, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unet_file(folder: Path, variant: str = "base", prefix: str = "") -> Path:
    path = folder / f"{variant}.pt"
    torch.save({prefix + k: v for k, v in filled(KEYS[f"unet_{variant}"]).items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_unet_gives_the_published_output(tmp_path, prefix):
    network = checkpoints.load_unet(unet_file(tmp_path, prefix=prefix), FLAGS, CPU)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        output = network(rnd(1, 2, 3, 64, 64), torch.tensor([3.0, 480.0]))
    assert relative_error(output[:, :, ::4, ::4], golden("unet")["base"]) < TOLERANCE


def test_unet_conditioned_on_attributes(tmp_path):
    network = checkpoints.load_unet(unet_file(tmp_path, "labels_multi"), FLAGS | {"class_cond": True}, CPU)
    assert network.config["num_classes"] == 40


def test_half_precision_file_loads_in_float32(tmp_path):
    path = tmp_path / "half.pt"
    torch.save({k: v.half() for k, v in filled(KEYS["unet_base"]).items()}, path)
    network = checkpoints.load_unet(path, FLAGS | {"use_fp16": True}, CPU)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("variant", "needed"),
    [
        ("conv_resample", ["--resblock_updown False instead of True"]),
        ("additive_emb", ["--use_scale_shift_norm False instead of True"]),
        ("fixed_sigma", ["--learn_sigma False instead of True"]),
        ("labels_multi", ["--class_cond True instead of False"]),
        (
            "res2_mult124",
            [
                "--num_channels 64 instead of 32",
                "--channel_mult 1,2,4 instead of 1,2,2",
                "--num_res_blocks 2 instead of 1",
            ],
        ),
    ],
)
def test_a_unet_of_other_flags_says_which_flags_fit(tmp_path, variant, needed):
    message = one_line(checkpoints.load_unet, unet_file(tmp_path, variant), FLAGS)
    assert all(part in message for part in needed)
    assert message.count("instead of") == len(needed)


def test_other_attention_says_which_flag_fits(tmp_path):
    message = one_line(checkpoints.load_unet, unet_file(tmp_path), FLAGS | {"attention_resolutions": "32,16"})
    assert "--attention_resolutions 16 instead of 32,16" in message


@pytest.mark.parametrize("class_cond", [False, True])
def test_class_table_is_not_supported(tmp_path, class_cond):
    path = unet_file(tmp_path, "labels_index")
    message = one_line(checkpoints.load_unet, path, FLAGS | {"class_cond": class_cond})
    assert "10 classes" in message and "40 attributes" in message


def test_one_wrong_shape_is_named(tmp_path):
    state = filled(KEYS["unet_base"])
    state["middle_block.1.proj_out.weight"] = torch.zeros(64, 63, 1)
    torch.save(state, tmp_path / "m.pt")
    message = one_line(checkpoints.load_unet, tmp_path / "m.pt", FLAGS)
    assert "middle_block.1.proj_out.weight: (64, 63, 1) instead of (64, 64, 1)" in message


def test_flags_that_no_network_has(tmp_path):
    message = one_line(checkpoints.load_unet, unet_file(tmp_path), FLAGS | {"image_size": 60, "channel_mult": ""})
    assert "image_size 60" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_heads", 2), ("num_head_channels", 16), ("use_new_attention_order", True), ("image_size", 128)],
)
def test_stored_configuration_decides_what_weights_cannot_tell(tmp_path, key, value):
    network, _ = create_model_and_diffusion(**BASE)
    path = tmp_path / "model000123.pt"
    save_state_dict(path, network.state_dict(), network.config)
    assert checkpoints.load_unet(path, FLAGS, CPU).config["num_heads"] == 4
    message = one_line(checkpoints.load_unet, path, FLAGS | {key: value})
    assert f"--{key} is {value}, the file was trained with {FLAGS[key]}" in message


def test_another_table_of_tensors_is_no_unet(tmp_path):
    torch.save(filled(KEYS["oracle"]["feat_extract"]), tmp_path / "other.pt")
    message = one_line(checkpoints.load_unet, tmp_path / "other.pt", FLAGS)
    assert "not the parameters of a U-Net" in message and "conv1_7x7_s2.weight" in message
