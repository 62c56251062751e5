"""Explanations onto disk, in the published form: images, text per image, and the rows of the summary."""

from __future__ import annotations

import io
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dime.core.errors import InputError
from dime.core.explain import Explanations
from dime.core.files import write_atomically
from dime.core.images import difference_map, input_to_uint8, to_hwc, to_image, to_uint8
from dime.core.results import ResultTree
from dime.core.summary import ImageRecord

SAME_IMAGE_TOLERANCE = 5.0
"""Mean grey levels between a stored input and ours, encoded the same way, up to which they are the same image: the
truncation of the published code and other JPEG libraries make about one; two different images are tens apart."""


def records_of(result: Explanations, binary: bool) -> list[ImageRecord]:
    """One record per image; tolist() keeps a float32's exact value.

    binary: confidences are those of the explained attribute, whatever the target; else those of the target.
    """
    before, after = result.p_target, result.cf_p_target
    if binary:
        before, after = (torch.where(result.target == 1, p, 1 - p) for p in (before, after))
    columns = {
        "id": result.ids,
        "label": result.label.tolist(),
        "pred": result.pred.tolist(),
        "target": result.target.tolist(),
        "cf_pred": result.cf_pred.tolist(),
        "bkl": (1 - result.cf_p_target).tolist(),
        "l_1": result.l_1.tolist(),
        "orig_conf": before.tolist(),
        "cf_conf": after.tolist(),
        "scale": result.scale.tolist(),
    }
    return [ImageRecord(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def write_explanations(
    result: Explanations, tree: ResultTree | None, skip: Container[int] = (), binary: bool = True
) -> Iterator[ImageRecord]:
    """Write the images of a batch into the tree (None: write nothing), one by one; each one's record, when it is whole.

    Images that failed (not finite, or at their target before anything was done) are left out of both, and so are the
    ids in `skip`.
    """
    images = {"CF": to_hwc(to_uint8(result.cf)), "Noise": to_hwc(to_uint8(result.noisy))}
    inputs = to_hwc(input_to_uint8(result.x))
    frames = {kind: to_hwc(images) for kind, images in result.frames.items()}
    usable = (result.finite & (result.pred != result.target)).tolist()
    for row, record in enumerate(records_of(result, binary)):
        if not usable[row] or record.id in skip:
            continue
        if tree is not None:
            for kind, steps in frames.items():
                _write_frames(tree, kind, record.id, steps[row])
            pictures = {kind: values[row] for kind, values in images.items()}
            _write_image_files(tree, record, inputs[row], pictures)
        yield record


def _write_image_files(tree: ResultTree, record: ImageRecord, x: np.ndarray, pictures: dict[str, np.ndarray]) -> None:
    original = tree.original(record.id, record.correct)
    # another experiment, about another decision, may have put the same input into the other folder: both stay
    if original.parent not in {path.parent for path in tree.stored_originals(record.id)}:
        write_image(original, x)
    for kind, picture in {**pictures, "SM": difference_map(x, pictures["CF"])}.items():
        write_image(tree.image(kind, record.id, record.correct, record.flipped), picture)
    # last of all: an image whose text is there is complete
    write_atomically(tree.info(record.id, record.correct, record.flipped), record.text())


def _write_frames(tree: ResultTree, kind: str, id: int, images: np.ndarray) -> None:
    folder = tree.frame_folder(kind, id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder ({error.strerror})") from None
    for step, image in enumerate(images):
        write_image(tree.frame(kind, id, step), image)


def write_image(path: Path, image: np.ndarray) -> None:
    """An 8-bit image (H, W, C), C = 1 or 3, in the format that the path's suffix names."""
    write_atomically(path, encoded(image, path.suffix))


def encoded(image: np.ndarray, suffix: str) -> bytes:
    """The file of an 8-bit image (H, W, C): suffix .jpg (Pillow's quality 75) or .png."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, format={".jpg": "JPEG", ".png": "PNG"}[suffix])
    return buffer.getvalue()


def check_original(tree: ResultTree, id: int, x: torch.Tensor) -> None:
    """Raise InputError if the tree holds another image than x (C, H, W) under this id."""
    for path in tree.stored_originals(id):
        ours = encoded(to_hwc(input_to_uint8(x)), path.suffix)
        try:
            a, b = (
                np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.float32)
                for file in (ours, path.read_bytes())
            )
        except OSError as error:
            raise InputError(f"{path}: not a readable image ({error}); remove it and run again") from None
        if a.shape != b.shape or np.abs(a - b).mean() > SAME_IMAGE_TOLERANCE:
            raise InputError(
                f"{path}: another image lies there under an id of this run (other data, partition or image_size?); "
                "choose another --output_path"
            )
