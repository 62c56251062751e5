"""Image files: how one is opened, for everybody, and what becomes of it before a network sees it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path, PurePosixPath

import blobfile as bf
from PIL import Image, ImageOps
from torchvision import transforms

from dime.core.errors import InputError
from guided_diffusion.files import is_remote, open_file, walk

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""How the names of image files end, in either case."""


class BadImageError(InputError):
    """An image that cannot be explained."""


def read_image(path: str, channels: int = 3) -> Image.Image:
    """An image file as 8-bit RGB, or as grey (luma) where channels is 1. Raises BadImageError, which names it."""
    try:
        image = open_image(path)
    except FileNotFoundError:
        raise BadImageError(f"{printable(path)}: no such image") from None
    except (OSError, ValueError) as error:
        reason = printable(error)
        known = reason.startswith(printable(path))
        raise BadImageError(reason if known else f"{printable(path)}: not a readable image ({reason})") from None
    return image if channels == 3 else image.convert("L")


def open_image(path: str) -> Image.Image:
    """The first picture of a file, local or remote, as upright 8-bit RGB.

    Turned as its EXIF tag says; grey, palettes and CMYK converted; what is transparent lies on white. Raises OSError
    or ValueError, in one line, for anything else: 16-bit grey and float pixels, whose range nobody states; truncated
    files; pictures large enough to exhaust the memory.
    """
    if not is_remote(path) and Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path}: not a file")
    with open_file(path, "rb") as file:
        content = file.read()
    if not content:
        raise ValueError(f"{path}: an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            image.load()
            mode = image.mode
            if mode[0] not in "IF":
                image = ImageOps.exif_transpose(image)
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    ground = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(ground, image)
                return image.convert("RGB")
    except Exception as error:  # Pillow's readers fail in nearly any way
        raise ValueError(f"{path}: not a readable image ({error})") from None
    raise ValueError(f"{path}: its pixels are {mode}, 16-bit or float; scale them to 8 bits and save it as PNG")


def image_transform(
    image_size: int, *, random_flip: bool = False, random_crop: bool = False, resize: str = "crop"
) -> transforms.Compose:
    """PIL image of C channels -> tensor (C, image_size, image_size) in [-1, 1].

    The shorter side is resized to image_size with Pillow's bilinear filter and the centre is cut out; resize
    "stretch" resizes both sides. Training flips horizontally with p = 1/2 in between, and may crop at random (95 to
    100 % of the area) afterwards.
    """
    steps: list = [transforms.Resize((image_size, image_size) if resize == "stretch" else image_size)]
    if random_flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps.append(transforms.CenterCrop(image_size))
    if random_crop:
        steps.append(transforms.RandomResizedCrop(image_size, (0.95, 1)))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])


def images_below(folder: str) -> list[str]:
    """The image files at any depth below a folder, as names/with/slashes, each folder's in sorted order.

    Names are all that counts: what cannot be read is found out when its turn comes. Hidden files and folders, and a
    Mac's copies in __MACOSX, are left out. Raises InputError where there is none.
    """
    start = existing(folder).rstrip("/") + "/"
    names = [name for name in (path.removeprefix(start) for path in walk(folder)) if is_image_name(name)]
    if not names:
        raise InputError(f"{folder}: no image in it or below it; it holds {holdings(folder)}")
    return names


def is_image_name(name: str) -> bool:
    """Whether a name (with slashes) is that of an image somebody put there."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in SUFFIXES


def printable(text: object) -> str:
    """Any text, file names included, on one line that every terminal and file can take."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


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
