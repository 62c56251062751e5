"""Every data set by its name; CelebA, its mini-validation set and CelebA-HQ, in the layouts in which people keep them.

An image's *id* is its position in the unfiltered set, so that every experiment gives the same image the same name.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePath

import blobfile as bf
import numpy as np
import pandas as pd

from dime.core import digits, folders
from dime.core.errors import InputError
from dime.core.folders import FILE, Source, read_table, require_plain
from dime.core.photos import existing, holdings, image_transform, is_image_name, names_in, read_image

__all__ = ["ATTRIBUTES", "Source", "image_transform", "open_dataset", "read_image"]

ATTRIBUTES = tuple(
    """5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
    Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
    Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
    Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
    Wearing_Necktie Young""".split()  # noqa: SIM905
)
"""CelebA's 40 attributes, in the order of every network's outputs: Smiling is 31, Young is 39."""

PARTITIONS = {"train": 0, "val": 1, "test": 2}
IMAGE_FOLDER = "img_align_celeba"
PLACES = ("", "celeba", "Anno", "Eval", "Img")
"""Where in --data_dir the parts of CelebA may lie: in itself, in torchvision's root, as on the official site."""


def open_dataset(
    name: str,
    data_dir: str,
    image_size: int,
    use_train: bool = False,
    images: Sequence[str] = (),
    resize: str = "crop",
    channels: int = 3,
    class_names: Sequence[str] | None = None,
) -> Source:
    """The data set that `--dataset` names, or the single files `images`, whatever the name.

    Args:
        use_train: the train part instead of val, where the set has parts (CelebA-HQ: instead of test).
        resize: crop (the shorter side is resized, the centre cut out) or stretch (to the square).
        channels: 3, or 1 for grey.
        class_names: the classes in the order of the classifier's outputs, for sets of classes.

    Raises InputError for an unknown name, and for a folder that does not hold what its kind needs.
    """
    if name not in DATASETS:
        raise InputError(f"--dataset {name}: unknown; choose one of {', '.join(DATASETS)}")
    if images:
        source = Source("", folders.table_of(images), [])
    else:
        source = DATASETS[name](str(data_dir) or ".", use_train, class_names)
    source.transform, source.channels = image_transform(image_size, resize=resize), channels
    return source


def download(name: str, data_dir: str) -> None:
    """Fetch the data set that `--dataset` names into data_dir. Raises InputError where that cannot be."""
    if name not in DOWNLOADS:
        raise InputError(f"--download: not for --dataset {name}; it fetches {', '.join(DOWNLOADS)}")
    DOWNLOADS[name](data_dir or ".")


def list_celeba(data_dir: str, partition: str) -> Source:
    """A partition (train, val or test) of CelebA, in the order of its rows, wherever its images lie and whatever their
    names end on. Raises InputError for a missing or damaged annotation file.
    """
    table = read_annotations(data_dir, partition)
    folders = (bf.join(data_dir, place, IMAGE_FOLDER) for place in PLACES)
    folder = next((path for path in folders if bf.isdir(path)), bf.join(data_dir, IMAGE_FOLDER))
    if bf.isdir(bf.join(folder, IMAGE_FOLDER)):  # as Kaggle's archive unpacks
        folder = bf.join(folder, IMAGE_FOLDER)
    return Source(folder, table.assign(image_id=_as_stored(folder, table[FILE])))


def list_celeba_mini_val(data_dir: str) -> Source:
    """The papers' mini-validation set: 1000 draws, with repetition, from the val partition, in file order."""
    whole = list_celeba(data_dir, "val")
    rows = random.Random(5).choices(range(len(whole.table)), k=1000)
    return replace(whole, table=whole.table.iloc[sorted(rows)].reset_index(drop=True))


def list_celeba_hq(data_dir: str, use_train: bool, class_names: Sequence[str] | None = None) -> Source:
    """CelebAMask-HQ: `CelebA-HQ-img/` and `CelebAMask-HQ-attribute-anno.txt`.

    Beside `CelebA-HQ-to-CelebA-mapping.txt` and CelebA's list_eval_partition, the images of CelebA's test partition,
    which the papers explain (use_train: train); without these all images.
    """
    table = _read_attributes(bf.join(existing(data_dir), "CelebAMask-HQ-attribute-anno.txt"))
    mapping = bf.join(data_dir, "CelebA-HQ-to-CelebA-mapping.txt")
    if bf.exists(mapping):
        part = "train" if use_train else "test"
        number_of = _read_partition(_annotation_file(data_dir, "list_eval_partition")).set_index(FILE)["partition"]
        origin_of = read_table(mapping, ("idx", "orig_idx", "orig_file")).set_index("idx")["orig_file"]
        numbers = table[FILE].map(lambda name: origin_of.get(PurePath(name).stem)).map(number_of)
        table = table[numbers == PARTITIONS[part]].reset_index(drop=True)
        if table.empty:
            raise InputError(f"{mapping}: leads to no image of the {part} partition of list_eval_partition")
    return Source(bf.join(data_dir, "CelebA-HQ-img"), table)


