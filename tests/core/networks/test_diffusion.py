"""Models in OpenAI's format: what comes back, what is inferred, asked for and refused; flags from weights and back."""

from pathlib import Path

import pytest
import torch

from dime.core.config import parse_config
from dime.core.errors import InputError
from dime.core.networks.diffusion import DiffusionModel, infer_flags, load_diffusion
from dime.core.sampler import Denoiser
from guided_diffusion.checkpoint_util import portable, save
from guided_diffusion.gaussian_diffusion import ModelVarType
from guided_diffusion.script_util import (
    create_gaussian_diffusion,
    create_model_and_diffusion,
    differing_flags,
    model_and_diffusion_defaults,
)
from tests.helpers import BASE, KEYS, fill_, filled, golden, input_error, relative_error, rnd

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
    **{key: BASE[key] for key in ("num_channels", "channel_mult", "num_res_blocks", "learn_sigma")},
    **{key: BASE[key] for key in ("resblock_updown", "use_scale_shift_norm")},
    "attention_resolutions": "16",  # 8 lies below the lowest level of three, 16
    **{"class_cond": False, "num_classes": None, "multiclass": False, "image_channels": 3},
}
FLAGS = {**model_and_diffusion_defaults(), **BASE}
TOLD = {"image_size": 64, "num_heads": 4}
"""What the weights of the published variants do not tell."""


def unet_file(folder: Path, variant: str = "base", prefix: str = "") -> Path:
    path = folder / f"{variant}.pt"
    torch.save({prefix + k: v for k, v in filled(KEYS[f"unet_{variant}"]).items()}, path)
    return path


def refusal(path: Path, flags: dict) -> str:
    return input_error(load_diffusion, path, flags, "cpu")


@torch.no_grad()
def output(model: DiffusionModel, labels: torch.Tensor | None = None) -> torch.Tensor:
    return model.network(rnd(1, 2, 3, 64, 64), torch.tensor([3.0, 480.0]), labels)[:, :, ::4, ::4]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_published_output_with_nothing_said_but_the_heads(tmp_path, variant):
    told = {
        "head_channels": {"image_size": 64, "num_head_channels": 16},
        "new_attention": {**TOLD, "use_new_attention_order": True},
        "res2_mult124": {**TOLD, "num_heads": 2},
    }
    model = load_diffusion(unet_file(tmp_path, variant, "module."), told.get(variant, TOLD), torch.device("cpu"))
    labels = {"labels_index": torch.tensor([1, 7]), "labels_multi": (rnd(2, 2, 40) > 0).float()}.get(variant)
    # float32 on another machine, other kernels
    assert relative_error(output(model, labels), golden("unet")[variant]) < 2e-5
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())
    assert (model.image_size, model.channels, model.class_cond) == (64, 3, labels is not None)
    assert model.network.config is model.flags and model.flags.keys() >= FLAGS.keys()
    assert model.flags.items() >= (OF_BASE | VARIANTS[variant]).items()
    published = KEYS[f"unet_{variant}"]  # in their order: optimiser states number the parameters
    assert [(k, list(v.shape)) for k, v in model.network.state_dict().items()] == list(published.items())


