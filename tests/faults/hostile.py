"""Files that would run code, or do other harm, if they were loaded carelessly."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.helpers import filled


class _Payload:
    """Makes the folder `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        import os

        return os.mkdir, (str(self.marker),)


class _Indirect(_Payload):
    """The same through builtins.eval."""

    def __reduce__(self) -> tuple:
        return eval, (f"__import__('os').mkdir({str(self.marker)!r})",)


class _ThroughTorch(_Payload):
    """The same through a function of torch that loads a second, plain pickle."""

    def __reduce__(self) -> tuple:
        from functools import partial

        return partial(torch.load, weights_only=False), (io.BytesIO(pickle.dumps(_Payload(self.marker))),)


def _saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _plain_pickle(payload: type, protocol: int) -> Callable[[Path], bytes]:
    return lambda marker: pickle.dumps({"feat_extract": payload(marker)}, protocol=protocol)


def _dressed_up(marker: Path) -> bytes:
    """A payload among good tensors of a good state dict."""
    return _saved({**filled({"time_embed.0.weight": (128, 32)}), "extra": _Payload(marker)})


def _old_tar(marker: Path) -> bytes:
    """The format of torch 0.1."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = pickle.dumps(_Payload(marker), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _zip_by_hand(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Payload(marker), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def _torchscript(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def _object_array(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Payload(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _module(marker: Path) -> bytes:
    """A whole network, as torch.save(model) writes it, with a payload among its attributes."""
    network = nn.Linear(2, 2)
    network.hook = _Payload(marker)
    return _saved(network)


def _storage_of_exabytes(marker: Path) -> bytes:
    """A tensor whose header claims 2^60 numbers."""
    content = _saved({"weight": torch.zeros(7)})
    return content.replace(b"K\x07", b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x10", 1)


def _safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def _overlapping(marker: Path) -> bytes:
    entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    return _safetensors(json.dumps({"weight": entry}).encode())


WEIGHTS: dict[str, Callable[[Path], bytes]] = {
    "pickle0.pt": _plain_pickle(_Payload, 0),
    "pickle2.pth": _plain_pickle(_Payload, 2),
    "pickle5.pkl": _plain_pickle(_Payload, 5),
    "eval.pkl": _plain_pickle(_Indirect, 2),
    "zip.pt": lambda marker: _saved({"feat_extract": _Payload(marker)}),
    "zip-eval.pt": lambda marker: _saved(_Indirect(marker)),
    "legacy.pt": lambda marker: _saved(_Payload(marker), _use_new_zipfile_serialization=False),
    "legacy-eval.pth": lambda marker: _saved([_Indirect(marker)], _use_new_zipfile_serialization=False),
    "dressed-up.pt": _dressed_up,
    "second-load.pt": lambda marker: _saved({"weight": torch.zeros(2), "more": _ThroughTorch(marker)}),
    "tar.pt": _old_tar,
    "zip-by-hand.pt": _zip_by_hand,
    "torchscript.pt": _torchscript,
    "module.pt": _module,
    "objects.npy": _object_array,
    "exabytes.pt": _storage_of_exabytes,
    "long-header.safetensors": lambda marker: _safetensors(b"{}", 1 << 62),
    "cut-header.safetensors": lambda marker: _safetensors(b'{"weight": {"dtype"', 500),
    "overlapping.safetensors": _overlapping,
}
"""Name of a file of weights -> its content, which would make the folder `marker`, or ask for memory without end."""

_TAGS = "!!python/object/apply:os.mkdir ['{marker}']\n"
_LAUGHS = "".join(
    f"l{level}: &l{level} {{" + ", ".join(f"k{key}: *l{level - 1}" for key in range(9)) + "}\n"
    for level in range(1, 12)
)

YAML: dict[str, Callable[[Path], bytes]] = {
    "tag": lambda marker: _TAGS.format(marker=marker).encode(),
    "nested tag": lambda marker: f"n: 1\nidentity: {_TAGS.format(marker=marker)}".encode(),
    "new object": lambda marker: f"n: !!python/object/new:os.mkdir ['{marker}']\n".encode(),
    "a billion laughs": lambda marker: ("n: 1\nl0: &l0 {n: 1}\n" + _LAUGHS).encode(),
    "deep": lambda marker: b"[" * 100_000,
    "binary": lambda marker: bytes(range(256)),
}
"""The same for YAML."""

JSON: dict[str, bytes] = {
    "deep": b"[" * 1_000_000,
    "binary": bytes(range(256)),
    "a number of a million digits": b'{"n": ' + b"9" * 1_000_000 + b"}",
    "cut": b'{"measurements": {"exp"',
    "a list": b"[1, 2]",
}
"""Files of JSON, in which nothing can run, that cost memory or time, or are none."""
