"""Whatever is wrong with a command: exit code 2, one line on stderr that names it, and nothing written.

What a value may be is tested at its reader; here, that the main job asks every reader before it begins.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.worlds import VGG19_FILE, World, refused, run_main

ATTRIBUTES, PARTITIONS = "list_attr_celeba.csv", "list_eval_partition.csv"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """A data folder that the test may damage."""
    return Path(shutil.copytree(world.data, tmp_path / "data"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"dataset": "Celeba"}, ["'Celeba'", "CelebA", "CelebAMV"]),
        ({"querry_label": 31}, ["--querry_label"]),
        ({"target": 1}, ["--target"]),
        ({"batch_size": 0}, ["--batch_size"]),
        ({"query_label": -1}, ["--query_label is missing"]),
        ({"query_label": "Smilling"}, ["--query_label Smilling", "is Smiling meant"]),
        ({"query_label": 40}, ["--query_label 40"]),
        ({"query_label": -2}, ["--query_label -2"]),
        ({"gpu": "first"}, ["--gpu first"]),
        ({"num_heads": 3}, ["--num_heads"]),
        ({"timestep_respacing": "ddim7.5"}, ["--timestep_respacing"]),
        ({"num_channels": 64, "num_res_blocks": 2}, ["--num_channels 32", "--num_res_blocks 1"]),
        ({"l_perc": 30, "l_perc_layer": 38}, ["--l_perc_layer 38"]),
        ({"start_step": 10}, ["--start_step 10", "10 timesteps"]),
        ({"start_step": 0}, ["--start_step 0"]),
        ({"timestep_respacing": "5,6", "start_step": 11}, ["--start_step 11", "11 timesteps"]),
        ({"data_dir": "nowhere"}, ["nowhere"]),
        ({"model_path": "nowhere.pt"}, ["nowhere.pt"]),
        ({"classifier_path": "nowhere.pth"}, ["nowhere.pth"]),
    ],
)
def test_what_cannot_be_used_is_named(world, out, flags, said):
    line = refused(world, out, **flags)
    assert all(words in line for words in said), line


def test_flag_without_a_value(world, out):
    result = run_main("--seed")
    assert result.code == 2 and result.err.count("\n") == 1 and "--seed" in result.err


def test_gpu_that_is_not_there(world, out, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "--gpu 2: this machine has 2 GPU" in refused(world, out, gpu=2)


# Data


def test_damaged_annotations(world, out, data):
    (data / ATTRIBUTES).write_text("")
    assert str(data / ATTRIBUTES) in refused(world, out, data_dir=data)


def test_no_image_is_left_by_the_filter(world, out, data):
    (data / ATTRIBUTES).write_text((data / ATTRIBUTES).read_text().replace("-1", "1"))
    line = refused(world, out, data_dir=data, target_label=1)
    assert "no image" in line and "--target_label" in line


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_an_annotated_image_is_missing_or_empty(world, out, data, damage):
    damage(data / "img_align_celeba/000033.jpg")
    assert "000033.jpg" in refused(world, out, data_dir=data)


@pytest.mark.parametrize("exists", [False, True])
def test_missing_or_empty_image_folder(world, out, data, exists):
    shutil.rmtree(data / "img_align_celeba")
    if exists:
        (data / "img_align_celeba").mkdir()
    line = refused(world, out, data_dir=data)
    assert str(data / "img_align_celeba") in line and ("000031.jpg" in line) == exists


# Weights


def test_weights_that_would_run_code(world, out, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"feat_extract": Evil()}, tmp_path / "evil.pth")
    assert "evil.pth" in refused(world, out, classifier_path=tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_networks_in_each_others_place(world, out):
    assert world.classifier.name in refused(world, out, model_path=world.classifier)
    assert world.unet().name in refused(world, out, classifier_path=world.unet())


def test_unet_with_a_nan(world, out, tmp_path):
    state = torch.load(world.unet(), weights_only=True)
    state["out.2.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    line = refused(world, out, model_path=tmp_path / "nan.pt")
    assert "nan.pt" in line and "out.2.bias" in line


def test_query_label_outside_the_classifier(world, out, tmp_path):
    parts = torch.load(world.classifier, weights_only=True)
    parts["classifier"] = {name: value[:10] for name, value in parts["classifier"].items()}
    torch.save(parts, tmp_path / "ten.pth")
    line = refused(world, out, query_label=10, classifier_path=tmp_path / "ten.pth")
    assert "--query_label 10" in line and "10 outputs" in line and "ten.pth" in line


def test_perceptual_weights_that_cannot_be_had(world, out, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    line = refused(world, out, l_perc=30, l_perc_layer=18)
    assert VGG19_FILE in line and str(tmp_path / "hub/checkpoints") in line


# The output folder


def test_originals_of_other_images_and_of_another_size(world, out, data):
    """The same ids with other photos behind them, as after another filter in the published code."""
    world.explain(out, num_batches=1)
    for name in (ATTRIBUTES, PARTITIONS):
        path = data / name
        path.write_text("".join(row for row in path.read_text().splitlines(True) if not row.startswith("000031")))
    for flags in ({"data_dir": data}, {"image_size": 64, "attention_resolutions": 16}):
        line = refused(world, out, exp_name="other", **flags)
        assert str(out / "Original") in line and "--output_path" in line


def test_unreadable_original(world, out):
    path = out / "Original/Correct/0000002.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert str(path) in refused(world, out)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_without_permission(world, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert str(locked) in refused(world, locked / "out")


def test_output_path_that_is_a_file(world, out):
    out.write_text("mine")
    assert str(out) in refused(world, out)
    assert out.read_text() == "mine"
