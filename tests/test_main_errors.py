"""Whatever is wrong with a command: exit code 2, one line on stderr that names it, and nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.worlds import SMALL_FLAGS, VGG19_FILE, World, run_main, tree_of


def refused(world: World, output_path: Path, **flags: Any) -> str:
    """The one line on stderr of a command that must be refused before it writes anything."""
    before = tree_of(output_path) if output_path.is_dir() else None
    result = run_main(*world.command(output_path, SMALL_FLAGS | {"num_batches": 1} | flags))
    assert result.code == 2, (result.code, result.out, result.err)
    assert result.err.endswith("\n") and result.err.count("\n") == 1 and "\r" not in result.err, result.err
    assert "Traceback" not in result.err
    if before is None:
        assert not output_path.exists() or output_path.is_file()
    else:
        assert tree_of(output_path) == before
    return result.err


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


def test_chunk_without_an_image(world, out):
    line = refused(world, out, num_chunks=9, chunk=8)  # 4 images
    assert "no image" in line and "--num_chunks" in line


@pytest.mark.parametrize("exp_name", ["/tmp/exp", "../exp", "a/../../../b"])
def test_exp_name_outside_the_tree(world, out, exp_name):
    assert f"--exp_name {exp_name}" in refused(world, out, exp_name=exp_name)


def test_gpu_that_is_not_there(world, out, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = refused(world, out, gpu=2)
    assert "--gpu 2" in line and "2 GPU" in line


# Data


def test_missing_data_folder(world, out, tmp_path):
    assert str(tmp_path / "nowhere") in refused(world, out, data_dir=tmp_path / "nowhere")


def test_empty_data_folder(world, out, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(world, out, data_dir=tmp_path / "empty")
    assert str(tmp_path / "empty") in line and "list_" in line


@pytest.mark.parametrize("stem", ["list_attr_celeba", "list_eval_partition"])
def test_missing_annotation_file(world, out, data, stem):
    (data / f"{stem}.csv").unlink()
    line = refused(world, out, data_dir=data)
    assert str(data) in line and f"{stem}.csv" in line and f"{stem}.txt" in line


@pytest.mark.parametrize("name", ["list_attr_celeba.csv", "list_eval_partition.csv"])
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff\xfe\x00\x01", b"image_id\n", b"image_id,colour\n000031.jpg,1\n"]
)
def test_damaged_annotation_file(world, out, data, name, content):
    (data / name).write_bytes(content)
    assert str(data / name) in refused(world, out, data_dir=data)


@pytest.mark.parametrize("name", ["list_attr_celeba", "list_eval_partition"])
@pytest.mark.parametrize("content", ["", "60\n", "60\na b c\n000031.jpg 1 2 3 4\n"])
def test_damaged_annotation_text_file(world, out, data, name, content):
    (data / f"{name}.csv").unlink()
    (data / f"{name}.txt").write_text(content)
    assert str(data / f"{name}.txt") in refused(world, out, data_dir=data)


def test_annotation_cut_in_the_middle_of_a_row(world, out, data):
    path = data / "list_attr_celeba.csv"
    path.write_text(path.read_text()[:-20])
    line = refused(world, out, data_dir=data)
    assert str(path) in line and "000060.jpg" in line


def test_annotation_with_another_value(world, out, data):
    path = data / "list_attr_celeba.csv"
    path.write_text(path.read_text().replace("000031.jpg,-1", "000031.jpg,2").replace("000031.jpg,1", "000031.jpg,2"))
    line = refused(world, out, data_dir=data)
    assert str(path) in line and "000031.jpg" in line and "5_o_Clock_Shadow" in line


def test_unknown_partition(world, out, data):
    path = data / "list_eval_partition.csv"
    path.write_text(path.read_text().replace("000031.jpg,1", "000031.jpg,7"))
    line = refused(world, out, data_dir=data)
    assert str(path) in line and "000031.jpg" in line and "7" in line


def test_empty_partition(world, out, data):
    path = data / "list_eval_partition.csv"
    path.write_text(path.read_text().replace(",1\n", ",0\n"))
    assert str(data) in refused(world, out, data_dir=data)


def test_image_without_attributes(world, out, data):
    path = data / "list_attr_celeba.csv"
    path.write_text("".join(row for row in path.read_text().splitlines(True) if not row.startswith("000033")))
    assert "000033.jpg" in refused(world, out, data_dir=data)


def test_image_name_that_leaves_the_folder(world, out, data):
    for name in ("list_attr_celeba.csv", "list_eval_partition.csv"):
        (data / name).write_text((data / name).read_text().replace("000031.jpg", "../../000031.jpg"))
    assert "../../000031.jpg" in refused(world, out, data_dir=data)


def test_listed_image_that_is_not_there(world, out, data):
    (data / "img_align_celeba/000033.jpg").unlink()
    line = refused(world, out, data_dir=data)
    assert str(data / "img_align_celeba") in line and "000033.jpg" in line


def test_missing_image_folder(world, out, data):
    shutil.rmtree(data / "img_align_celeba")
    assert str(data / "img_align_celeba") in refused(world, out, data_dir=data)


def test_empty_image_folder(world, out, data):
    shutil.rmtree(data / "img_align_celeba")
    (data / "img_align_celeba").mkdir()
    line = refused(world, out, data_dir=data)
    assert str(data / "img_align_celeba") in line and "000031.jpg" in line


@pytest.mark.parametrize("number", [31, 34, 45])
def test_empty_image(world, out, data, number):
    """Also the one of the last batch, before the first is written."""
    (data / f"img_align_celeba/{number:06d}.jpg").write_bytes(b"")
    assert f"{number:06d}.jpg" in refused(world, out, data_dir=data, num_batches=50)


def test_damaged_image_is_named(world, out, data):
    """It shows only when it is decoded; what was written before is whole."""
    path = data / "img_align_celeba/000036.jpg"
    path.write_bytes(path.read_bytes()[:300])
    result = run_main(*world.command(out, SMALL_FLAGS | {"data_dir": data}))
    assert result.code == 2
    assert str(path) in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert not list(out.rglob("*.tmp"))
    for folder in ("CF", "Noise", "SM", "Info"):
        assert len(list(out.glob(f"Results/exp/*/*/{folder}/*"))) in (0, 4)


# Weights


@pytest.mark.parametrize("flag", ["model_path", "classifier_path"])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a checkpoint", b"text"])
def test_missing_empty_or_damaged_weights(world, out, tmp_path, flag, content):
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refused(world, out, **{flag: path})


@pytest.mark.parametrize("flag", ["model_path", "classifier_path"])
def test_folder_in_place_of_weights(world, out, tmp_path, flag):
    assert str(tmp_path) in refused(world, out, **{flag: tmp_path})


@pytest.mark.parametrize("flag", ["model_path", "classifier_path"])
def test_truncated_weights(world, out, tmp_path, flag):
    whole = world.unet() if flag == "model_path" else world.classifier
    path = tmp_path / "half.pt"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert str(path) in refused(world, out, **{flag: path})


def test_weights_that_would_run_code(world, out, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"feat_extract": Evil()}, tmp_path / "evil.pth")
    assert "evil.pth" in refused(world, out, classifier_path=tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_unet_of_other_flags_says_which_would_fit(world, out):
    line = refused(world, out, num_channels=64, num_res_blocks=2)
    assert "--num_channels 32" in line and "--num_res_blocks 1" in line


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        ({"learn_sigma": False}, "--learn_sigma True"),
        ({"class_cond": True}, "--class_cond False"),
        ({"channel_mult": "1,2"}, "--channel_mult 1,2,2"),
        ({"resblock_updown": False}, "--resblock_updown True"),
        ({"use_scale_shift_norm": False}, "--use_scale_shift_norm True"),
        ({"attention_resolutions": "16"}, "--attention_resolutions 8"),
    ],
)
def test_flags_that_do_not_fit_the_unet(world, out, flags, needed):
    assert needed in refused(world, out, **flags)


def test_networks_in_each_others_place(world, out):
    assert world.classifier.name in refused(world, out, model_path=world.classifier)
    assert world.unet().name in refused(world, out, classifier_path=world.unet())


def test_unet_with_a_nan(world, out, tmp_path):
    state = torch.load(world.unet(), weights_only=True)
    state["out.2.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    line = refused(world, out, model_path=tmp_path / "nan.pt")
    assert "nan.pt" in line and "out.2.bias" in line


def test_perceptual_weights_that_cannot_be_had(world, out, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    line = refused(world, out, l_perc=30, l_perc_layer=18)
    assert VGG19_FILE in line and str(tmp_path / "hub/checkpoints") in line


def test_perceptual_layer_that_vgg19_lacks(world, out):
    assert "--l_perc_layer 38" in refused(world, out, l_perc=30, l_perc_layer=38)


def test_missing_oracle_is_no_error(world, out):
    world.explain(out, num_batches=1, oracle_path="nowhere.pth")


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


# Merging


def merge(world: World, out: Path, num_chunks: int) -> str:
    return refused(world, out, merge_and_eval=True, num_chunks=num_chunks)


def test_merging_nothing(world, out):
    assert "summary.yaml" in merge(world, out, 1)


def test_merging_names_the_missing_chunk(world, out):
    for chunk in (0, 2):
        world.explain(out, num_batches=1, num_chunks=3, chunk=chunk, save_images=False)
    line = merge(world, out, 3)
    assert "chunk-1_num-chunks-3_summary.yaml" in line
    assert "chunk-0_" not in line and "chunk-2_" not in line


@pytest.mark.parametrize("content", ["", "n: [", "- 1\n- 2\n", "bkl: 0.5\n", "n: many\n", "n: 3\nbkl: high\n"])
def test_merging_a_damaged_summary(world, out, content):
    results = out / "Results/exp"
    results.mkdir(parents=True)
    (results / "chunk-0_num-chunks-2_summary.yaml").write_text(yaml.safe_dump({"n": 3, "bkl": 0.5}))
    (results / "chunk-1_num-chunks-2_summary.yaml").write_text(content)
    assert "chunk-1_num-chunks-2_summary.yaml" in merge(world, out, 2)


def test_picture_of_another_kind_is_read(world, out, data):
    """Grey and palette images are images too."""
    path = data / "img_align_celeba/000031.jpg"
    Image.open(path).convert("L").save(path)
    world.explain(out, data_dir=data, num_batches=1)
