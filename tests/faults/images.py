"""The ways in which an image file can be none, those in which it is refused, and those in which it is converted."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def bomb(path: Path) -> None:
    """100,000 pixels square in a hundred bytes."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND"]
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def saved(mode: str, format: str = "PNG", **options) -> Callable[[Path], None]:
    return lambda path: Image.open(path).convert(mode).save(path, format, **options)


def turned(path: Path) -> None:
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, "PNG", exif=exif)


def transparent(path: Path) -> None:
    image = Image.open(path).convert("RGB")
    image.putalpha(128)
    image.save(path, "PNG")


Kinds = dict[str, Callable[[Path], object]]

BAD: Kinds = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
    "not an image": lambda path: path.write_text("#!/bin/sh\ntouch executed\n"),
    "bomb": bomb,
    "unreadable": lambda path: path.unlink() or path.mkdir(),  # root may read everything, so permissions would not do
    "vanished": lambda path: path.unlink(),
}
UNSCALED: Kinds = {
    "16 bit": lambda path: Image.fromarray(np.full((218, 178), 40_000, np.uint16)).save(path, "PNG"),
    "float": saved("F", "TIFF"),
}
"""Nobody states the range of these; 8 bits cannot hold them."""

UNUSUAL: Kinds = {
    "CMYK": saved("CMYK", "JPEG"),
    "palette": saved("P"),
    "palette with transparency": saved("P", transparency=0),
    "EXIF rotation": turned,
    "transparent": transparent,
    "grey": saved("L"),
    "black and white": saved("1"),
}
"""What can be converted without guessing."""
