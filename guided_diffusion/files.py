"""Opening files here or in an object store (`gs://…`, `az://…`), which blobfile reaches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def is_remote(path: str | Path) -> bool:
    """Whether the path has a scheme, as in gs://bucket/file."""
    return "://" in str(path)


def open_file(path: str | Path, mode: str) -> BinaryIO:
    """Open a file in a binary mode."""
    if not is_remote(path):
        return Path(path).open(mode)
    import blobfile

    return blobfile.BlobFile(str(path), mode)


def walk(folder: str | Path) -> Iterator[str]:
    """Every file below the folder, each folder's names in sorted order."""
    if is_remote(folder):
        import blobfile

        found = blobfile.walk(str(folder))
    else:
        found = os.walk(folder, followlinks=True)
    paths = [f"{root.rstrip('/')}/{name}" for root, _, names in found for name in names]
    yield from sorted(paths, key=lambda path: path.split("/"))
