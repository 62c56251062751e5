"""CelebA in all its layouts: annotations, partitions, the mini-val set, filters, chunks; images and the transform."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.datasets import ATTRIBUTES, image_transform, open_dataset, read_annotations, read_image
from dime.core.errors import InputError
from dime.core.photos import BadImageError
from tests.faults.hostile import BAD, UNSCALED, UNUSUAL

ROWS = {"a.jpg": 1, "b.jpg": 0, "c.jpg": 1, "d.jpg": 2, "e.jpg": 1}
"""Image -> partition, in file order; val are a, c and e."""


def value(name: str, attribute: int) -> int:
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


def photo(path: Path, size: tuple[int, int] = (178, 218), shade: int = 0) -> Image.Image:
    pixels = np.random.default_rng(shade).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return Image.fromarray(pixels)


def test_columns_are_found_by_name_and_rows_by_partition(tmp_path):
    assert len(set(ATTRIBUTES)) == 40
    assert [ATTRIBUTES[i] for i in (0, 20, 31, 39)] == ["5_o_Clock_Shadow", "Male", "Smiling", "Young"]
    write_csv(tmp_path, attribute_order=ATTRIBUTES[::-1])
    for part, names in (("val", ["a.jpg", "c.jpg", "e.jpg"]), ("train", ["b.jpg"]), ("test", ["d.jpg"])):
        table = read_annotations(str(tmp_path), part)
        assert table["image_id"].tolist() == names
        expected = [[int(value(name, i) == 1) for i in range(40)] for name in names]
        assert table[list(ATTRIBUTES)].to_numpy().tolist() == expected
    with pytest.raises(InputError, match="validation"):
        read_annotations(str(tmp_path), "validation")


@pytest.mark.parametrize(
    ("file", "edit", "said"),
    [
        *((file, lambda _, content=content: content, file) for file in ("list_attr_celeba", "list_eval_partition")
          for content in ("", "\n", "\0\1", "60\n", "60\na b c\na.jpg 1 2 3\n", "image_id\n", "image_id,x\na.jpg,1\n")),
        ("list_attr_celeba", lambda text: text[:-20], r"list_attr_celeba\.csv.*a\.jpg"),
        ("list_attr_celeba", lambda text: text.replace("a.jpg,", "a.jpg,2"), r"a\.jpg has 5_o_Clock_Shadow"),
        ("list_attr_celeba", lambda text: text + text.splitlines()[-1] + "\n", r"list_attr_celeba.csv: a.jpg"),
        ("list_attr_celeba", lambda text: re.sub("c.jpg.*\n", "", text), r"c\.jpg is in list_eval_partition but not"),
        ("list_attr_celeba", lambda text: text.replace("a.jpg", "../a.jpg"), r"'\.\./a\.jpg' is not the name"),
        ("list_eval_partition", lambda text: text.replace("a.jpg,1", "a.jpg,7"), r"a\.jpg has partition 7"),
        ("list_eval_partition", lambda text: text.replace(",1\n", ",0\n"), r"the val partition \(1\) has no image"),
    ],
)  # fmt: skip
def test_damaged_annotations(tmp_path, file, edit, said):
    path = write_csv(tmp_path) / f"{file}.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(InputError, match=said):
        read_annotations(str(tmp_path), "val")


def as_txt(folder: Path, heading: str = "", count: str = "5\n", suffix: str = ".txt") -> None:
    for path in folder.glob("*.csv"):
        path.unlink()
    lines = [count + " ".join(ATTRIBUTES)]
    lines += [f"{name} " + "".join(f"{value(name, i):3d}" for i in range(40)) for name in ROWS]
    (folder / f"list_attr_celeba{suffix}").write_text("\n".join(lines) + "\n")
    rows = "".join(f"{name} {part}\n" for name, part in ROWS.items())
    (folder / f"list_eval_partition{suffix}").write_text(heading + rows)


def edited(folder: Path, old: str, new: str) -> None:
    for path in folder.glob("*.csv"):
        path.write_bytes(path.read_text().replace(old, new).encode())


def moved(folder: Path, pattern: str, place: str, suffix: str = "") -> None:
    for path in list(folder.glob(pattern)):
        (folder / place).mkdir(parents=True, exist_ok=True)
        path.rename(folder / place / (path.name if not suffix else f"{path.stem}{suffix}"))


LAYOUTS = {
    "csv": lambda folder: None,
    "official txt": as_txt,
    "txt with a count and names": lambda folder: as_txt(folder, "5\nimage_id partition\n"),
    "txt without a count": lambda folder: as_txt(folder, count=""),
    "txt called csv": lambda folder: as_txt(folder, suffix=".csv"),
    "CRLF and BOM": lambda folder: [edited(folder, "\n", "\r\n"), edited(folder, "image_id", "\ufeffimage_id")],
    "blanks after commas": lambda folder: edited(folder, ",", ", "),
    "semicolons": lambda folder: edited(folder, ",", ";"),
    "ids without ending": lambda folder: edited(folder, ".jpg", ""),
    "Kaggle's double folder": lambda folder: moved(folder, "img*/*", "img_align_celeba/img_align_celeba"),
    "png copies": lambda folder: moved(folder, "img*/*", "img_align_celeba", ".png"),
    "upper-case endings": lambda folder: moved(folder, "img*/*", "img_align_celeba", ".JPG"),
    "the official site's folders": lambda folder: [
        moved(folder, pattern, place) for pattern, place in (("*attr*", "Anno"), ("*eval*", "Eval"), ("img*", "Img"))
    ],
    "torchvision's root": lambda folder: moved(folder, "*_*", "celeba"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_in_the_wild(tmp_path, layout):
    write_csv(tmp_path)
    for shade, name in enumerate(ROWS):
        photo(tmp_path / "img_align_celeba" / name, shade=shade)
    dataset = open_dataset("CelebA", str(tmp_path), 64)
    expected = [dataset.load(id) for id in range(3)]
    LAYOUTS[layout](tmp_path)
    dataset = open_dataset("CelebA", str(tmp_path), 64)
    dataset.require_images(range(3))
    for id, image in enumerate(expected):
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32
        assert dataset.conditions(id).tolist() == [float(value("ace"[id], i) == 1) for i in range(40)]
        assert torch.equal(dataset.load(id), image)
    assert len(dataset) == 3 and dataset.targets(31).tolist() == [int(value(name, 31) == 1) for name in "ace"]


def test_what_was_found_stands_beside_what_was_looked_for(tmp_path):
    (tmp_path / "faces.zip").touch()
    with pytest.raises(InputError, match=r"list_eval_partition\.txt.*it holds faces\.zip"):
        open_dataset("CelebA", str(tmp_path), 64)
    write_csv(tmp_path)
    for suffix in ("jpeg", "png"):
        photo(tmp_path / f"img_align_celeba/a.{suffix}")
    with pytest.raises(InputError, match=r"a\.jpg.*it holds a\.jpeg, a\.png"):  # which of them is meant?
        open_dataset("CelebA", str(tmp_path), 64).require_images([0])
    (tmp_path / "list_attr_celeba.csv").write_text("file,Smiling\na.jpg,1\n")
    with pytest.raises(InputError, match=r"no column image_id.*file, Smiling"):
        open_dataset("CelebA", str(tmp_path), 64)


def test_celeba_hq(tmp_path):
    """All of it, or the partition of CelebA that the papers explain, where the files that lead there are at hand."""
    rows = "".join(f"{i}.jpg  " + " ".join(str(value("abc"[i], a)) for a in range(40)) + "\n" for i in range(3))
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text("3\n" + " ".join(ATTRIBUTES) + "\n" + rows)
    for i in range(3):
        photo(tmp_path / f"CelebA-HQ-img/{i}.jpg", shade=i)
    whole = open_dataset("CelebAHQ", str(tmp_path), 64)
    whole.require_images(range(3))
    assert whole.targets(31).tolist() == [int(value(name, 31) == 1) for name in "abc"]
    assert whole.load(1).shape == (3, 64, 64) and whole.names == list(ATTRIBUTES) and not whole.exclusive
    mapping = "idx   orig_idx   orig_file\n0     2     c.jpg\n1     3     d.jpg\n2     1    b.jpg\n"
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(mapping)
    (tmp_path / "list_eval_partition.txt").write_text("b.jpg 0\nc.jpg 1\nd.jpg 2\n")
    assert open_dataset("CelebAHQ", str(tmp_path), 64).relative_name(0) == "1.jpg"
    assert open_dataset("CelebAHQ", str(tmp_path), 64, use_train=True).relative_name(0) == "2.jpg"


def test_mini_val_of_celeba(tmp_path):
    """Of CelebA's 19867 rows, 34 of the 1000 entries repeat; the draws leave Python's own generator alone."""
    write_csv(tmp_path, {f"{i:06d}.jpg": 1 for i in range(19867)})
    random.seed(77)
    expected_next = random.Random(77).random()
    images = open_dataset("CelebAMV", str(tmp_path), 64, use_train=True).table["image_id"].tolist()
    assert random.random() == expected_next
    random.seed(5)
    assert images == [f"{row:06d}.jpg" for row in sorted(random.choices(range(19867), k=1000))]
    assert len(images) - len(set(images)) == 34


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


def test_augmentation_stretching_and_grey(tmp_path):
    """Half of the images of a training are mirrored, crops are random."""
    image = photo(tmp_path / "x.png", (64, 80))
    plain = image_transform(64)(image)
    torch.manual_seed(0)
    flipped = [image_transform(64, random_flip=True)(image) for _ in range(40)]
    mirrored = [torch.equal(x, plain.flip(2)) for x in flipped]
    assert all(torch.equal(x, plain) or is_mirrored for x, is_mirrored in zip(flipped, mirrored, strict=True))
    assert 8 < sum(mirrored) < 32
    cropped = [image_transform(64, random_crop=True)(image) for _ in range(2)]
    assert cropped[0].shape == (3, 64, 64) and not torch.equal(*cropped)
    write_csv(tmp_path)
    image = photo(tmp_path / "img_align_celeba/a.jpg", (60, 20))
    source = open_dataset("CelebA", str(tmp_path), 16, resize="stretch", channels=1)
    stretched, expected = source.load(0), read_image(source.image_path(0)).convert("L").resize((16, 16), Image.BILINEAR)
    assert stretched.shape == source.stand_in().shape == (1, 16, 16)
    assert np.abs((stretched[0].double().numpy() + 1) * 127.5 - np.asarray(expected)).max() < 1e-4


@pytest.mark.parametrize("kind", BAD | UNSCALED)
def test_a_bad_image_is_named_in_one_line(tmp_path, kind):
    path = tmp_path / "two\nlines.jpg"
    photo(path)
    (BAD | UNSCALED)[kind](path)
    with pytest.raises(BadImageError, match=r"two\\nlines\.jpg: \w") as caught:
        read_image(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_image_is_converted(tmp_path, kind):
    path = tmp_path / "x.png"
    original = photo(path, (40, 20))
    UNUSUAL[kind](path)
    image = read_image(str(path))
    assert image.mode == "RGB"
    assert image.size == ((20, 40) if kind == "EXIF rotation" else (40, 20))
    if kind == "EXIF rotation":  # 6: what was stored on its left side stands on top
        assert image.tobytes() == original.transpose(Image.Transpose.ROTATE_270).tobytes()
    if kind == "transparent":  # half of each pixel and half of white, to a level of rounding
        blended = np.asarray(original) * (128 / 255) + 255 * (127 / 255)
        assert np.abs(np.asarray(image) - blended).max() <= 1
    if kind == "grey":
        assert image.tobytes() == original.convert("L").convert("RGB").tobytes()
