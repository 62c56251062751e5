"""The ways in which an image can be bad, and those in which it is only unusual."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_an_image(path: Path) -> None:
    path.write_text("#!/bin/sh\ntouch executed\n")


def bomb(path: Path) -> None:
    """100,000 pixels square in a hundred bytes."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks))


def saved(mode: str, format: str = "PNG", **options) -> Callable[[Path], None]:
    """The same picture in another of Pillow's modes."""
    return lambda path: Image.open(path).convert(mode).save(path, format, **options)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((218, 178), 40_000, np.uint16)).save(path, "PNG")


def turned(path: Path) -> None:
    """Lying on its side, as its EXIF tag says."""
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, "PNG", exif=exif)


def transparent(path: Path) -> None:
    """Half of every pixel."""
    image = Image.open(path).convert("RGB")
    image.putalpha(128)
    image.save(path, "PNG")


def unreadable(path: Path) -> None:
    """No file at all: root may read everything, so permissions would not do here."""
    path.unlink()
    path.mkdir()


def vanished(path: Path) -> None:
    path.unlink()


Kinds = dict[str, Callable[[Path], None]]

BAD: Kinds = {
    "truncated": truncated,
    "empty": empty,
    "not an image": not_an_image,
    "bomb": bomb,
    "16 bit": sixteen_bits,
    "float": saved("F", "TIFF"),
    "unreadable": unreadable,
    "vanished": vanished,
}
UNUSUAL: Kinds = {
    "CMYK": saved("CMYK", "JPEG"),
    "palette": saved("P"),
    "EXIF rotation": turned,
    "transparent": transparent,
    "palette with transparency": saved("P", transparency=0),
    "grey": saved("L"),
    "black and white": saved("1"),
}
"""What can be converted without guessing."""
