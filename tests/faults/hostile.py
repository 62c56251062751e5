"""Files that would do harm if they were loaded carelessly, and the ways in which an image can be none or a rare one."""

import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.helpers import filled


class Payload:
    """Makes the folder `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        import os

        return os.mkdir, (str(self.marker),)


class Indirect(Payload):  # through builtins.eval
    def __reduce__(self) -> tuple:
        return eval, (f"__import__('os').mkdir({str(self.marker)!r})",)


class ThroughTorch(Payload):  # through a function of torch that loads a second, plain pickle
    def __reduce__(self) -> tuple:
        return partial(torch.load, weights_only=False), (io.BytesIO(pickle.dumps(Payload(self.marker))),)


def _saved(content: object, save: Callable = torch.save, **options: object) -> bytes:
    buffer = io.BytesIO()
    save(content, buffer, **options)
    return buffer.getvalue()


def _safetensors(header: object, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


WEIGHTS: dict[str, Callable[[Path], bytes]] = {
    "pickle0.pt": lambda marker: pickle.dumps({"feat_extract": Payload(marker)}, protocol=0),
    "pickle5.pkl": lambda marker: pickle.dumps({"feat_extract": Payload(marker)}, protocol=5),
    "eval.pkl": lambda marker: pickle.dumps({"feat_extract": Indirect(marker)}, protocol=2),
    "zip-eval.pt": lambda marker: _saved(Indirect(marker)),
    "legacy.pth": lambda marker: _saved([Payload(marker)], _use_new_zipfile_serialization=False),
    "dressed-up.pt": lambda marker: _saved({**filled({"time_embed.0.weight": (128, 32)}), "extra": Payload(marker)}),
    "second-load.pt": lambda marker: _saved({"weight": torch.zeros(2), "more": ThroughTorch(marker)}),
    "torchscript.pt": lambda marker: _saved(torch.jit.script(nn.Linear(2, 2)), torch.jit.save),
    "exabytes.pt": lambda marker: _saved({"weight": torch.zeros(7)}).replace(  # a header that claims 2^60 numbers
        b"K\x07", b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x10", 1
    ),
    "long-header.safetensors": lambda marker: _safetensors({}, 1 << 62),
    "cut-header.safetensors": lambda marker: _safetensors({"weight": {"dtype": "F32"}}, 500),
    "overlapping.safetensors": lambda marker: _safetensors(
        {"weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ),
}
"""Files of weights by name."""

_TAG = "!!python/object/apply:os.mkdir ['{marker}']\n"
_LAUGHS = "".join(
    f"l{level}: &l{level} {{" + ", ".join(f"k{key}: *l{level - 1}" for key in range(9)) + "}\n"
    for level in range(1, 12)
)

YAML: dict[str, Callable[[Path], bytes]] = {
    "tag": lambda marker: _TAG.format(marker=marker).encode(),
    "new object": lambda marker: f"n: 1\nidentity: !!python/object/new:os.mkdir ['{marker}']\n".encode(),
    "a billion laughs": lambda marker: ("n: 1\nl0: &l0 {n: 1}\n" + _LAUGHS).encode(),
    "deep": lambda marker: b"[" * 100_000,
    "binary": lambda marker: bytes(range(256)),
}

JSON: dict[str, bytes] = {
    "deep": b"[" * 1_000_000,
    "a number of a million digits": b'{"n": ' + b"9" * 1_000_000 + b"}",
    "binary": bytes(range(256)),
    "a list": b"[1, 2]",
}
"""Files of JSON, in which nothing can run, that cost memory or time, or hold no table."""


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
