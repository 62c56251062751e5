"""Images of anybody: folders, single files, ImageNet's, BDD's and MNIST's layouts, labels, names of any kind."""

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.datasets import download, open_dataset
from dime.core.errors import InputError
from dime.core.folders import Source, read_lines
from dime.core.photos import BadImageError
from tests.helpers import input_error


def put(folder: Path, *names: str) -> str:
    """Images, each of one grey level: 0, 10, 20, …"""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (number * 10,) * 3).save(path, "PNG")
    return str(folder)


def opened(folder: str | Path, name: str = "folder", **options) -> Source:
    return open_dataset(name, str(folder), 4, **options)


def names_of(source: Source) -> list[str]:
    return [source.relative_name(id) for id in range(len(source))]


def refusal(folder: str | Path, name: str = "folder", **options) -> str:
    return input_error(opened, folder, name, **options)


def test_ids_are_positions_in_a_fixed_order_of_what_is_an_image(tmp_path):
    hidden = ("__MACOSX/b/._2.png", "b/._2.png", "b/.ipynb_checkpoints/2-checkpoint.png", ".git/x.png")
    folder = tmp_path / ".cache/images"  # whoever names a hidden folder means it
    put(folder, "b/2.png", "b/deep/er/1.JPG", "a/z.webp", "a/10.png", "a/2.png", *hidden)
    (folder / "b/notes.txt").touch()
    source = opened(f"{folder}/")
    assert names_of(source) == ["a/10.png", "a/2.png", "a/z.webp", "b/2.png", "b/deep/er/1.JPG"]
    assert source.load(3).shape == (3, 4, 4) and torch.all(source.load(3) == -1)  # the first, black
    assert source.image_path(3) == str(folder / "b/2.png")


def test_classes_are_first_level_folders(tmp_path):
    source = opened(put(tmp_path, "dog/x/1.png", "cat/1.png", "dog/1.png"))
    assert source.exclusive and source.names == ["cat", "dog"]
    assert source.targets(None).tolist() == [0, 1, 1]
    assert source.targets(0).tolist() == [1, 0, 0]
    with pytest.raises(InputError, match=r"--query_label 31.*0 cat, 1 dog"):
        source.targets(31)
    assert source.conditions(1).dtype == torch.int64 and int(source.conditions(1)) == 1
    other = opened(tmp_path, class_names=["dog", "cat"])  # rows tell other images and labels apart
    assert len({source.rows([0, 1]), source.rows([1, 0]), source.rows([0, 2]), other.rows([0, 1])}) == 4
    assert source.rows([0, 1]) == opened(tmp_path).rows([0, 1])
    for names in (("1.png", "2.png"), ("all/1.png", "all/deep/2.png")):  # one that says nothing is not labelled
        bare = opened(put(tmp_path / f"bare{len(names[0])}", *names))
        assert bare.targets(None) is None and bare.targets(31) is None and bare.conditions(0) is None


def test_class_names_give_the_order(tmp_path):
    put(tmp_path, "dog/1.png", "cat/1.png")
    source = opened(tmp_path, class_names=["bird", "dog", "cat"])
    assert source.names == ["bird", "dog", "cat"] and source.targets(None).tolist() == [2, 1]
    line = refusal(tmp_path, class_names=["bird", "dogs", "fish"])
    assert "cat is none of the 3 classes" in line or "dog is none of the 3 classes (is dogs meant?)" in line
    digits = opened(put(tmp_path / "digits", "3/1.png", "0/1.png"), class_names=["zero", "one", "two", "three"])
    assert digits.targets(None).tolist() == [0, 3]
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\n\r\nbig dog\r\n".encode())
    assert read_lines(str(tmp_path / "names.txt")) == ["cat", "big dog"]
    for content in (b"\n", b"\xff\xfe\x00"):
        (tmp_path / "names.txt").write_bytes(content)
        with pytest.raises(InputError, match=r"names\.txt"):
            read_lines(str(tmp_path / "names.txt"))


ODD = ["a b.png", "ä,ö;ü 😀.png", 'quote".png', "new\nline.png", "#?%20.png", "-x.png", "a/b=c/'.png"]


