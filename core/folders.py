"""What a set of images offers, and the sets that need no more than a folder: anybody's, single files, ImageNet, BDD.

An image's *id* is its position in the whole set, so that every experiment gives the same image the same name.
"""

import io
import json
import re
import stat
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import blobfile as bf
import numpy as np
import pandas as pd
import torch
from PIL import Image

from dime.core.errors import InputError, nearest
from dime.core.images import from_image
from dime.core.photos import existing, holdings, images_below, read_image
from guided_diffusion.files import is_remote, open_file

FILE, LABEL = "image_id", "label"
BDD_ACTIONS = ("forward", "stop", "left", "right")


@dataclass(eq=False)
class Source:
    """Images with ids 0, 1, 2, …, and what is known of them.

    folder: where they lie. table: their names in it (column image_id), in order; besides these either nothing, or
    `label`, the number of the one class of each, or a column of 0 and 1 for every attribute. classes: the classes'
    names; None where the columns are attributes. pixels: of all images, uint8 (n, H, W) or (n, H, W, 3), where they lie
    in one file. transform: from a picture to what networks see (C, H, W). channels: 3, or 1 for grey.
    """

    folder: str
    table: pd.DataFrame
    classes: list[str] | None = None
    pixels: np.ndarray | None = None
    transform: Callable[[Image.Image], torch.Tensor] = from_image
    channels: int = 3

    @property
    def exclusive(self) -> bool:
        """Whether `names` are those of classes, of which an image has one."""
        return self.classes is not None

    @property
    def names(self) -> list[str]:
        """Those of the attributes or classes."""
        return list(self.table.columns[1:] if self.classes is None else self.classes)

    def __len__(self) -> int:
        return len(self.table)

    def image_path(self, id: int) -> str:
        """Where the image lies, or would lie, were it a file of its own."""
        return bf.join(self.folder, self.table[FILE].iat[id])

    def relative_name(self, id: int) -> str:
        """What tells the image from the others, for files: its name in the set's folder, as UTF-8 can hold it."""
        return _encodable(self.table[FILE].iat[id])

    def load(self, id: int) -> torch.Tensor:
        """The image (C, H, W) in [-1, 1]. Raises BadImageError, naming the file, if it cannot be read."""
        if self.pixels is not None:
            return self.transform(Image.fromarray(self.pixels[id]).convert("RGB" if self.channels == 3 else "L"))
        return self.transform(read_image(self.image_path(id), self.channels))

    def stand_in(self) -> torch.Tensor:
        """A grey image in a bad one's place: its neighbours then keep the shape of their batch, and so their bytes."""
        return self.transform(Image.new("RGB" if self.channels == 3 else "L", (178, 218), "grey"))

    def targets(self, query: int | None) -> np.ndarray | None:
        """Labels (n,) of all images: 0 or 1, whether they have attribute or class `query`; without one, their classes.

        None where the images are not labelled. Raises InputError for a query that the set does not have.
        """
        if len(self.table.columns) == 1:
            return None
        if query is None and not self.exclusive:
            raise InputError(f"{self.folder}: its {len(self.names)} attributes are no classes; name one: --query_label")
        if query is not None and not 0 <= query < len(self.names):
            known = ", ".join(f"{index} {name}" for index, name in enumerate(self.names))
            raise InputError(f"--query_label {query}: the images of {self.folder} are labelled with {known}")
        if not self.exclusive:
            return self.table[self.names[query]].to_numpy()
        labels = self.table[LABEL].to_numpy()
        return labels if query is None else (labels == query).astype(np.int64)

    def conditions(self, id: int) -> torch.Tensor | None:
        """What a class-conditional model is told: attributes (A,) float32, or the class () int64; None: unlabelled."""
        if len(self.table.columns) == 1:
            return None
        if self.exclusive:
            return torch.tensor(int(self.table[LABEL].iat[id]))
        return torch.from_numpy(self.table.iloc[id, 1:].to_numpy(np.float32))

    def rows(self, ids: Sequence[int]) -> str:
        """Text whose hash identifies these images and their labels."""
        return _encodable(self.table.iloc[list(ids)].to_csv())

    def require_images(self, ids: Sequence[int], all_of_them: bool = True) -> None:
        """Raise InputError unless these images (or any of them) are there, and none is an empty file."""
        if self.pixels is not None:
            return
        if self.folder and not bf.isdir(self.folder):
            raise InputError(f"{self.folder}: no such folder; --data_dir must hold the images there")
        sizes = _file_sizes(self.folder, self.table[FILE].iloc[list(ids)].tolist())
        missing = [name for name, size in sizes.items() if size is None]
        empty = [name for name, size in sizes.items() if size == 0]
        place = self.folder or "--images"
        if missing and (all_of_them or len(missing) == len(sizes)):
            raise InputError(
                f"{place}: {len(missing)} of the {len(sizes)} images are not there, the first is "
                f"{missing[0]}; complete the folder or correct its annotations"
                + (f" (it holds {holdings(self.folder)})" if self.folder else "")
            )
        if empty and all_of_them:
            raise InputError(f"{place}: {len(empty)} of the images are empty files, the first is {empty[0]}")


