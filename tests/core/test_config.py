"""What a run is told: flags, presets, and what is asked by name or number; what contradicts."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dime.core.config import Config, as_text, parse_config, preset
from dime.core.datasets import Source, open_dataset
from dime.core.errors import InputError
from dime.core.guidance import Binary, MultiClass
from dime.core.job.setup import Question, ask, index_of
from dime.core.presets import PRESETS
from dime.core.settings import Settings
from guided_diffusion.script_util import model_and_diffusion_defaults
from tests.helpers import input_error


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
    assert "no preset is called 'slow'" in input_error(preset, "slow")
    assert "colour" in input_error(preset, "demo", colour=1)
    file = tmp_path / "preset.yaml"
    file.write_text("method: inverted\nclassifier_scales: [1.0, 2.5]\nrepaint: 0.1\n")
    given = parsed("--preset", f"demo,{file}", "--repaint", "0.2")
    assert (given["method"], given["classifier_scales"], given["repaint"]) == ("inverted", (1.0, 2.5), 0.2)
    assert preset(str(file)).classifier_scales == (1.0, 2.5)
    for text in ("- a list", "{", "3: 4"):
        file.write_text(text)
        assert "--preset" in input_error(preset, str(file))


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
    inner_steps=five inner_steps=8:20 inner_steps=8:20, inner_steps=2.5 inner_steps=8,1
    inner_steps=8:2:1,1 inner_steps=\u0665 preset=demo,slow""".split(),  # noqa: SIM905
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
    assert " ".join(flags.split()[-2:]) in input_error(parsed, *flags.split())


PLACES = ("cat/a b.png", "cat/b.png", "dog/x,y.png", "owl/1.png", "owl/deep/2.png")
CLASSES = Config(dataset="folder", decision="multiclass")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("animals")
    for number, place in enumerate(PLACES):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / place)
    return open_dataset("folder", str(folder), 8)


def network(outputs: int, names: list[str] | None = None) -> SimpleNamespace:
    return SimpleNamespace(num_outputs=outputs, names=names)


def test_a_folders_classes_stand_for_outputs_without_names(source):
    question = ask(CLASSES, source, network(3))
    assert isinstance(question.decision, MultiClass) and question.target is None
    assert list(question.classes) == ["cat", "dog", "owl"] and question.labels.tolist() == [0, 0, 1, 2, 2]
    own = ask(CLASSES, source, network(4, ["owl", "fish", "dog", "cat"]))
    assert own.labels.tolist() == [3, 3, 2, 0, 0]
    line = input_error(ask, CLASSES, source, network(3, ["cats", "dogs", "owl"]))
    assert "'cat'" in line and "cats" in line and "--class_names" in line
    assert "one output" in input_error(ask, CLASSES, source, network(1))


def test_names_from_a_file(source, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("owl\ncat\ndog\n")
    config = replace(CLASSES, class_names=str(path), target="cat")
    question = ask(config, source, network(3))
    assert question.labels.tolist() == [1, 1, 2, 0, 0] and question.fixed_target == 1
    path.write_text("owl\ncat\n")
    assert "2 names" in (line := input_error(ask, config, source, network(3))) and "3 outputs" in line
    path.write_text("owl\ncat\ncat\n")
    assert "'cat' is there twice" in input_error(ask, config, source, network(3))
    assert "nowhere.txt" in input_error(ask, replace(config, class_names="nowhere.txt"), source, network(3))


def test_one_target_for_all_leaves_out_what_carries_it(source):
    for target in ("owl", "2"):
        question = ask(replace(CLASSES, target=target), source, network(3))
        assert question.fixed_target == 2 and question.target(0) == 2
        assert question.select(5, -1, 10) == [0, 1, 2]
    assert "is owl meant?" in input_error(ask, replace(CLASSES, target="owls"), source, network(3))
    assert "give 0 to 2" in input_error(ask, replace(CLASSES, target="3"), source, network(3))
    # a name that looks like a number is a name
    assert index_of("1", ["1", "0"], "--target") == 0 and index_of(0, ["b", "a"], "--target") == 0
    question = Question(MultiClass(), -1, ["a", "b"], np.array([1, 1]), lambda id: 1, 1)
    with pytest.raises(InputError, match="no image is left to explain"):
        question.select(2, -1, 10)


def test_targets_from_a_file_by_name_or_id(source, tmp_path):
    path = tmp_path / "targets.csv"
    path.write_text('file,class\ncat/a b.png,dog\n1,owl\n"dog/x,y.png",cat\n3,0\n4,1\n')
    question = ask(replace(CLASSES, target=str(path)), source, network(3))
    assert [question.target(id) for id in range(5)] == [1, 2, 0, 0, 1] and question.fixed_target is None
    assert question.select(5, -1, 10) == [0, 1, 2, 3, 4]
    path.write_text("0,dog\n")
    question = ask(replace(CLASSES, target=str(path)), source, network(3))
    with pytest.raises(InputError, match=r"no class for image 1 \(cat/b\.png\)"):
        question.target(1)
    for content, said in (("0,dog\n1,wolf\n", "line 2 wolf"), ("0,dog,1\n", "line 1 has 3 columns")):
        path.write_text(content)
        assert said in input_error(ask, replace(CLASSES, target=str(path)), source, network(3))


def test_one_output_of_many_by_the_folders_class_and_what_is_chosen(source):
    config = Config(dataset="folder", query_label="dog")
    question = ask(config, source, network(3, ["cat", "dog", "owl"]))
    assert question.decision == Binary(1) and question.labels.tolist() == [0, 0, 1, 0, 0] and not question.classes
    assert "--class_names" in input_error(ask, replace(config, query_label=1), source, network(3))
    assert "--query_label is missing" in input_error(ask, replace(config, query_label=-1), source, network(3))
    labels = np.array([1, 0, 0, 1, 0, 1, 1])
    question = Question(Binary(31), 31, labels=labels)
    assert question.select(7, -1, 3) == [0, 1, 2]
    assert question.select(7, 0, 3) == [0, 3, 5] and question.select(7, 1, 99) == [1, 2, 4]


def test_a_single_logit_needs_no_query_and_without_labels_nothing_is_known(tmp_path):
    for place in ("two/no/1.png", "two/yes/2.png", "bare/1.png", "bare/2.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / place)
    two, bare = (open_dataset("folder", str(tmp_path / name), 8) for name in ("two", "bare"))
    question = ask(Config(dataset="folder", use_logits=True), two, network(1))
    assert question.decision == Binary(0, use_logits=True) and question.labels.tolist() == [0, 1]
    assert ask(CLASSES, bare, network(3)).labels is None
    question = ask(Config(dataset="folder"), bare, network(1))
    assert question.labels is None and question.select(2, -1, 10) == [0, 1]
    with pytest.raises(InputError, match="--target_label 1: needs labels"):
        question.select(2, 1, 10)


def test_attributes_keep_their_published_numbers(world):
    celeba = open_dataset("CelebA", str(world.data), 8)
    for query in (31, "Smiling"):
        question = ask(Config(query_label=query), celeba, network(40))
        assert (question.query, question.decision) == (31, Binary(31))
    named = network(2, ["Young", "Smiling"])
    assert ask(Config(query_label="Smiling"), celeba, named).decision == Binary(1)
    assert "decides on Young, Smiling only" in input_error(ask, Config(query_label="Male"), celeba, named)
    assert "is Smiling meant?" in input_error(ask, Config(query_label="Smilling"), celeba, network(40))