def test_odd_names(tmp_path):
    source = opened(put(tmp_path, *ODD))
    assert sorted(names_of(source)) == sorted(ODD)
    source.require_images(range(len(ODD)))
    levels = {source.relative_name(id): source.load(id)[0, 0, 0] for id in range(len(ODD))}
    for number, name in enumerate(ODD):
        assert abs((float(levels[name]) + 1) * 127.5 - number * 10) < 1e-3
    assert "new" in source.rows(range(len(ODD)))
    Path(put(tmp_path, "x.png"), "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))  # is no Unicode
    source = opened(tmp_path)
    source.require_images(range(len(source)))
    assert len(source) == len(ODD) + 1 and all(source.load(id).shape == (3, 4, 4) for id in range(len(source)))
    assert "".join([*names_of(source), source.rows(range(len(source)))]).encode()


def test_a_broken_link_keeps_its_id_and_ends_nothing_until_its_turn(tmp_path):
    put(tmp_path, "1.png", "3.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "nowhere.png")
    source = opened(tmp_path)
    source.require_images([0, 2])
    source.require_images([0, 1], all_of_them=False)
    with pytest.raises(InputError, match=r"1 of the 2 images.*2\.png"):
        source.require_images([0, 1])
    with pytest.raises(BadImageError, match=r"2\.png: no such image"):
        source.load(1)
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty files, the first is 3\.png"):
        source.require_images([2])


def test_a_folder_without_images(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "readme.txt").touch()
    line = refusal(tmp_path)
    assert str(tmp_path) in line and "no image" in line and "readme.txt" in line
    put(tmp_path, "cat/1.png", "dog/1.png", "stray.png")
    assert "stray.png" in refusal(tmp_path)  # beside the folders of classes
    assert "n01440764" in refusal(tmp_path, "imagenet")


@pytest.mark.parametrize("table", ["file,label\n{0},x\n{1},y\n", "label; file\ny; {1}\nx; {0}\n", "{0},x\n{1},y\n"])
def test_labels_from_a_table(tmp_path, table):
    put(tmp_path, "in/a b.png", "c.png")
    (tmp_path / "labels.csv").write_text(table.format("in/a b.png", "c.png"))
    source = opened(tmp_path)
    assert source.names == ["x", "y"] and names_of(source) == ["c.png", "in/a b.png"]
    assert source.targets(None).tolist() == [1, 0]
    (tmp_path / "labels.csv").write_text("file,label\nc.png,NA\nin/a b.png,None\n")
    assert opened(tmp_path).names == ["NA", "None"]  # are names as others are
    assert "NA is none of the 2 classes (is NB meant?)" in refusal(tmp_path, class_names=["NB", "dog"])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("file,label\na.png,x\nb.png,y\na.png,z\n", r"a\.png has two classes, x and z"),
        ("file,label\na.png,x\nb.png,y\nc.png,z\n", r"not there: 1, the first is c\.png"),
        ("file,label\na.png,x\n", r"no label .*1, the first is b\.png"),
        ("file,label\na.png,x\nb.png,\n", r"no label .*1, the first is b\.png"),
        ("file,class\na.png,x\nb.png,y\n", r"no column label.*file, class"),
        ("", r"lists no image"),
        ("file,label\na.png,x\nb.png,y,z\n", r"not a readable table"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, table, said):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=r"labels\.csv: .*" + said):
        opened(tmp_path)


def test_single_files(tmp_path):
    put(tmp_path, "x.png", "y.png")
    files = [str(tmp_path / "y.png"), str(tmp_path / "x.png"), str(tmp_path / "no.png")]
    source = opened("", images=files)
    assert names_of(source) == files and source.targets(None) is None
    assert abs((float(source.load(0).max()) + 1) * 127.5 - 10) < 1e-3
    source.require_images([0, 1])
    with pytest.raises(InputError, match=r"1 of the 1 images.*no\.png"):
        source.require_images([2])


WNIDS = ("n01440764/a.JPEG", "n01443537/b.JPEG")


@pytest.mark.parametrize("place", ["", "val/"])
def test_imagenet(tmp_path, place):
    put(tmp_path, *(place + name for name in WNIDS))
    assert opened(tmp_path, "imagenet").names == ["n01440764", "n01443537"]
    assert opened(tmp_path, "imagenet", class_names=["tench", "goldfish"]).targets(None).tolist() == [0, 1]
    assert "LOC_synset_mapping.txt" in refusal(tmp_path, "imagenet", class_names=["tench"] * 1000)
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440700 shark\nn01440764 tench, Tinca\nn01443537 goldfish\n")
    source = opened(tmp_path, "imagenet")
    assert source.names == ["shark", "tench, Tinca", "goldfish"] and source.targets(None).tolist() == [1, 2]
    assert names_of(source) == [place + name for name in WNIDS]
    source.require_images([0, 1])


def test_bdd_oia(tmp_path):
    put(tmp_path / "data", "b.jpg", "a.jpg", "c.jpg")
    images = [{"file_name": f"{name}.jpg", "id": id} for name, id in (("b", 0), ("a", 1), ("c", 2))]
    categories = ([1, 0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0, 1])  # c is confused
    path = tmp_path / "val_25k_images_actions.json"
    path.write_text(json.dumps({"images": images, "annotations": [{"category": c} for c in categories]}))
    source = opened(tmp_path, "bdd")
    assert names_of(source) == ["a.jpg", "b.jpg"] and source.names == ["forward", "stop", "left", "right"]
    assert source.targets(1).tolist() == [1, 0] and source.conditions(1).tolist() == [1, 0, 0, 0]
    source.require_images([0, 1])
    outside = {"images": [{"file_name": "../x.jpg", "id": 0}], "annotations": [{"category": [1, 0, 0, 0]}]}
    for content in ("{", "[]", json.dumps(outside)):
        path.write_text(content)
        assert path.name in refusal(tmp_path, "bdd")


def test_bdd100k(tmp_path):
    assert "it holds nothing" in refusal(tmp_path, "bdd")
    source = opened(put(tmp_path, "images/100k/val/x.jpg", "images/100k/train/y.jpg"), "bdd")
    assert names_of(source) == ["images/100k/val/x.jpg"] and source.targets(0) is None
    assert names_of(opened(tmp_path, "bdd", use_train=True)) == ["images/100k/train/y.jpg"]


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


def digits(folder: Path, **options) -> Source:
    return open_dataset("mnist", str(folder), 32, **options)


@pytest.mark.parametrize("place", ["", "MNIST/raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_images_and_labels_wherever_they_lie(tmp_path, place, ending):
    images = write_digits(tmp_path / place, ending=ending)
    write_digits(tmp_path / place, "train", ending, [0, 0, 0, 0])
    source = digits(tmp_path, channels=1)
    assert source.exclusive and source.names == list("0123456789")
    assert source.targets(None).tolist() == LABELS and int(source.conditions(2)) == 9
    image = source.load(1)
    assert image.shape == (1, 32, 32)
    torch.testing.assert_close(image[0, 2:-2, 2:-2], torch.from_numpy(images[1] / 127.5 - 1).float())
    assert torch.all(image[0, :2] == -1)  # the padding is black, as the digits' ground is
    assert source.relative_name(1) == "t10k-00001.png"
    assert digits(tmp_path, use_train=True).targets(None).tolist() == [0] * 4
    assert torch.equal(digits(tmp_path).load(1), image.expand(3, 32, 32))
    source.require_images(range(4))


def test_emnist_is_turned_and_its_letters_are_named(tmp_path):
    images = write_digits(tmp_path, "emnist-letters-test", ".gz", [1, 26, 2, 1])
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n26 90 122\n")
    source = digits(tmp_path, channels=1)
    assert source.names == ["A", "B", "Z"] and source.targets(None).tolist() == [0, 2, 1, 0]
    torch.testing.assert_close(source.load(1)[0, 2:-2, 2:-2], torch.from_numpy(images[1].T / 127.5 - 1).float())


def test_class_names_are_the_users(tmp_path):
    write_digits(tmp_path)
    names = ["shirt", "trousers", "pullover", "dress", "coat", "sandal", "blouse", "sneaker", "bag", "boot"]
    assert digits(tmp_path, class_names=names).names == names
    with pytest.raises(InputError, match="2 names for the 10 classes"):
        digits(tmp_path, class_names=names[:2])


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
        digits(tmp_path)


def test_only_what_can_be_had_is_downloaded(tmp_path):
    with pytest.raises(InputError, match="not for --dataset folder; it fetches mnist"):
        download("folder", str(tmp_path))
