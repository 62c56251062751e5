"""Data and weights that cannot be used: exit code 2, one line on stderr that names the file, nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.worlds import VGG19_FILE, World, refused


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """A data folder that the test may damage."""
    return Path(shutil.copytree(world.data, tmp_path / "data"))


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


@pytest.mark.parametrize("is_there", [False, True])
def test_an_annotated_image_is_missing_or_empty(world, out, data, is_there):
    path = data / "img_align_celeba/000033.jpg"
    path.unlink()
    if is_there:
        path.touch()
    assert path.name in refused(world, out, data_dir=data)


def test_missing_image_folder(world, out, data):
    shutil.rmtree(data / "img_align_celeba")
    assert str(data / "img_align_celeba") in refused(world, out, data_dir=data)


def test_empty_image_folder(world, out, data):
    shutil.rmtree(data / "img_align_celeba")
    (data / "img_align_celeba").mkdir()
    line = refused(world, out, data_dir=data)
    assert str(data / "img_align_celeba") in line and "000031.jpg" in line


def test_picture_of_another_kind_is_read(world, out, data):
    """Grey images are images too."""
    path = data / "img_align_celeba/000031.jpg"
    Image.open(path).convert("L").save(path)
    world.explain(out, data_dir=data, num_batches=1)


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
