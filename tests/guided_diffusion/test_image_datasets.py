"""Batches from a folder of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.image_datasets import ImageDataset, center_crop_arr, load_data, random_crop_arr


@pytest.fixture
def folder(tmp_path):
    """Ten images, each of one grey level; two folders, four kinds of files, two classes, and a text."""
    (tmp_path / "b").mkdir()
    names = ["b/cat_0.png", "b/dog_1.PNG", "cat_2.jpeg", "dog_3.gif", *(f"z/{i}/cat_{i}.png" for i in range(4, 10))]
    for level, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (level * 20,) * 3).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def level(images: torch.Tensor) -> list[int]:
    """Which of the images these are."""
    return ((images[:, 0, 0, 0] + 1) * 127.5 / 20).round().int().tolist()


def load(folder, batch_size: int = 4, **more):
    return load_data(data_dir=str(folder), batch_size=batch_size, image_size=8, deterministic=True, **more)


def test_batches_in_order(folder, monkeypatch):
    data = load(folder)
    images, cond = next(data)
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.float32 and cond == {}
    assert [level(images), *(level(next(data)[0]) for _ in range(2))] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    labels = next(load(folder, class_cond=True))[1]["y"]  # names up to the underscore
    assert labels.tolist() == [0, 1, 0, 1] and labels.dtype == torch.int64
    monkeypatch.setattr("guided_diffusion.dist_util.rank", lambda: 1)
    monkeypatch.setattr("guided_diffusion.dist_util.world_size", lambda: 3)
    assert level(next(load(folder, 3))[0]) == [1, 4, 7]  # ranks share the files


def test_a_pass_shows_every_image_once_in_another_order(folder):
    data = load_data(data_dir=str(folder), batch_size=5, image_size=8)
    passes = [level(torch.cat([next(data)[0], next(data)[0]])) for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(10))
    assert passes[0] != passes[1]


def test_crops_halve_with_box_then_bicubic_then_take_the_centre_or_any_square():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    halved = image.resize((35, 20), Image.Resampling.BOX)
    expected = np.array(halved.resize((round(35 * 16 / 20), 16), Image.Resampling.BICUBIC))[:, 6:22]
    assert (center_crop_arr(image, 16) == expected).all()
    torch.manual_seed(0)
    crops = [random_crop_arr(image, 16) for _ in range(20)]
    assert {crop.shape for crop in crops} == {(16, 16, 3)}
    assert len({crop.tobytes() for crop in crops}) > 5


def test_flips_happen_half_of_the_time(tmp_path):
    ramp = np.tile(np.arange(0, 160, 20, dtype=np.uint8)[None, :, None], (8, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    dataset = ImageDataset(resolution=8, image_paths=[str(tmp_path / "ramp.png")])
    torch.manual_seed(0)
    rising = [bool(image[0, 0, 0] < image[0, 0, -1]) for image, _ in (dataset[0] for _ in range(100))]
    assert 30 < sum(rising) < 70
    still = ImageDataset(8, [str(tmp_path / "ramp.png")], random_flip=False)
    assert all(still[0][0][0, 0, 0] == -1 for _ in range(10))


def test_bad_input(folder, tmp_path):
    """Kinds of images: tests/core/test_datasets.py."""
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "white.png")
    with pytest.raises(ValueError, match=r"white\.png: .*16-bit or float"):
        ImageDataset(4, [str(tmp_path / "white.png")])[0]
    for place, batch_size, said in (
        ("", 4, "no folder of images"),
        (tmp_path / "nowhere", 4, "no jpg, jpeg, png or gif"),
        (folder, 12, "batch_size 12: the data set has only 11 image"),
    ):
        with pytest.raises(ValueError, match=said):
            load(place, batch_size)
