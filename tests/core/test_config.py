"""The flags of the main job as such: defaults, presets, schedules of inner steps, and what contradicts."""

import pytest

from dime.core.config import as_text, parse_config, preset
from dime.core.errors import InputError
from dime.core.presets import PRESETS
from dime.core.settings import Settings
from guided_diffusion.script_util import model_and_diffusion_defaults


def parsed(*arguments: str) -> dict:
    config = parse_config("", arguments)
    return {**config.flags(), **config.diffusion}


def test_defaults_are_the_published_ones():
    expected = {
        **{"clip_denoised": True, "batch_size": 16, "gpu": "0", "num_batches": 50, "use_train": False},
        **{"dataset": "CelebA", "output_path": "", "classifier_path": "models/classifier.pth"},
        **{"oracle_path": "models/oracle.pth", "model_path": "models/ddpm-celeba.pt", "data_dir": ""},
        **{"exp_name": "", "classifier_scales": (8.0, 10.0, 15.0), "save_x_t": False, "save_z_t": False, "seed": 4},
        **{"query_label": -1, "target_label": -1, "use_ddim": False, "start_step": 60, "use_logits": False},
        **{"l1_loss": 0.0, "l2_loss": 0.0, "l_perc": 0.0, "l_perc_layer": 1, "use_sampling_on_x_t": True},
        **{"sampling_scale": 1.0, "guided_iterations": 9999999, "merge_and_eval": False, "num_chunks": 1},
        **{"chunk": 0, "save_images": True, "method": "dime", "inner_steps": "0", "noise": "per_image"},
        **{"image_format": "jpg", "oracle_figures": False, "preset": (), "self_optimized_masking": True},
        **{"mask": True, "scale_grads": False, "warmup_step": 30, "dilation": 5, "masking_threshold": 0.15},
        **{"grad_scale": 1.5, "topk_ratio": 0.4, "x_t_rate": 0.05, "blur_kernel": 7, "blur_sigma": 3.0},
        **{"per_channel": True, "grads_clip": True, "clip_sigma": 3.0},
    }
    flags = parsed()
    assert {name: flags[name] for name in expected} == expected
    assert parse_config("", []).settings == Settings()
    assert parse_config("", ["--seed", "7", "--method", "gmd"]).settings == Settings(seed=7, method="gmd")


def test_flags_of_the_diffusion_model_are_kept_apart_if_they_are_given():
    """What is not given is read from the model's own file."""
    assert parse_config("", []).diffusion == {}
    config = parse_config("", ["--num_heads", "2", "--preset", "celeba", "--learn_sigma", "no"])
    assert config.diffusion["num_heads"] == 2 and config.diffusion["learn_sigma"] is False
    assert config.diffusion.keys() <= model_and_diffusion_defaults().keys()
    assert "num_heads_upsample" not in config.diffusion and "num_heads" not in config.flags()


def test_a_preset_in_python_or_in_a_file(tmp_path):
    flags = parse_config("", ["--preset", "demo,local", "--seed", "9"])
    assert preset("demo,local", seed=9) == flags.settings
    with pytest.raises(InputError, match="no preset is called 'slow'"):
        preset("slow")
    with pytest.raises(InputError, match="colour"):
        preset("demo", colour=1)
    file = tmp_path / "preset.yaml"
    file.write_text("method: inverted\nclassifier_scales: [1.0, 2.5]\nrepaint: 0.1\n")
    given = parsed("--preset", f"demo,{file}", "--repaint", "0.2")
    assert (given["method"], given["classifier_scales"], given["repaint"]) == ("inverted", (1.0, 2.5), 0.2)
    assert preset(str(file)).classifier_scales == (1.0, 2.5)
    for text in ("- a list", "{", "3: 4"):
        file.write_text(text)
        with pytest.raises(InputError, match="--preset"):
            preset(str(file))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_flags_it_stands_for(name):
    words = [f"--{flag}={as_text(value)}" for flag, value in PRESETS[name].items()]
    assert parsed("--preset", name) == parsed(*words) | {"preset": [name]}


def test_presets_add_up_and_the_later_one_wins():
    both = parsed("--preset", "demo, fast,exact")
    assert both == parsed("--preset", "demo") | {"preset": ["demo", "fast", "exact"]}
    assert parsed("--preset", "exact") == parsed() | {"preset": ["exact"]}
    assert parsed("--preset", "exact,fast")["inner_steps"] == "1"
    given, preset = ["--inner_steps", "7:5,2"], ["--preset", "fast"]
    for flags in (given + preset, preset + given):  # flags that are given win
        assert parsed(*flags)["inner_steps"] == "7:5,2"
    assert parsed("--preset", "fast", "--inner_steps", "0")["inner_steps"] == "0"


@pytest.mark.parametrize("flags", [("--inner_steps", "1"), ("--inner_sampler", "ddim"), ("--preset", "fast")])
def test_inner_steps_of_a_method_without_inner_chain_are_refused(flags):
    with pytest.raises(InputError, match="--method fastdime has no inner chain"):
        parsed("--method", "fastdime", *flags)


@pytest.mark.parametrize(
    "text",
    """dataset=CelebB target_label=2 target_label=-2 batch_size=0 num_batches=0 num_chunks=0 chunk=-1 use_logits=maybe
    save_images= classifier_scales=8,,10 classifier_scales=eight classifier_scales= classifier_scales=nan
    classifier_scales=-1 l1_loss=-0.1 l2_loss=nan l_perc=inf l_perc_layer=0 sampling_scale=-1 guided_iterations=-1
    start_step=sixty seed=-1 seed=four noise=white precision=fp8 image_format=gif image_size=large inner_steps=-1
    inner_steps=five inner_steps=8:20 inner_steps=8:20, inner_steps=2.5 preset=demo,slow""".split(),  # noqa: SIM905
)
def test_a_value_outside_its_range_is_one_line(text, capsys):
    with pytest.raises(SystemExit) as exit:
        parsed(f"--{text}")
    line = capsys.readouterr().err
    flag = text.split("=")[0]
    assert exit.value.code == 2 and line.count("\n") == 1 and f"--{flag}" in line
    # what may be given is said
    assert {"inner_steps": "8:20,1", "preset": "'slow'; there are exact, fast"}.get(flag, "") in line


@pytest.mark.parametrize(
    "flags",
    ["--num_chunks 1 --chunk 1", "--num_chunks 3 --chunk 7", "--exp_name /tmp/exp", "--exp_name ../exp",
     "--exp_name a/../../../b"],
)  # fmt: skip
def test_flags_that_contradict_each_other_or_lead_outside_are_named(flags):
    with pytest.raises(InputError) as error:
        parsed(*flags.split())
    assert " ".join(flags.split()[-2:]) in str(error.value)
