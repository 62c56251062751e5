"""CelebA: annotations (csv or txt), partitions, the mini-validation set, filters and chunks.

An image's *id* is its position in the unfiltered set, so that every experiment gives the same image the same name.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import blobfile as bf
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from dime.core.errors import InputError

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

MINI_VAL_SEED = 5
MINI_VAL_SIZE = 1000


@dataclass(frozen=True)
class Sample:
    """One image of the set: its id, the image (3, H, W) in [-1, 1], and its 40 labels (40,), float32 0 or 1."""

    id: int
    image: torch.Tensor
    labels: torch.Tensor


class CelebA(Dataset):
    """A partition of a CelebA folder, as `Sample`s in the order of its rows.

    Args:
        data_dir: folder (local or gs://, az://) with `img_align_celeba/` and the two annotation files.
        partition: train, val or test.
        image_size: H = W of the images.
        transform: PIL RGB image -> tensor (3, H, W); `image_transform(image_size)` when not given.

    Raises InputError for a missing or damaged annotation file or image.
    """

    def __init__(
        self,
        data_dir: str,
        partition: str,
        image_size: int,
        transform: Callable[[Image.Image], torch.Tensor] | None = None,
    ) -> None:
        self.data_dir = str(data_dir) or "."
        self.table = read_annotations(self.data_dir, partition)
        self.transform = transform or image_transform(image_size)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        row = self.table.iloc[index]
        labels = torch.from_numpy(row[list(ATTRIBUTES)].to_numpy(np.float32))
        return Sample(index, self.transform(self.read(index)), labels)

    def read(self, index: int) -> Image.Image:
        """The image as it lies in the folder, RGB."""
        return read_image(self.path(index))

    def path(self, index: int) -> str:
        """Where image `index` lies."""
        return bf.join(self.data_dir, IMAGE_FOLDER, self.table["image_id"].iat[index])

    def labels(self, attribute: int) -> np.ndarray:
        """All labels (n,) of one attribute, 0 or 1."""
        return self.table[ATTRIBUTES[attribute]].to_numpy()

    def require_images(self, indices: Sequence[int]) -> None:
        """Raise InputError unless the folder holds every one of these images, and none is an empty file."""
        folder = bf.join(self.data_dir, IMAGE_FOLDER)
        if not bf.isdir(folder):
            raise InputError(f"{folder}: no such folder; --data_dir must hold CelebA's {IMAGE_FOLDER}/")
        try:
            sizes = {entry.name: entry.stat.size for entry in bf.scandir(folder) if entry.is_file}
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed ({error})") from None
        names = self.table["image_id"].iloc[list(indices)]
        missing = [name for name in names if name not in sizes]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of the annotated images are not there, the first is {missing[0]}; "
                "complete the folder or correct the annotation files"
            )
        empty = [name for name in names if sizes[name] == 0]
        if empty:
            raise InputError(f"{folder}: {len(empty)} of the images are empty files, the first is {empty[0]}")


class CelebAMiniVal(CelebA):
    """The papers' mini-validation set: 1000 draws, with repetition, from the val partition, in file order."""

    def __init__(self, data_dir: str, image_size: int) -> None:
        super().__init__(data_dir, "val", image_size)
        rows = random.Random(MINI_VAL_SEED).choices(range(len(self.table)), k=MINI_VAL_SIZE)
        self.table = self.table.iloc[sorted(rows)].reset_index(drop=True)


DATASETS = ("CelebA", "CelebAMV")


def open_dataset(name: str, data_dir: str, image_size: int, use_train: bool = False) -> CelebA:
    """The data set that `--dataset` names; the mini-validation set ignores use_train. Raises InputError."""
    if name == "CelebA":
        return CelebA(data_dir, "train" if use_train else "val", image_size)
    if name == "CelebAMV":
        return CelebAMiniVal(data_dir, image_size)
    raise InputError(f"--dataset {name}: unknown; choose one of {', '.join(DATASETS)}")


def select_ids(dataset: CelebA, query_label: int, target_label: int, limit: int) -> list[int]:
    """The ids that a run explains, all its chunks together: filter by label, then cut to `limit`.

    target_label 0 or 1 keeps the images that do not carry it yet (label = 1 - target_label); -1 keeps all.
    """
    ids = range(len(dataset))
    if target_label != -1:
        ids = np.flatnonzero(dataset.labels(query_label) == 1 - target_label).tolist()
    return list(ids[:limit])


def chunk_of(ids: list[int], num_chunks: int, chunk: int) -> list[int]:
    """The part of a run's ids that one of its chunks explains: every num_chunks-th, from number `chunk` on."""
    return ids[chunk::num_chunks]


def image_transform(image_size: int, *, random_flip: bool = False, random_crop: bool = False) -> transforms.Compose:
    """PIL RGB image -> tensor (3, image_size, image_size) in [-1, 1].

    The shorter side is resized to image_size with Pillow's bilinear filter and the centre is cut out. Training
    flips horizontally with p = 1/2 in between, and may crop at random (95 to 100 % of the area) afterwards.
    """
    steps: list = [transforms.Resize(image_size)]
    if random_flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps.append(transforms.CenterCrop(image_size))
    if random_crop:
        steps.append(transforms.RandomResizedCrop(image_size, (0.95, 1)))
    half = (0.5, 0.5, 0.5)
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(half, half)])


