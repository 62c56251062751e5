"""That the main job asks every reader before it begins: exit code 2, one line that names it, nothing written."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.worlds import World, refused

ATTRIBUTES, PARTITIONS = "list_attr_celeba.csv", "list_eval_partition.csv"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.data, tmp_path / "data"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"dataset": "Celeba"}, ["'Celeba'", "CelebA", "CelebAMV"]),
        ({"querry_label": 31}, ["--querry_label"]),
        ({"query_label": -1}, ["--query_label is missing"]),
        ({"query_label": "Smilling"}, ["--query_label Smilling", "is Smiling meant"]),
        ({"query_label": 40}, ["--query_label 40"]),
        ({"num_heads": 3}, ["--num_heads"]),
        ({"timestep_respacing": "ddim7.5"}, ["--timestep_respacing"]),
        ({"num_channels": 64, "num_res_blocks": 2}, ["--num_channels 32", "--num_res_blocks 1"]),
        ({"l_perc": 30, "l_perc_layer": 38}, ["--l_perc_layer 38"]),
        ({"start_step": 10}, ["--start_step 10", "10 timesteps"]),
        ({"timestep_respacing": "5,6", "start_step": 11}, ["--start_step 11", "11 timesteps"]),
        ({"data_dir": "nowhere"}, ["nowhere"]),
        ({"model_path": "nowhere.pt"}, ["nowhere.pt"]),
        ({"classifier_path": "nowhere.pth"}, ["nowhere.pth"]),
    ],
)
def test_what_cannot_be_used_is_named(world, out, flags, said):
    line = refused(world, out, **flags)
    assert all(words in line for words in said), line


def images_folder(data: Path) -> Path:
    return data / "img_align_celeba"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: (data / ATTRIBUTES).write_text(""), [f"data/{ATTRIBUTES}"]),
        (lambda data: (images_folder(data) / "000033.jpg").unlink(), ["000033.jpg"]),
        (lambda data: (images_folder(data) / "000033.jpg").write_bytes(b""), ["000033.jpg"]),
        (lambda data: shutil.rmtree(images_folder(data)), ["data/img_align_celeba"]),
        (lambda data: [p.unlink() for p in images_folder(data).iterdir()], ["data/img_align_celeba", "000031.jpg"]),
    ],
    ids=["annotations", "missing image", "empty image", "no folder", "empty folder"],
)
def test_damaged_data(world, out, data, damage, said):
    damage(data)
    line = refused(world, out, data_dir=data)
    assert all(words in line for words in said), line


def test_no_image_is_left_by_the_filter(world, out, data):
    (data / ATTRIBUTES).write_text((data / ATTRIBUTES).read_text().replace("-1", "1"))
    line = refused(world, out, data_dir=data, target_label=1)
    assert "no image" in line and "--target_label" in line


def test_networks_and_a_gpu_that_do_not_fit(world, out, tmp_path, monkeypatch):
    assert world.classifier.name in refused(world, out, model_path=world.classifier)
    assert world.unet().name in refused(world, out, classifier_path=world.unet())
    parts = torch.load(world.classifier, weights_only=True)
    parts["classifier"] = {name: value[:10] for name, value in parts["classifier"].items()}
    torch.save(parts, tmp_path / "ten.pth")
    line = refused(world, out, query_label=10, classifier_path=tmp_path / "ten.pth")
    assert "--query_label 10" in line and "10 outputs" in line and "ten.pth" in line
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "--gpu 2: this machine has 2 GPU" in refused(world, out, gpu=2)


def test_originals_of_other_images_and_of_another_size(world, out, data):
    """The same ids with other photos behind them, as after another filter in the published code."""
    world.explain(out, num_batches=1)
    for name in (ATTRIBUTES, PARTITIONS):
        path = data / name
        path.write_text("".join(row for row in path.read_text().splitlines(True) if not row.startswith("000031")))
    for flags in ({"data_dir": data}, {"image_size": 64, "attention_resolutions": 16}):
        line = refused(world, out, exp_name="other", **flags)
        assert str(out / "Original") in line and "--output_path" in line


def test_what_lies_in_the_way(world, out):
    path = out / "Original/Correct/0000002.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert str(path) in refused(world, out)
    (out.parent / "file").write_text("mine")
    assert str(out.parent / "file") in refused(world, out.parent / "file")
    assert (out.parent / "file").read_text() == "mine"
