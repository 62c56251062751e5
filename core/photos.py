"""Image files: how one is opened, for everybody, and what becomes of it before a network sees it."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import blobfile as bf
import numpy as np
import torch
from PIL import Image

from dime.core.errors import InputError
from guided_diffusion.files import is_remote, walk
from guided_diffusion.image_datasets import open_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""How the names of image files end, in either case."""


class BadImageError(InputError):
    """An image that cannot be explained."""


def read_image(path: str, channels: int = 3) -> Image.Image:
    """An image file as 8-bit RGB, or as grey (luma) where channels is 1. Raises BadImageError, which names it."""
    try:
        image = open_image(path)
    except (OSError, ValueError) as error:
        # one line that every terminal and file can take, whatever the file is called
        raise BadImageError("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))) from None
    return image if channels == 3 else image.convert("L")


def image_transform(
    image_size: int, *, random_flip: bool = False, random_crop: bool = False, resize: str = "crop"
) -> Callable[[Image.Image], torch.Tensor]:
    """PIL image of C channels -> tensor (C, image_size, image_size) in [-1, 1].

    The shorter side is resized to image_size with Pillow's bilinear filter and the centre is cut out; resize
    "stretch" resizes both sides. Training flips horizontally with p = 1/2 in between, and may crop at random (95 to
    100 % of the area) afterwards.
    """

    def plain(image: Image.Image) -> torch.Tensor:
        pixels = np.array(fitted(image, image_size, resize))
        levels = torch.from_numpy(pixels).view(image_size, image_size, -1).permute(2, 0, 1).contiguous()
        return levels.float().div(255).sub(0.5).div(0.5)

    if not random_flip and not random_crop:
        return plain
    from torchvision import transforms  # takes seconds to import, which only a training waits

    steps: list = [transforms.Resize((image_size, image_size) if resize == "stretch" else image_size)]
    if random_flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps.append(transforms.CenterCrop(image_size))
    if random_crop:
        steps.append(transforms.RandomResizedCrop(image_size, (0.95, 1)))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])


def fitted(image: Image.Image, size: int, resize: str = "crop") -> Image.Image:
    """The square picture that a network of that size sees: see `image_transform`."""
    sides = [size] * 2 if resize == "stretch" else [size * side // min(image.size) for side in image.size]
    left, top = (round((side - size) / 2) for side in sides)
    return image.resize(sides, Image.BILINEAR).crop((left, top, left + size, top + size))


def images_below(folder: str) -> list[str]:
    """The image files at any depth below a folder, as names/with/slashes, each folder's in sorted order.

    Names are all that counts: what cannot be read is found out when its turn comes. What is hidden is left out.
    Raises InputError where there is none.
    """
    start = existing(folder).rstrip("/") + "/"
    names = [name for name in (path.removeprefix(start) for path in walk(folder)) if is_image_name(name)]
    if not names:
        raise InputError(f"{folder}: no image in it or below it; it holds {holdings(folder)}")
    return names


def is_image_name(name: str) -> bool:
    """Whether a file is called like an image, and is none of those that systems hide."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES


def existing(folder: str) -> str:
    """The folder itself. Raises InputError if it is not there."""
    if not bf.isdir(folder):
        raise InputError(f"{folder}: no such folder; see --data_dir")
    return folder


def names_in(folder: str) -> list[str]:
    """What lies in a folder, broken links included (which bf.listdir stumbles over); [] where there is no folder."""
    if not bf.isdir(folder):
        return []
    return sorted(bf.listdir(folder) if is_remote(folder) else (path.name for path in Path(folder).iterdir()))


def holdings(folder: str) -> str:
    """A few words on what a folder holds, for messages on what it does not hold."""
    names = names_in(folder)
    some = ", ".join(names[:4])
    return f"{some} and {len(names) - 4} more" if len(names) > 4 else some or "nothing"
