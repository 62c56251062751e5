"""The ten ways in which an image can be bad."""

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


def cmyk(path: Path) -> None:
    Image.open(path).convert("CMYK").save(path, "JPEG")


def palette(path: Path) -> None:
    Image.open(path).convert("P").save(path, "PNG")


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((218, 178), 40_000, np.uint16)).save(path, "PNG")


def turned(path: Path) -> None:
    """Lying on its side, as its EXIF tag says."""
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, "JPEG", exif=exif)


def unreadable(path: Path) -> None:
    """No file at all: root may read everything, so permissions would not do here."""
    path.unlink()
    path.mkdir()


def vanished(path: Path) -> None:
    path.unlink()


BAD: dict[str, Callable[[Path], None]] = {
    "truncated": truncated,
    "empty": empty,
    "not an image": not_an_image,
    "bomb": bomb,
    "CMYK": cmyk,
    "palette": palette,
    "16 bit": sixteen_bits,
    "EXIF rotation": turned,
    "unreadable": unreadable,
    "vanished": vanished,
}
