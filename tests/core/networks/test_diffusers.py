"""Models of diffusers: the same ε as that library's, what is refused, and how the process is read.

The figures are made where diffusers is installed: python -m tests.core.networks.test_diffusers
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dime.core.networks.diffusion import DiffusionModel, load_diffusion
from guided_diffusion.gaussian_diffusion import ModelMeanType, ModelVarType, get_named_beta_schedule
from tests.helpers import GOLDEN, fill_, filled, golden, input_error, relative_error, rnd


def blocks(down: str, up: str, **settings) -> dict:
    """Settings with block types: words without their ending, Down… from the full resolution on, Up… back to it."""
    ways = {"down_block_types": down, "up_block_types": up}
    return {way: [f"{word}Block2D" for word in words.split()] for way, words in ways.items()} | settings


BASE = blocks("Down AttnDown", "AttnUp Up", sample_size=16, block_out_channels=[32, 64], layers_per_block=1)
OF_GOOGLE = {"norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0}
KINDS = {
    "train_unconditional": {},
    "google": {**OF_GOOGLE, "attention_head_dim": None, "layers_per_block": 2},
    "no_attention": blocks("Down Down", "Up Up", add_attention=False),
    "other_attention_up": blocks("AttnDown Down", "AttnUp Up"),
    "resnet_blocks": blocks("ResnetDownsample AttnDown", "Up ResnetUpsample"),
    "resnet_types": blocks("AttnDown AttnDown", "AttnUp AttnUp", downsample_type="resnet", upsample_type="resnet"),
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift_normed": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
    "grey": {"in_channels": 1, "out_channels": 1},
    "classes": {"num_class_embeds": 5},
    "groups_of_16": {"norm_num_groups": 16, "block_out_channels": [48, 80], "attention_head_dim": 16},
    "learned_variance": {"out_channels": 6},
    "one_level": blocks("AttnDown", "AttnUp", block_out_channels=[32]),
}
"""Kinds of UNet2DModel, where they differ from BASE."""


def inputs(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    labels = torch.tensor([1, 4]) if kind == "classes" else None
    return rnd(1, 2, 1 if kind == "grey" else 3, 16, 16), torch.tensor([3, 700]), labels


def write(folder: Path, kind: str = "train_unconditional", unet: dict | None = None, **scheduler) -> Path:
    """A model of this kind in the layout of a pipeline, without diffusers; its settings may be changed."""
    config, shapes = (json.loads(str(golden("diffusers")[f"{kind}_{part}"])) for part in ("config", "shapes"))
    if kind == "learned_variance":
        scheduler = {"variance_type": "learned_range", **scheduler}
    for file, content in {
        "model_index.json": {"_class_name": "DDPMPipeline", "unet": ["", "X"], "scheduler": ["", "X"]},
        "unet/config.json": config | (unet or {}),
        "scheduler/scheduler_config.json": {"_class_name": "DDPMScheduler", **scheduler},
    }.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(content))
    torch.save(filled(shapes), folder / "unet" / "diffusion_pytorch_model.bin")
    return folder


def refusal(folder: Path, **flags) -> str:
    line = input_error(load_diffusion, folder, flags, "cpu")
    assert line.startswith(str(folder))
    return line


@torch.no_grad()
def output(model: DiffusionModel, kind: str) -> torch.Tensor:
    return model.network(*inputs(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_is_the_recorded_one_and_the_installed_librarys(tmp_path, kind):
    model = load_diffusion(write(tmp_path / "recorded", kind), {}, "cpu")
    # float32 sums in another order
    assert relative_error(output(model, kind)[:, :, ::2, ::2], golden("diffusers")[f"{kind}_output"]) < 1e-5

    diffusers = pytest.importorskip("diffusers")
    network = reference(kind)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range" if kind == "learned_variance" else "fixed_small")
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "m")
    model = load_diffusion(tmp_path / "m", {}, "cpu")
    with torch.no_grad():
        expected = network(*inputs(kind)).sample
    assert relative_error(output(model, kind), expected.numpy()) < 1e-5
    np.testing.assert_allclose(model.process.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4)  # theirs is float32


def test_the_flat_layout_and_the_older_names_of_attention(tmp_path):
    folder = write(tmp_path / "m", "google")
    state = torch.load(folder / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {name.replace(new, old): value for name, value in state.items()}
    (folder / "unet" / "config.json").rename(folder / "config.json")
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    pytest.importorskip("safetensors.torch").save_file(state, folder / "diffusion_pytorch_model.safetensors")
    model = load_diffusion(folder, {}, "cpu")
    assert relative_error(output(model, "google")[:, :, ::2, ::2], golden("diffusers")["google_output"]) < 1e-5
    # and what is known of a model
    model = load_diffusion(write(tmp_path / "classes", "classes"), {"timestep_respacing": "20"}, "cpu")
    assert (model.image_size, model.channels, model.class_cond) == (16, 3, True)
    known = {"num_channels": 32, "channel_mult": "1,2", "attention_resolutions": "8", "num_classes": 5}
    assert model.flags.items() >= known.items()
    assert model.process.num_timesteps == 20 and model.process.original_num_steps == 1000
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())
    assert load_diffusion(write(tmp_path / "grey", "grey"), {}, "cpu").channels == 1


LEARNED, SMALL, LARGE = ModelVarType.LEARNED_RANGE, ModelVarType.FIXED_SMALL, ModelVarType.FIXED_LARGE


@pytest.mark.parametrize(
    ("settings", "mean", "variance", "betas"),
    [
        ({}, "EPSILON", SMALL, np.linspace(1e-4, 0.02, 1000)),
        ({"prediction_type": "sample", "variance_type": "fixed_large"}, "START_X", LARGE, None),
        ({"prediction_type": "v_prediction", "variance_type": "fixed_small_log"}, "V", SMALL, None),
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, "EPSILON", SMALL, None),
        ({"_class_name": "DDIMScheduler", "variance_type": None}, "EPSILON", LEARNED, None),
        ({"variance_type": "learned_range"}, "EPSILON", LEARNED, None),
        ({"beta_start": 0.001, "num_train_timesteps": 50}, "EPSILON", SMALL, np.linspace(0.001, 0.02, 50)),
        ({"beta_schedule": "scaled_linear"}, "EPSILON", SMALL, np.linspace(0.01, 0.02**0.5, 1000) ** 2),
        ({"beta_schedule": "squaredcos_cap_v2"}, "EPSILON", SMALL, get_named_beta_schedule("cosine", 1000)),
        ({"trained_betas": [0.1, 0.2, 0.3]}, "EPSILON", SMALL, np.array([0.1, 0.2, 0.3])),
    ],
)
def test_prediction_variance_and_noise_schedule(tmp_path, settings, mean, variance, betas):
    kind = "learned_variance" if variance == LEARNED else "train_unconditional"
    process = load_diffusion(write(tmp_path / "m", kind, **settings), {}, "cpu").process
    assert (process.model_mean_type, process.model_var_type) == (ModelMeanType[mean], variance)
    if betas is not None:
        np.testing.assert_allclose(process.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-9)


@pytest.mark.parametrize(
    ("message", "unet", "scheduler"),
    [
        ("UNet2DConditionModel is not supported, expected UNet2DModel", {"_class_name": "UNet2DConditionModel"}, {}),
        ("act_fn gelu", {"act_fn": "gelu"}, {}),
        ("center_input_sample True", {"center_input_sample": True}, {}),
        ("time_embedding_type fourier", {"time_embedding_type": "fourier"}, {}),
        ("class_embed_type timestep", {"class_embed_type": "timestep"}, {}),
        ("blocks CrossAttnDownBlock2D", {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, {}),
        ("attn_norm_num_groups", {"attn_norm_num_groups": 8}, {}),
        ("images of 16x32", {"sample_size": [16, 32]}, {}),
        ("something_new is no known setting", {"something_new": 1}, {}),
        ("3 channels in, 6 out, and variance_type fixed_small", {"out_channels": 6}, {"variance_type": "fixed_small"}),
        ("config.json: not supported", {"block_out_channels": "wide"}, {}),
        ("expected a multiple of 7", {"norm_num_groups": 7}, {}),
        ("84 are of another shape", {"block_out_channels": [32, 96]}, {}),
        ("EDMEulerScheduler is not supported", {}, {"_class_name": "EDMEulerScheduler"}),
        ("prediction_type flow_prediction", {}, {"prediction_type": "flow_prediction"}),
        ("beta_schedule sigmoid", {}, {"beta_schedule": "sigmoid"}),
        ("rescale_betas_zero_snr True", {}, {"rescale_betas_zero_snr": True}),
        ("variance_type learned", {}, {"variance_type": "learned"}),
        ("betas", {}, {"trained_betas": [0.1, -0.2]}),
        ("not supported", {}, {"num_train_timesteps": "many"}),
    ],
)
def test_other_unets_and_schedulers_are_refused(tmp_path, message, unet, scheduler):
    assert message in refusal(write(tmp_path / "m", unet=unet, **scheduler))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model_index.json", '{"vqvae": [], "unet": []}', "a pipeline with vqvae beside unet and scheduler: latent"),
        *[("unet/config.json", text, "config.json") for text in ("{", "[]", "\ud800")],
        ("unet/config.json", None, "has neither unet/config.json nor config.json"),
        ("scheduler/scheduler_config.json", None, "has neither scheduler/scheduler_config.json"),
        ("unet/diffusion_pytorch_model.bin", None, "diffusion_pytorch_model.safetensors: no such file"),
    ],
)
def test_latent_models_and_damaged_or_missing_parts_are_refused(tmp_path, file, content, message):
    folder = write(tmp_path / "m")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert message in refusal(folder)


def test_flags_that_contradict_the_folder_or_say_what_it_does_not(tmp_path):
    folder = write(tmp_path / "m")
    message = refusal(folder, noise_schedule="cosine")
    assert "--noise_schedule is 'cosine', the file was trained with 'linear'" in message
    assert "--image_size is 32, the file was trained with 16" in refusal(folder, image_size=32)
    assert "--num_channels is 64" in refusal(folder, num_channels="64")
    load_diffusion(folder, {"image_size": "16", "channel_mult": "1,2", "use_fp16": True}, "cpu")
    folder = write(tmp_path / "without a size", unet={"sample_size": None})
    assert "give --image_size" in refusal(folder)
    assert load_diffusion(folder, {"image_size": 32}, "cpu").flags["attention_resolutions"] == "16"


def reference(kind: str) -> torch.nn.Module:
    from diffusers import UNet2DModel

    return fill_(UNet2DModel(**{**BASE, **KINDS[kind]}))


if __name__ == "__main__":
    figures = {}
    for kind in KINDS:
        network = reference(kind)
        figures[f"{kind}_config"] = json.dumps({**network.config, "_class_name": "UNet2DModel"})
        figures[f"{kind}_shapes"] = json.dumps({k: list(v.shape) for k, v in network.state_dict().items()})
        with torch.no_grad():
            figures[f"{kind}_output"] = network(*inputs(kind)).sample[:, :, ::2, ::2].numpy()
    np.savez_compressed(GOLDEN / "diffusers.npz", **figures)
