"""The images of a run, one by one, each either as it must be or with the reason why it cannot be explained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import blobfile as bf
import torch
from PIL import Image

from dime.core.datasets import ATTRIBUTES, CelebA, Sample
from dime.core.errors import InputError
from guided_diffusion.files import is_remote

READABLE_MODES = ("RGB", "L")
"""Whose conversion to RGB changes no value; others would be guessed at (CMYK, 16 bits, palettes, transparency)."""
_ORIENTATION, _UPRIGHT = 0x0112, 1


class BadImageError(InputError):
    """An image that cannot be explained."""


def load_photo(dataset: CelebA, id: int) -> Sample:
    """The image with its labels. Raises BadImageError if it is missing, damaged, or would be read wrongly."""
    path = dataset.path(id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _require_plain(path)
            return dataset[id]
    except InputError as error:
        raise BadImageError(str(error)) from None
    except Exception as error:  # Pillow's readers fail in nearly any way
        raise BadImageError(f"{path}: not a readable image ({error})") from None


def stand_in(dataset: CelebA, id: int) -> Sample:
    """A grey image in the place of a bad one: its neighbours then keep the shape of their batch, and so their bytes."""
    grey = Image.new("RGB", (178, 218), "grey")
    return Sample(id, dataset.transform(grey), torch.zeros(len(ATTRIBUTES)))


def require_some(dataset: CelebA, ids: Sequence[int]) -> None:
    """Raise InputError if the images' folder, or every one of these images, is missing: then the path is wrong."""
    folder = bf.dirname(dataset.path(ids[0]))
    if not bf.isdir(folder):
        raise InputError(f"{folder}: no such folder; --data_dir must hold CelebA's images there")
    if not any(bf.exists(dataset.path(id)) for id in ids):
        raise InputError(
            f"{folder}: none of the {len(ids)} images is there, the first is {bf.basename(dataset.path(ids[0]))}; "
            "see --data_dir"
        )


def _require_plain(path: str) -> None:
    if not bf.exists(path):
        raise InputError(f"{path}: no such image")
    if not is_remote(path) and not Path(path).is_file():
        raise InputError(f"{path}: not a file")
    with bf.BlobFile(path, "rb") as file, Image.open(file) as image:
        if image.mode not in READABLE_MODES:
            raise InputError(f"{path}: its pixels are {image.mode}, expected 8-bit RGB or grey; convert it")
        orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
        if orientation != _UPRIGHT:
            raise InputError(f"{path}: its EXIF tag says that it lies turned ({orientation}); turn its pixels instead")