# The kinds: (folder, use_train, names of the classes or None) -> Source


def list_folder(data_dir: str, use_train: bool = False, class_names: Sequence[str] | None = None) -> Source:
    """Any folder of images, at any depth.

    The classes stand in its labels.csv (columns file and label, in any order), else in the names of its first-level
    folders, two or more; else the images are not labelled. Classes are numbered as class_names has them, otherwise
    in sorted order; a label may be such a number too.
    """
    files = images_below(data_dir)
    annotations = bf.join(data_dir, "labels.csv")
    if bf.exists(annotations):
        return _classified(data_dir, files, _read_labels(annotations, files), class_names)
    tops = [file.split("/")[0] if "/" in file else "" for file in files]
    folders = set(tops) - {""}
    if len(folders) < 2 and not folders & set(class_names or ()):
        return Source(data_dir, table_of(files), list(class_names or ()))
    if "" in tops:
        raise InputError(
            f"{data_dir}: {tops.count('')} images lie beside the folders of classes, the first is "
            f"{files[tops.index('')]}; move them into one, or write a labels.csv with the columns file,label"
        )
    return _classified(data_dir, files, tops, class_names)


def list_imagenet(data_dir: str, use_train: bool = False, class_names: Sequence[str] | None = None) -> Source:
    """ImageNet's folders of classes, n01440764 and so on, in val/ (use_train: train/) or in the folder itself.

    Classes are numbered, and named, as in LOC_synset_mapping.txt where it is there; without it in sorted order.
    class_names gives all of them other names in the same order.
    """
    part = "train" if use_train else "val"
    prefix = f"{part}/" if bf.isdir(bf.join(existing(data_dir), part)) else ""
    folder = bf.join(data_dir, prefix)
    files = [file for file in images_below(folder) if re.match(r"n\d{8}/", file)]
    if not files:
        raise InputError(f"{folder}: no image in a folder such as n01440764; it holds {holdings(folder)}")
    synsets = [file.split("/")[0] for file in files]
    order = sorted(set(synsets))
    names = order
    mapping = bf.join(data_dir, "LOC_synset_mapping.txt")
    if bf.exists(mapping):
        order, _, names = zip(*(line.partition(" ") for line in read_lines(mapping)), strict=True)
    elif class_names and set(order) <= set(class_names):
        order = class_names
    if class_names and len(class_names) != len(order):
        raise InputError(
            f"{data_dir}: {len(order)} classes, but {len(class_names)} names of classes are given; put "
            "ImageNet's LOC_synset_mapping.txt there, which says which of them these are"
        )
    source = _classified(data_dir, [prefix + file for file in files], synsets, order)
    return replace(source, classes=list(class_names or names))


def list_bdd(data_dir: str, use_train: bool = False, class_names: Sequence[str] | None = None) -> Source:
    """BDD-OIA or BDD100k, laid out as for ACE and STEEX; the val part, or train with use_train.

    BDD-OIA: `val_25k_images_actions.json` and the images it names in `data/`, sorted by name, without those labelled
    confused; four attributes: forward, stop, left, right. BDD100k: `images/100k/val/`, not labelled. (ACE stretches
    both to twice as wide as high; here images are square.)
    """
    part = "train" if use_train else "val"
    actions, images = f"{part}_25k_images_actions.json", f"images/100k/{part}"
    if bf.isdir(bf.join(existing(data_dir), images)):
        return Source(data_dir, table_of([f"{images}/{file}" for file in images_below(bf.join(data_dir, images))]), [])
    if not bf.exists(bf.join(data_dir, actions)):
        raise InputError(
            f"{data_dir}: neither {actions} (BDD-OIA) nor {images}/ (BDD100k) is there; it holds {holdings(data_dir)}"
        )
    return Source(bf.join(data_dir, "data"), _read_actions(bf.join(data_dir, actions)))


# What they share