def test_flags_that_nobody_gave_keep_their_published_defaults(tmp_path):
    network, _ = create_model_and_diffusion(num_channels=32, num_res_blocks=1)
    torch.save(network.state_dict(), tmp_path / "m.pt")
    model = load_diffusion(tmp_path / "m.pt", TOLD, "cpu")
    assert (model.process.original_num_steps, model.process.num_timesteps) == (1000, 1000)
    assert model.flags["channel_mult"] == ""  # the default widths, as they are published
    given = {**TOLD, "diffusion_steps": "500", "timestep_respacing": "50", "use_fp16": "True"}
    model = load_diffusion(unet_file(tmp_path), given, "cpu")
    assert (model.process.original_num_steps, model.process.num_timesteps) == (500, 50)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}  # half precision is the caller's


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--image_size and --num_heads or --num_head_channels"),
        ({"image_size": 64}, "give --num_heads or --num_head_channels"),
        ({"num_head_channels": 16}, "give --image_size as"),
        ({"image_size": 64, "num_head_channels": -1}, "give --num_heads"),
        (FLAGS | {"image_size": 62}, "--image_size 62: 3 levels need"),
        (FLAGS | {"learn_sigma": "perhaps"}, "--learn_sigma 'perhaps': expected True or False"),
        (FLAGS | {"num_channels": "wide"}, "--num_channels 'wide': expected a number"),
        (FLAGS | {"num_chanels": 32}, "'num_chanels' is no flag of a diffusion model"),
    ],
)
def test_what_weights_do_not_tell_is_asked_for_and_what_no_network_has_is_refused(tmp_path, flags, message):
    """What networks and processes themselves refuse: tests/guided_diffusion."""
    assert message in refusal(unet_file(tmp_path), flags)


@pytest.mark.parametrize(
    ("variant", "given", "needed"),
    [
        *[(name, {}, VARIANTS[name]) for name in ("conv_resample", "additive_emb", "fixed_sigma", "res2_mult124")],
        ("labels_multi", {}, {"class_cond": True}),
        ("base", {"class_cond": True}, {"class_cond": False}),
        ("base", {"attention_resolutions": "32,16"}, {"attention_resolutions": "16"}),
    ],
)
def test_a_unet_of_other_flags_says_which_flags_fit(tmp_path, variant, given, needed):
    message = refusal(unet_file(tmp_path, variant), FLAGS | given)
    for key, value in needed.items():
        assert f"--{key} {value} instead of {(FLAGS | given)[key]}" in message
    assert message.count("instead of") == len(needed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_heads", 2), ("num_head_channels", 16), ("use_new_attention_order", True), ("image_size", 128)],
)
def test_the_stored_configuration_tells_what_weights_cannot(tmp_path, key, value):
    network, _ = create_model_and_diffusion(**BASE)
    path = tmp_path / "model000123.pt"
    save(path, portable(network.state_dict(), network.config))
    model = load_diffusion(path, {}, "cpu")
    assert model.flags == network.config | {"num_classes": None}  # an unconditional network has none
    assert model.process.original_num_steps == 500
    assert f"--{key} is {value}, the file was trained with {FLAGS[key]}" in refusal(path, FLAGS | {key: value})
    assert f"--{key} is {value}" in refusal(path, {key: value})


def test_grey_images(tmp_path):
    network, _ = create_model_and_diffusion(**BASE, image_channels=1)
    torch.save(fill_(network).state_dict(), tmp_path / "m.pt")
    model, x = load_diffusion(tmp_path / "m.pt", TOLD, "cpu"), rnd(0, 1, 1, 64, 64)
    model.check(x)
    assert model.channels == 1 and model.process.model_var_type is ModelVarType.LEARNED_RANGE
    denoiser = Denoiser(model.network, model.process)
    with torch.no_grad():
        assert denoiser.reverse(denoiser.output(x, 3), x, 3).mean.shape == x.shape
    with pytest.raises(InputError, match="has 1 channels, the images have 3"):
        model.check(rnd(0, 1, 3, 64, 64))


@pytest.mark.parametrize(
    ("variant", "fits", "unfit"),
    [
        ("labels_index", torch.tensor([0, 9]), [None, torch.tensor([1, 10]), torch.tensor([-1, 1]), torch.ones(2, 10)]),
        ("labels_multi", torch.ones(2, 40), [None, torch.tensor([1, 2]), torch.ones(2, 39), 2 * torch.ones(2, 40)]),
    ],
)
def test_labels_are_what_the_network_takes(tmp_path, variant, fits, unfit):
    model = load_diffusion(unet_file(tmp_path, variant), TOLD, "cpu")
    x = rnd(0, 2, 3, 64, 64)
    model.check(x, fits)
    for labels in unfit:
        with pytest.raises(InputError, match=r"needs labels, .* (of length 40|below 10); the data has"):
            model.check(x, labels)


