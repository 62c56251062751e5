"""MNIST, and what is kept in its format: Fashion-MNIST, EMNIST (idx files, gzipped or not)."""

import gzip
import struct
import zlib
from collections.abc import Sequence

import blobfile as bf
import numpy as np

from dime.core.errors import InputError
from dime.core.folders import LABEL, Source, read_lines, table_of
from dime.core.photos import existing, holdings, names_in
from guided_diffusion.files import open_file

PLACES = ("", "raw", "MNIST/raw", "FashionMNIST/raw", "EMNIST/raw")
"""Where in --data_dir the files may lie: in itself, or as torchvision keeps them."""
PADDING = 2
"""Black pixels on each side: 28x28 becomes 32x32, which halves often enough for a U-Net."""


def list_mnist(data_dir: str, use_train: bool = False, class_names: Sequence[str] | None = None) -> Source:
    """The test images of a data set in MNIST's format (use_train: the training images), padded to 32x32.

    Classes are the digits, or what EMNIST's `…-mapping.txt` calls the labels. Raises InputError for files that are
    missing, damaged, or do not belong together.
    """
    parts = ("train",) if use_train else ("t10k", "test")
    folder, stem = _find(existing(data_dir), parts)
    images = read_idx(_file(folder, f"{stem}-images-idx3-ubyte"), 3)
    labels = read_idx(_file(folder, f"{stem}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise InputError(f"{folder}: {len(images)} images in {stem}-images, but {len(labels)} labels in {stem}-labels")
    if not len(images):
        raise InputError(f"{folder}: {stem}-images holds no image")
    known, numbers = np.unique(labels, return_inverse=True)
    names = [str(label) for label in (known if known.max() > 9 else range(10))]
    numbers = numbers if known.max() > 9 else labels
    if stem.startswith("emnist"):
        images = images.swapaxes(1, 2)  # stored column by column
        mapping = bf.join(folder, stem.rsplit("-", 1)[0] + "-mapping.txt")
        if bf.exists(mapping):
            codes = dict(line.split()[:2] for line in read_lines(mapping))
            names = [chr(int(codes[name])) if name in codes else name for name in names]
    if class_names and len(class_names) != len(names):
        raise InputError(f"--class_names: {len(class_names)} names for the {len(names)} classes of {folder}")
    table = table_of([f"{stem}-{number:05d}.png" for number in range(len(images))])
    pixels = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    return Source(folder, table.assign(**{LABEL: numbers.astype(np.int64)}), list(class_names or names), pixels)


def read_idx(path: str, dimensions: int) -> np.ndarray:
    """The bytes of an idx file with that many dimensions, gzipped or not. Raises InputError, naming the file."""
    try:
        with open_file(path, "rb") as file:
            content = file.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise InputError(f"{path}: begins with {content[:4].hex()}, an idx file of this kind with {magic.hex()}")
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start]) if len(content) >= start else (0,) * dimensions
    if len(content) < start or len(content) - start != np.prod(shape, dtype=np.int64):
        raise InputError(
            f"{path}: truncated or damaged: {len(content)} bytes, its head says {start + np.prod(shape, dtype=int)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def download(data_dir: str) -> None:
    """Fetch MNIST into data_dir by torchvision, where it is not there. Raises InputError without a network."""
    from torchvision.datasets import MNIST

    try:
        MNIST(data_dir, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"--download: MNIST cannot be had here ({str(error).strip().splitlines()[-1]})") from None


def _find(data_dir: str, parts: Sequence[str]) -> tuple[str, str]:
    """The folder of the images' file, and what its name begins with."""
    ending = "-images-idx3-ubyte"
    found = {
        (folder, name.removesuffix(".gz").removesuffix(ending))
        for folder in (bf.join(data_dir, place) for place in PLACES)
        for name in names_in(folder)
        if name.removesuffix(".gz").endswith(tuple(part + ending for part in parts))
    }
    if not found:
        raise InputError(
            f"{data_dir}: no {parts[0]}{ending} or {parts[0]}{ending}.gz in it, nor where torchvision keeps it; "
            f"it holds {holdings(data_dir)}; --download True fetches MNIST"
        )
    first, *others = sorted(found)
    if others:
        raise InputError(f"{data_dir}: several data sets, {first[1]} and {others[0][1]} among them; give each a folder")
    return first


def _file(folder: str, name: str) -> str:
    path = bf.join(folder, name)
    return path if bf.exists(path) else path + ".gz"