def read_table(path: str, columns: Sequence[str], **options) -> pd.DataFrame:
    """A table in any of the forms in which people keep one; blanks around values do not count.

    Separated by commas, semicolons, tabs or blanks; with or without a count in the first line; a heading that names
    some of `columns`, of which the first may be left out where blanks separate, or no heading: then these are the
    columns. Raises InputError for anything else.
    """
    try:
        text = _text_of(path).lstrip()
        first, _, rest = text.partition("\n")
        text = rest if first.strip().isdecimal() else text
        head = text.partition("\n")[0].strip()
        separator = next((mark for mark in ",;\t" if mark in head), r"\s+")
        fields = [field.strip().strip('"') for field in re.split(separator, head)]
        has_heading = bool(set(fields) & set(columns))
        if not has_heading:
            fields = list(columns)
        elif columns[0] not in fields and separator == r"\s+":
            fields = [columns[0], *fields]
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(text), sep=separator, header=None, names=fields, skiprows=int(has_heading), index_col=False,
                skipinitialspace=True, **{"dtype": {columns[0]: str}, **options},
            )  # fmt: skip
    except (ValueError, OSError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: not a readable table ({str(error).strip()})") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(
            f"{path}: no column {missing[0]} ({len(missing)} of {len(columns)} columns are missing); "
            f"its first ones are {', '.join(fields[:4])}"
        )
    if table.empty:
        raise InputError(f"{path}: lists no image")
    return table


def read_lines(path: str) -> list[str]:
    """The lines of a text file that hold something, such as the names of classes. Raises InputError."""
    try:
        lines = [line.strip() for line in _text_of(path).splitlines() if line.strip()]
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable text ({error})") from None
    if not lines:
        raise InputError(f"{path}: an empty file")
    return lines


def require_plain(name: object, where: str) -> str:
    """The name of an image. Raises InputError when it would lead out of its folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise InputError(f"{where}: {name!r} is not the name of an image file")
    return name


def _read_labels(path: str, files: Sequence[str]) -> list[str]:
    """The label of every image of the folder."""
    table = read_table(path, ("file", LABEL), dtype=str, keep_default_na=False)
    table = table[table[LABEL] != ""].drop_duplicates(["file", LABEL])
    twice = table["file"][table["file"].duplicated()]
    if len(twice):
        both = " and ".join(table[LABEL][table["file"] == twice.iat[0]])
        raise InputError(f"{path}: {twice.iat[0]} has two classes, {both}; leave it one")
    label_of = dict(zip(table["file"], table[LABEL], strict=True))
    for problem, names in (
        ("names images that are not there", set(label_of) - set(files)),
        ("gives no label to images of its folder", set(files) - set(label_of)),
    ):
        if names:
            raise InputError(f"{path}: {problem}: {len(names)}, the first is {min(names)}")
    return [label_of[file] for file in files]


def _read_actions(path: str) -> pd.DataFrame:
    """BDD-OIA's images and actions: an image's `id` is the position of its annotation, of which four values count."""
    try:
        content = json.loads(_text_of(path))
        actions = {image["file_name"]: content["annotations"][image["id"]]["category"] for image in content["images"]}
        names = [require_plain(name, path) for name in sorted(actions) if not any(actions[name][4:])]
        labels = pd.DataFrame([actions[name][:4] for name in names], columns=BDD_ACTIONS, dtype=np.int64)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: not BDD-OIA's list of actions ({error})") from None
    if not names:
        raise InputError(f"{path}: lists no image")
    return pd.concat([table_of(names), labels], axis=1)


def _classified(folder: str, files: list[str], labels: Sequence[str], class_names: Sequence[str] | None) -> Source:
    classes = list(class_names or sorted(set(labels)))
    numbers = {str(number): number for number in range(len(classes))} | {name: i for i, name in enumerate(classes)}
    unknown = next((label for label in labels if label not in numbers), None)
    if unknown is not None:
        raise InputError(f"{folder}: {unknown} is none of the {len(classes)} classes{nearest(unknown, classes)}")
    return Source(folder, table_of(files).assign(label=[numbers[label] for label in labels]), classes)


def _text_of(path: str) -> str:
    with open_file(path, "rb") as file:
        return file.read().decode("utf-8-sig")


def table_of(files: Sequence[str]) -> pd.DataFrame:
    """The table of images that are not labelled."""
    return pd.DataFrame({FILE: pd.Series(files, dtype=object)})  # names of any bytes, which pandas' own type refuses


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _file_sizes(folder: str, names: Sequence[str]) -> dict[str, int | None]:
    """Name -> bytes; None for what is not there, or no file. Only these names are looked at."""
    if is_remote(folder or names[0]):  # one listing for all: a question for each would take hours
        folders = {bf.dirname(bf.join(folder, name)) for name in names}
        found = {bf.join(place, e.name): e.stat.size for place in folders for e in bf.scandir(place) if e.is_file}
        return {name: found.get(bf.join(folder, name)) for name in names}
    sizes: dict[str, int | None] = {}
    for name in names:
        try:
            status = Path(folder, name).stat()
        except OSError:
            status = None
        sizes[name] = status.st_size if status and stat.S_ISREG(status.st_mode) else None
    return sizes
