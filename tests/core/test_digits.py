"""Data sets in MNIST's format: layouts, gzip, EMNIST's columns, and files that are damaged or do not match."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dime.core.datasets import download, open_dataset
from dime.core.errors import InputError

LABELS = [3, 1, 9, 3]


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_digits(folder: Path, part: str = "t10k", ending: str = "", labels: list[int] = LABELS) -> np.ndarray:
    """Images whose pixel (row, column) of image n is 10 n + row, in the top left corner."""
    images = np.zeros((4, 28, 28))
    images[:, :3, 0] = 10 * np.arange(4)[:, None] + np.arange(3)
    write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images)
    write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", np.array(labels))
    return images


def opened(folder: Path, **options):
    return open_dataset("mnist", str(folder), 32, **options)


@pytest.mark.parametrize("place", ["", "MNIST/raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_images_and_labels_wherever_they_lie(tmp_path, place, ending):
    images = write_digits(tmp_path / place, ending=ending)
    write_digits(tmp_path / place, "train", ending, [0, 0, 0, 0])
    source = opened(tmp_path, channels=1)
    assert source.exclusive and source.names == list("0123456789")
    assert source.targets(None).tolist() == LABELS and int(source.conditions(2)) == 9
    image = source.load(1)
    assert image.shape == (1, 32, 32)
    torch.testing.assert_close(image[0, 2:-2, 2:-2], torch.from_numpy(images[1] / 127.5 - 1).float())
    assert torch.all(image[0, :2] == -1)  # the padding is black, as the digits' ground is
    assert source.relative_name(1) == "t10k-00001.png"
    assert opened(tmp_path, use_train=True).targets(None).tolist() == [0] * 4
    assert torch.equal(opened(tmp_path).load(1), image.expand(3, 32, 32))
    source.require_images(range(4))


def test_emnist_is_turned_and_its_letters_are_named(tmp_path):
    images = write_digits(tmp_path, "emnist-letters-test", ".gz", [1, 26, 2, 1])
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n26 90 122\n")
    source = opened(tmp_path, channels=1)
    assert source.names == ["A", "B", "Z"] and source.targets(None).tolist() == [0, 2, 1, 0]
    torch.testing.assert_close(source.load(1)[0, 2:-2, 2:-2], torch.from_numpy(images[1].T / 127.5 - 1).float())


def test_class_names_are_the_users(tmp_path):
    write_digits(tmp_path)
    names = ["shirt", "trousers", "pullover", "dress", "coat", "sandal", "blouse", "sneaker", "bag", "boot"]
    assert opened(tmp_path, class_names=names).names == names
    with pytest.raises(InputError, match="2 names for the 10 classes"):
        opened(tmp_path, class_names=names[:2])


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _truncate(folder / "t10k-images-idx3-ubyte"), "images-idx3-ubyte: truncated or damaged: 3147"),
        (
            lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0" * 8),
            "labels-idx1-ubyte: begins with 00000803, an idx file of this kind with 00000801",
        ),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\x1f\x8bx"), "labels-idx1-ubyte: cannot be"),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "t10k-labels-idx1-ubyte.gz: cannot be read"),
        (lambda folder: write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(3)), "4 images in .*but 3 labels"),
        (lambda folder: (folder / "t10k-images-idx3-ubyte").unlink(), "no t10k-images-idx3-ubyte or .*--download"),
        (lambda folder: write_digits(folder, "emnist-mnist-test"), "several data sets, emnist-mnist-test and t10k"),
    ],
)
def test_what_is_wrong_with_the_files_is_said(tmp_path, damage, message):
    write_digits(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_only_what_can_be_had_is_downloaded(tmp_path):
    with pytest.raises(InputError, match="not for --dataset folder; it fetches mnist"):
        download("folder", str(tmp_path))