def test_other_files_are_no_diffusion_models(tmp_path):
    torch.save({"conv_in.weight": torch.zeros(1), "time_embedding.linear_1.weight": torch.zeros(1)}, tmp_path / "d.bin")
    message = refusal(tmp_path / "d.bin", {})
    assert "(conv_in.weight, time_embedding.linear_1.weight): not the parameters of a U-Net" in message
    assert "of a model of diffusers give the folder" in message
    assert "no such file" in refusal(tmp_path / "missing.pt", {})
    assert "config.json" in refusal(tmp_path, {})


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *[("imagenet256", 552.8), ("imagenet256-classes", 553.8), ("imagenet64", 295.9), ("p2-256", 93.6)],
        *[("celeba", 105.2), ("celebahq256", None), ("bdd256", None)],
    ],
)
def test_presets_build_the_published_networks(name, millions):
    """Sizes as published: Dhariwal and Nichol 2021, table 14 (554, 296), P2-weighting (93)."""
    with torch.device("meta"):
        network, _ = create_model_and_diffusion(**parse_config("", ["--preset", name]).diffusion)
    if millions is not None:
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_guidance_goes_on_at_the_last_index_where_the_posterior_has_no_variance():
    process, z = create_gaussian_diffusion(sigma_small=True), rnd(0, 1, 3, 4, 4)
    for i in (0, 1):
        variance = Denoiser(torch.nn.Identity(), process).reverse(z, z, i).variance
        torch.testing.assert_close(variance, torch.full_like(z, process.posterior_variance[1]))


def shapes_of(flags: dict) -> dict[str, list[int]]:
    with torch.device("meta"):
        network, _ = create_model_and_diffusion(**flags)
    return {name: list(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("image_size", "flags"),
    [
        (512, {"attention_resolutions": "32,16,8", "num_channels": 64}),  # half the width at first
        (128, {"num_channels": 128, "num_res_blocks": 2, "attention_resolutions": "32,16,8"}),
        (28, {"attention_resolutions": "7"}),
        (64, {"channel_mult": "1,2", "attention_resolutions": ""}),
        (64, {"channel_mult": "1,2,3,4", "attention_resolutions": "64,8", "num_res_blocks": 3}),
    ],
)
def test_round_trip_of_other_networks(image_size, flags):
    inferred = infer_flags(built := shapes_of({"image_size": image_size, **flags}), image_size)
    assert shapes_of({"image_size": image_size, **inferred, "num_classes": 1000}) == built


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"num_heads": 2}, "num_heads num_heads_upsample"),
        ({"num_head_channels": 64}, "num_heads num_heads_upsample num_head_channels"),
        *[({key: value}, key) for key, value in (("use_new_attention_order", True), ("diffusion_steps", 1000))],
        *[({key: value}, key) for key, value in (("attention_resolutions", "8"), ("channel_mult", ""))],
        ({"num_heads_upsample": 4, "attention_resolutions": "8, 16", "channel_mult": "1,2,2.0"}, ""),
        ({"timestep_respacing": "", "use_fp16": True, "dropout": 0.1, "use_checkpoint": True}, ""),
    ],
)
def test_differing_flags(change, differing):
    assert set(differing_flags(FLAGS, {**FLAGS, **change})) == set(differing.split())
    assert not differing_flags(*({**FLAGS, "num_head_channels": 16, "num_heads": heads} for heads in (1, 4)))
    assert not differing_flags(*({**FLAGS, "channel_mult": text} for text in ("", "1,2,3,4")))
    assert not differing_flags({"num_heads": 2}, {"predict_xstart": True})  # known to one alone