def read_image(path: str) -> Image.Image:
    """An image file as RGB. Raises InputError naming a file that is missing or damaged."""
    try:
        with bf.BlobFile(path, "rb") as file:
            return Image.open(io.BytesIO(file.read())).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from None


def read_annotations(data_dir: str, partition: str) -> pd.DataFrame:
    """The rows of one partition: `image_id` and the 40 attributes as 0/1, in the partition file's order.

    Reads `list_attr_celeba` and `list_eval_partition`, .csv or the official site's .txt. Raises InputError for a
    file that is missing, lacks columns, holds other values, or disagrees with the other one.
    """
    if partition not in PARTITIONS:
        raise InputError(f"partition {partition!r}: unknown; choose one of {', '.join(PARTITIONS)}")
    if not bf.isdir(data_dir):
        raise InputError(f"{data_dir}: no such folder; --data_dir must be a folder in CelebA's layout")
    members = _read_partition(data_dir)
    members = members[members["partition"] == PARTITIONS[partition]]
    if members.empty:
        raise InputError(f"{data_dir}: the {partition} partition ({PARTITIONS[partition]}) has no image")
    attributes = _read_attributes(data_dir).set_index("image_id")
    lacking = members.loc[~members["image_id"].isin(attributes.index), "image_id"]
    if len(lacking):
        raise InputError(f"{data_dir}: {lacking.iat[0]} is in list_eval_partition but not in list_attr_celeba")
    return attributes.loc[members["image_id"]].reset_index()


def _read_attributes(data_dir: str) -> pd.DataFrame:
    path, is_csv = _annotation_file(data_dir, "list_attr_celeba")
    # the .txt starts with a count, and its header names no column for the image: pandas then takes it as the index
    table = _read_table(path) if is_csv else _read_table(path, sep=r"\s+", skiprows=1, index_col=0).reset_index()
    if not is_csv:
        table = table.rename(columns={table.columns[0]: "image_id"})
    _require_columns(path, table, ("image_id", *ATTRIBUTES))
    values = table[list(ATTRIBUTES)]
    valid = values.isin([-1, 1]).to_numpy()
    if not valid.all():
        row, column = np.argwhere(~valid)[0]
        image, found = table["image_id"].iat[row], values.iat[row, column]
        raise InputError(f"{path}: {image} has {ATTRIBUTES[column]} = {found}, expected -1 or 1")
    if table["image_id"].duplicated().any():
        raise InputError(f"{path}: {table['image_id'][table['image_id'].duplicated()].iat[0]} is listed twice")
    return pd.concat([table["image_id"].map(_plain_name(path)), (values == 1).astype(np.int64)], axis=1)


def _read_partition(data_dir: str) -> pd.DataFrame:
    path, is_csv = _annotation_file(data_dir, "list_eval_partition")
    if is_csv:
        table = _read_table(path)
        _require_columns(path, table, ("image_id", "partition"))
    else:
        # some copies start with a count and a line of names, the official one with the first image
        table = _read_table(path, sep=r"\s+", header=None, names=["image_id", "partition"], dtype=str)
        heading = [not str(value).isdecimal() for value in table["partition"].iloc[:2]]
        table = table.drop(index=table.index[:2][heading])
    if table.empty:
        raise InputError(f"{path}: lists no image")
    partitions = pd.to_numeric(table["partition"], errors="coerce")
    if not partitions.isin(PARTITIONS.values()).all():
        wrong = table.loc[~partitions.isin(PARTITIONS.values())].iloc[0]
        raise InputError(f"{path}: {wrong['image_id']} has partition {wrong['partition']}, expected 0, 1 or 2")
    return table.assign(partition=partitions.astype(int))[["image_id", "partition"]]


def _annotation_file(data_dir: str, stem: str) -> tuple[str, bool]:
    for suffix in (".csv", ".txt"):
        path = bf.join(data_dir, stem + suffix)
        if bf.exists(path):
            return path, suffix == ".csv"
    raise InputError(f"{data_dir}: neither {stem}.csv nor {stem}.txt is there; --data_dir must hold CelebA's files")


def _read_table(path: str, **options) -> pd.DataFrame:
    try:
        with bf.BlobFile(path, "rb") as file:
            return pd.read_csv(io.BytesIO(file.read()), **options)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: not a readable table ({str(error).strip()})") from None


def _require_columns(path: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(f"{path}: no column {missing[0]} ({len(missing)} of {len(columns)} columns are missing)")


def _plain_name(path: str) -> Callable[[object], str]:
    def check(name: object) -> str:
        if not isinstance(name, str) or PurePath(name).name != name:
            raise InputError(f"{path}: {name!r} is not the name of an image file")
        return name

    return check
