"""The ways in which an image file can be none, whatever a reader makes of rare formats."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_an_image(path: Path) -> None:
    path.write_text("#!/bin/sh\ntouch executed\n")


def bomb(path: Path) -> None:
    """100,000 pixels square in a hundred bytes."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND"]
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


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
    "unreadable": unreadable,
    "vanished": vanished,
}
