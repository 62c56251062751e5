"""Whatever is wrong with a command: exit code 2, one line on stderr that names it, and nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.worlds import World, refused, run_main


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """A data folder that the test may damage."""
    return Path(shutil.copytree(world.data, tmp_path / "data"))


# Flags


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("dataset", "CelebB"),
        ("query_label", "Smilling"),
        ("query_label", "40"),
        ("query_label", "-2"),
        ("query_label", "3.5"),
        ("target_label", "2"),
        ("target_label", "-2"),
        ("batch_size", "0"),
        ("num_batches", "0"),
        ("num_chunks", "0"),
        ("chunk", "-1"),
        ("use_logits", "maybe"),
        ("save_images", ""),
        ("classifier_scales", "8,,10"),
        ("classifier_scales", "eight"),
        ("classifier_scales", ""),
        ("classifier_scales", "nan"),
        ("classifier_scales", "-1"),
        ("l1_loss", "-0.1"),
        ("l2_loss", "nan"),
        ("l_perc", "inf"),
        ("l_perc_layer", "0"),
        ("sampling_scale", "-1"),
        ("guided_iterations", "-1"),
        ("start_step", "sixty"),
        ("seed", "-1"),
        ("seed", "four"),
        ("noise", "white"),
        ("precision", "fp8"),
        ("image_format", "gif"),
        ("gpu", "first"),
        ("gpu", "cpu:x"),
        ("image_size", "0"),
        ("image_size", "30"),
        ("image_size", "large"),
        ("num_channels", "33"),
        ("num_channels", "0"),
        ("num_res_blocks", "0"),
        ("num_heads", "0"),
        ("num_heads", "3"),
        ("num_head_channels", "7"),
        ("attention_resolutions", "a,b"),
        ("attention_resolutions", "0"),
        ("channel_mult", "1,x"),
        ("dropout", "2"),
        ("diffusion_steps", "0"),
        ("diffusion_steps", "-5"),
        ("noise_schedule", "quadratic"),
        ("timestep_respacing", "501"),
        ("timestep_respacing", "0"),
        ("timestep_respacing", "ten"),
        ("timestep_respacing", "ddim7.5"),
    ],
)
def test_value_outside_its_range(world, out, flag, value):
    line = refused(world, out, **{flag: value})
    assert flag in line.replace("-", "_"), line


def test_unknown_dataset_lists_the_known_ones(world, out):
    line = refused(world, out, dataset="Celeba")
    assert "'Celeba'" in line and "CelebA" in line and "CelebAMV" in line


def test_unknown_flag(world, out):
    assert "--querry_label" in refused(world, out, querry_label=31)


def test_abbreviated_flag(world, out):
    assert "--target" in refused(world, out, target=1)


def test_flag_without_a_value(world, out):
    result = run_main("--seed")
    assert result.code == 2 and result.err.count("\n") == 1 and "--seed" in result.err


def test_missing_query_label(world, out):
    assert "--query_label" in refused(world, out, query_label=-1)


def test_query_label_outside_the_classifier(world, out, tmp_path):
    parts = torch.load(world.classifier, weights_only=True)
    parts["classifier"] = {name: value[:10] for name, value in parts["classifier"].items()}
    torch.save(parts, tmp_path / "ten.pth")
    line = refused(world, out, query_label=10, classifier_path=tmp_path / "ten.pth")
    assert "--query_label 10" in line and "10 outputs" in line and "ten.pth" in line


@pytest.mark.parametrize(
    ("respacing", "start_step", "timesteps"),
    [
        ("10", 10, 10),
        ("10", 60, 10),
        ("10", 0, 10),
        ("10", -1, 10),
        ("5,6", 11, 11),
        ("ddim25", 25, 25),
        ("", 500, 500),
    ],
)
def test_start_step_outside_the_process(world, out, respacing, start_step, timesteps):
    line = refused(world, out, timestep_respacing=respacing, start_step=start_step)
    assert f"--start_step {start_step}" in line
    assert f"{timesteps} timesteps" in line and str(timesteps - 1) in line


@pytest.mark.parametrize(("num_chunks", "chunk"), [(1, 1), (3, 3), (3, 7)])
def test_chunk_beyond_the_last(world, out, num_chunks, chunk):
    line = refused(world, out, num_chunks=num_chunks, chunk=chunk)
    assert f"--chunk {chunk}" in line and f"--num_chunks {num_chunks}" in line


def test_no_image_is_left_by_the_filter(world, out, data):
    table = (data / "list_attr_celeba.csv").read_text()
    (data / "list_attr_celeba.csv").write_text(table.replace("-1", "1"))
    line = refused(world, out, data_dir=data, target_label=1)
    assert "no image" in line and "--target_label" in line


@pytest.mark.parametrize("exp_name", ["/tmp/exp", "../exp", "a/../../../b"])
def test_exp_name_outside_the_tree(world, out, exp_name):
    assert f"--exp_name {exp_name}" in refused(world, out, exp_name=exp_name)


def test_gpu_that_is_not_there(world, out, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = refused(world, out, gpu=2)
    assert "--gpu 2" in line and "2 GPU" in line


# The output folder


def test_originals_of_other_images(world, out, data):
    """The same ids with other photos behind them, as after another filter in the published code."""
    world.explain(out, num_batches=1)
    for name in ("list_attr_celeba.csv", "list_eval_partition.csv"):
        path = data / name
        path.write_text("".join(row for row in path.read_text().splitlines(True) if not row.startswith("000031")))
    line = refused(world, out, data_dir=data, exp_name="other")
    assert str(out / "Original") in line and "--output_path" in line


def test_originals_of_another_size(world, out):
    world.explain(out, num_batches=1)
    line = refused(world, out, exp_name="other", image_size=64, attention_resolutions=16)
    assert str(out / "Original") in line


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
