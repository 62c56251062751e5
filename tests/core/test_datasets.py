"""CelebA folders: annotations, partitions, the mini-val set, filters, chunks and the transform."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.datasets import (
    ATTRIBUTES,
    CelebA,
    CelebAMiniVal,
    chunk_of,
    image_transform,
    open_dataset,
    read_annotations,
    read_image,
    select_ids,
)
from dime.core.errors import InputError

ROWS = {"a.jpg": 1, "b.jpg": 0, "c.jpg": 1, "d.jpg": 2, "e.jpg": 1}
"""Image -> partition, in file order; val are a, c and e."""


def value(name: str, attribute: int) -> int:
    """Some -1 or 1 for each image and attribute."""
    return 1 if (ord(name[0]) * 7 + attribute * attribute) % 3 == 0 else -1


def write_csv(folder: Path, rows: dict[str, int] = ROWS, attribute_order: tuple[str, ...] = ATTRIBUTES) -> Path:
    lines = [",".join(["image_id", *attribute_order])]
    lines += [
        ",".join([name, *(str(value(name, ATTRIBUTES.index(key))) for key in attribute_order)])
        for name in reversed(rows)  # the partition file decides the order
    ]
    (folder / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
    partition = ["image_id,partition", *(f"{name},{part}" for name, part in rows.items())]
    (folder / "list_eval_partition.csv").write_text("\n".join(partition) + "\n")
    return folder


def write_txt(folder: Path, heading: str) -> Path:
    lines = [f"{len(ROWS)}", " ".join(ATTRIBUTES)]
    lines += [f"{name} " + "".join(f"{value(name, i):3d}" for i in range(40)) for name in ROWS]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    rows = "".join(f"{name} {part}\n" for name, part in ROWS.items())
    (folder / "list_eval_partition.txt").write_text(heading + rows)
    return folder


def photo(path: Path, size: tuple[int, int] = (178, 218), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return image


# Annotations


def test_there_are_40_attributes_in_celebas_order():
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 40
    assert [ATTRIBUTES[i] for i in (0, 20, 31, 39)] == ["5_o_Clock_Shadow", "Male", "Smiling", "Young"]


def assert_is_val(table) -> None:
    assert table["image_id"].tolist() == ["a.jpg", "c.jpg", "e.jpg"]
    expected = [[int(value(name, i) == 1) for i in range(40)] for name in ("a.jpg", "c.jpg", "e.jpg")]
    assert table[list(ATTRIBUTES)].to_numpy().tolist() == expected


def test_csv_annotations(tmp_path):
    assert_is_val(read_annotations(str(write_csv(tmp_path)), "val"))


def test_columns_are_found_by_name(tmp_path):
    assert_is_val(read_annotations(str(write_csv(tmp_path, attribute_order=ATTRIBUTES[::-1])), "val"))


@pytest.mark.parametrize("heading", ["", "5\n", "5\nimage_id partition\n", "5\npartition\n"])
def test_txt_annotations(tmp_path, heading):
    """The official partition file has no heading; other copies have a count, and names."""
    assert_is_val(read_annotations(str(write_txt(tmp_path, heading)), "val"))


def test_partitions(tmp_path):
    write_csv(tmp_path)
    assert read_annotations(str(tmp_path), "train")["image_id"].tolist() == ["b.jpg"]
    assert read_annotations(str(tmp_path), "test")["image_id"].tolist() == ["d.jpg"]
    with pytest.raises(InputError, match="validation"):
        read_annotations(str(tmp_path), "validation")


def test_image_listed_twice(tmp_path):
    path = write_csv(tmp_path) / "list_attr_celeba.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    with pytest.raises(InputError, match=r"list_attr_celeba.csv: a.jpg"):
        read_annotations(str(tmp_path), "val")


# The data set


def test_sample(tmp_path):
    write_csv(tmp_path)
    photo(tmp_path / "img_align_celeba/c.jpg")
    dataset = CelebA(str(tmp_path), "val", 64)
    sample = dataset[1]
    assert len(dataset) == 3 and sample.id == 1
    assert sample.image.shape == (3, 64, 64) and sample.image.dtype == torch.float32
    assert sample.labels.dtype == torch.float32
    assert sample.labels.tolist() == [float(value("c.jpg", i) == 1) for i in range(40)]
    assert dataset.labels(31).tolist() == [int(value(name, 31) == 1) for name in ("a.jpg", "c.jpg", "e.jpg")]


def test_empty_data_dir_is_the_current_folder(tmp_path, monkeypatch):
    write_csv(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(CelebA("", "val", 64)) == 3


def test_require_images_asks_only_for_the_wanted_ones(tmp_path):
    write_csv(tmp_path)
    photo(tmp_path / "img_align_celeba/c.jpg")
    dataset = CelebA(str(tmp_path), "val", 64)
    dataset.require_images([1])
    with pytest.raises(InputError, match=r"1 of .* a\.jpg"):
        dataset.require_images([0, 1])
    (tmp_path / "img_align_celeba/e.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"e\.jpg"):
        dataset.require_images([1, 2])


def test_mini_val_of_celeba(tmp_path):
    """Of CelebA's 19867 rows, 34 of the 1000 entries repeat; the draws leave Python's own generator alone."""
    names = {f"{i:06d}.jpg": 1 for i in range(19867)}
    header = ",".join(["image_id", *ATTRIBUTES])
    body = "\n".join(name + ",1" * 40 for name in names)
    (tmp_path / "list_attr_celeba.csv").write_text(f"{header}\n{body}\n")
    rows = "\n".join(f"{name},1" for name in names)
    (tmp_path / "list_eval_partition.csv").write_text(f"image_id,partition\n{rows}\n")
    random.seed(77)
    expected_next = random.Random(77).random()
    images = CelebAMiniVal(str(tmp_path), 64).table["image_id"].tolist()
    assert random.random() == expected_next
    random.seed(5)
    assert images == [f"{row:06d}.jpg" for row in sorted(random.choices(range(19867), k=1000))]
    assert len(images) - len(set(images)) == 34


def test_open_dataset(tmp_path):
    write_csv(tmp_path)
    assert len(open_dataset("CelebA", str(tmp_path), 64)) == 3
    assert len(open_dataset("CelebA", str(tmp_path), 64, use_train=True)) == 1
    assert len(open_dataset("CelebAMV", str(tmp_path), 64, use_train=True)) == 1000
    with pytest.raises(InputError, match=r"CelebB.*CelebA, CelebAMV"):
        open_dataset("CelebB", str(tmp_path), 64)


# Which images


def labelled(tmp_path: Path) -> tuple[CelebA, list[int]]:
    write_csv(tmp_path, {f"{chr(97 + i)}.jpg": 1 for i in range(20)})
    dataset = CelebA(str(tmp_path), "val", 64)
    return dataset, dataset.labels(31).tolist()


def test_select_filters_then_cuts_then_deals(tmp_path):
    dataset, labels = labelled(tmp_path)
    ones = [i for i, label in enumerate(labels) if label == 1]
    zeros = [i for i, label in enumerate(labels) if label == 0]
    assert len(ones) > 4 and len(zeros) > 6
    assert select_ids(dataset, 31, -1, 100) == list(range(20))
    assert select_ids(dataset, 31, -1, 7) == list(range(7))
    assert select_ids(dataset, 31, 0, 100) == ones
    assert select_ids(dataset, 31, 1, 100) == zeros
    assert chunk_of(select_ids(dataset, 31, 1, 5), num_chunks=2, chunk=1) == zeros[1:5:2]


@pytest.mark.parametrize("target", [-1, 0, 1])
@pytest.mark.parametrize("num_chunks", [1, 3, 7, 30])
def test_chunks_share_the_images_out(tmp_path, target, num_chunks):
    dataset, _ = labelled(tmp_path)
    whole = select_ids(dataset, 31, target, 13)
    chunks = [chunk_of(whole, num_chunks, chunk) for chunk in range(num_chunks)]
    assert sorted(id for chunk in chunks for id in chunk) == whole
    for chunk, ids in enumerate(chunks):
        assert ids == [id for position, id in enumerate(whole) if position % num_chunks == chunk]


# The transform


@pytest.mark.parametrize(
    ("photo_size", "image_size", "resized"),
    [
        ((178, 218), 128, (128, 156)),
        ((178, 218), 64, (64, 78)),
        ((218, 178), 64, (78, 64)),
        ((64, 64), 64, (64, 64)),
        ((20, 30), 64, (64, 96)),
    ],
)
def test_transform_is_pillows_bilinear_and_a_centre_crop(tmp_path, photo_size, image_size, resized):
    """Every level survives the way to [-1, 1] and back."""
    image = photo(tmp_path / "x.png", photo_size)
    left, top = ((side - image_size) // 2 for side in resized)
    expected = image.resize(resized, Image.BILINEAR).crop((left, top, left + image_size, top + image_size))
    x = image_transform(image_size)(image)
    assert x.min() >= -1 and x.max() <= 1
    levels = ((x.double() + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(levels - np.asarray(expected)).max() < 1e-4


def test_random_flips_mirror_half_of_the_images(tmp_path):
    image = photo(tmp_path / "x.png", (64, 80))
    plain = image_transform(64)(image)
    torch.manual_seed(0)
    flipped = [image_transform(64, random_flip=True)(image) for _ in range(40)]
    mirrored = [torch.equal(x, plain.flip(2)) for x in flipped]
    assert all(torch.equal(x, plain) or is_mirrored for x, is_mirrored in zip(flipped, mirrored, strict=True))
    assert 8 < sum(mirrored) < 32


def test_random_crop_keeps_nearly_all_of_the_image(tmp_path):
    image = photo(tmp_path / "x.png", (64, 80))
    torch.manual_seed(0)
    cropped = [image_transform(64, random_crop=True)(image) for _ in range(5)]
    assert all(x.shape == (3, 64, 64) for x in cropped)
    assert not torch.equal(cropped[0], cropped[1])


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_any_kind_of_image_is_read_as_rgb(tmp_path, mode):
    photo(tmp_path / "x.png", mode=mode)
    assert read_image(str(tmp_path / "x.png")).mode == "RGB"


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(str(path))
    assert str(path) in str(caught.value)
