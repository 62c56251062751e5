"""Data and weights that cannot be used: exit code 2, one line on stderr that names the file, nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.worlds import VGG19_FILE, World, refused


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """A data folder that the test may damage."""
    return Path(shutil.copytree(world.data, tmp_path / "data"))


# Data

ATTRIBUTES, PARTITIONS = "list_attr_celeba.csv", "list_eval_partition.csv"


def without(stem: str):
    """Takes away the rows of an image."""
    return lambda text: "".join(row for row in text.splitlines(True) if not row.startswith(stem))


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        *((name, lambda _, content=content: content, [name]) for name in (ATTRIBUTES, PARTITIONS)
          for content in ("", "\n", "\0\1", "image_id\n", "image_id,colour\n000031.jpg,1\n")),
        (ATTRIBUTES, lambda text: text[:-20], [ATTRIBUTES, "000060.jpg"]),
        (ATTRIBUTES, lambda text: text.replace("000031.jpg,", "000031.jpg,2"), ["000031.jpg", "5_o_Clock_Shadow"]),
        (ATTRIBUTES, without("000033"), ["000033.jpg"]),
        (PARTITIONS, lambda text: text.replace("000031.jpg,1", "000031.jpg,7"), ["000031.jpg", "7"]),
        (PARTITIONS, lambda text: text.replace(",1\n", ",0\n"), ["val"]),
    ],
)  # fmt: skip
def test_damaged_annotations(world, out, data, name, edit, said):
    (data / name).write_text(edit((data / name).read_text()))
    line = refused(world, out, data_dir=data)
    assert str(data) in line and all(words in line for words in said), line


@pytest.mark.parametrize("name", [ATTRIBUTES, PARTITIONS])
@pytest.mark.parametrize("content", ["", "60\n", "60\na b c\n000031.jpg 1 2 3 4\n", None])
def test_missing_annotations_and_damaged_text_files(world, out, data, name, content):
    (data / name).unlink()
    text = data / name.replace("csv", "txt")
    if content is not None:
        text.write_text(content)
    line = refused(world, out, data_dir=data)
    assert str(text) in line if content is not None else (name in line and text.name in line)


@pytest.mark.parametrize("exists", [False, True])
def test_missing_or_empty_data_folder(world, out, tmp_path, exists):
    if exists:
        (tmp_path / "nowhere").mkdir()
    assert str(tmp_path / "nowhere") in refused(world, out, data_dir=tmp_path / "nowhere")


def test_image_name_that_leaves_the_folder(world, out, data):
    for name in (ATTRIBUTES, PARTITIONS):
        (data / name).write_text((data / name).read_text().replace("000031.jpg", "../../000031.jpg"))
    assert "../../000031.jpg" in refused(world, out, data_dir=data)


@pytest.mark.parametrize("is_there", [False, True])
def test_an_annotated_image_is_missing_or_empty(world, out, data, is_there):
    path = data / "img_align_celeba/000033.jpg"
    path.unlink()
    if is_there:
        path.touch()
    assert path.name in refused(world, out, data_dir=data)


@pytest.mark.parametrize("exists", [False, True])
def test_missing_or_empty_image_folder(world, out, data, exists):
    shutil.rmtree(data / "img_align_celeba")
    if exists:
        (data / "img_align_celeba").mkdir()
    line = refused(world, out, data_dir=data)
    assert str(data / "img_align_celeba") in line and ("000031.jpg" in line) == exists


# Weights


@pytest.mark.parametrize("flag", ["model_path", "classifier_path"])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a checkpoint", b"text", "folder", "half"])
def test_missing_empty_or_damaged_weights(world, out, tmp_path, flag, content):
    path = tmp_path / "weights.pt"
    whole = (world.unet() if flag == "model_path" else world.classifier).read_bytes()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
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