PUBLISHED = ("CelebA", "CelebAMV")
"""Those of the published code, whose result trees hold nothing but what it wrote."""

DATASETS: dict[str, Callable[[str, bool, Sequence[str] | None], Source]] = {
    "CelebA": lambda data_dir, use_train, _: list_celeba(data_dir, "train" if use_train else "val"),
    "CelebAMV": lambda data_dir, use_train, _: list_celeba_mini_val(data_dir),
    "CelebAHQ": list_celeba_hq,
    "folder": folders.list_folder,
    "imagenet": folders.list_imagenet,
    "bdd": folders.list_bdd,
    "mnist": digits.list_mnist,
}
"""What --dataset may be -> (folder, use_train, class_names) -> the images. A new kind is one function, entered here."""
DOWNLOADS = {"mnist": digits.download}


def read_annotations(data_dir: str, partition: str) -> pd.DataFrame:
    """The rows of one partition: `image_id` and the 40 attributes as 0/1, in the partition file's order.

    Reads `list_attr_celeba` and `list_eval_partition`, .csv or the official site's .txt. Raises InputError for a
    file that is missing, lacks columns, holds other values, or disagrees with the other one.
    """
    if partition not in PARTITIONS:
        raise InputError(f"partition {partition!r}: unknown; choose one of {', '.join(PARTITIONS)}")
    members = _read_partition(_annotation_file(existing(data_dir), "list_eval_partition"))
    members = members[members["partition"] == PARTITIONS[partition]]
    if members.empty:
        raise InputError(f"{data_dir}: the {partition} partition ({PARTITIONS[partition]}) has no image")
    attributes = _read_attributes(_annotation_file(data_dir, "list_attr_celeba")).set_index(FILE)
    lacking = members.loc[~members[FILE].isin(attributes.index), FILE]
    if len(lacking):
        raise InputError(f"{data_dir}: {lacking.iat[0]} is in list_eval_partition but not in list_attr_celeba")
    return attributes.loc[members[FILE]].reset_index()


def _as_stored(folder: str, names: pd.Series) -> pd.Series:
    """The names under which the images lie: with other endings, if none lies there as annotated."""
    if bf.exists(bf.join(folder, names.iat[0])):
        return names
    stored = [name for name in names_in(folder) if is_image_name(name)]
    by_stem = {PurePath(name).stem: name for name in stored}
    if len(by_stem) < len(stored) or names.isin(stored).any():
        return names
    return names.map(lambda name: by_stem.get(PurePath(name).stem, name))


def _read_attributes(path: str) -> pd.DataFrame:
    table = read_table(path, (FILE, *ATTRIBUTES))
    found = table[list(ATTRIBUTES)]
    values = found.apply(pd.to_numeric, errors="coerce")  # one odd value makes texts of its whole column
    valid = values.isin([-1, 1]).to_numpy()
    if not valid.all():
        row, column = np.argwhere(~valid)[0]
        image, value = table[FILE].iat[row], found.iat[row, column]
        raise InputError(f"{path}: {image} has {ATTRIBUTES[column]} = {value}, expected -1 or 1")
    if table[FILE].duplicated().any():
        raise InputError(f"{path}: {table[FILE][table[FILE].duplicated()].iat[0]} is listed twice")
    names = table[FILE].map(lambda name: require_plain(name, path))
    return pd.concat([names, (values == 1).astype(np.int64)], axis=1)


def _read_partition(path: str) -> pd.DataFrame:
    table = read_table(path, (FILE, "partition"))
    partitions = pd.to_numeric(table["partition"], errors="coerce")
    if not partitions.isin(PARTITIONS.values()).all():
        wrong = table.loc[~partitions.isin(PARTITIONS.values())].iloc[0]
        raise InputError(f"{path}: {wrong[FILE]} has partition {wrong['partition']}, expected 0, 1 or 2")
    return table.assign(partition=partitions.astype(int))[[FILE, "partition"]]


def _annotation_file(data_dir: str, stem: str) -> str:
    """Where an annotation file lies."""
    paths = [bf.join(data_dir, place, stem + suffix) for place in PLACES for suffix in (".csv", ".txt")]
    if found := next(filter(bf.exists, paths), None):
        return found
    raise InputError(
        f"{data_dir}: neither {stem}.csv nor {stem}.txt is there, nor in {', '.join(PLACES[1:])}; it holds "
        f"{holdings(data_dir)}; --data_dir must hold CelebA's files"
    )
