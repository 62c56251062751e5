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
from dime.core.images import difference_map, input_to_uint8, mean_difference, to_hwc, to_image, to_uint8
from dime.core.results import ResultTree
from dime.core.summary import ImageRecord

SAME_IMAGE_TOLERANCE = 5.0
"""Mean grey levels between a stored input and ours, encoded the same way, up to which they are the same image: the
truncation of the published code and other JPEG libraries make about one; two different images are tens apart."""


def write_explanations(
    result: Explanations, tree: ResultTree | None, skip: Container[int] = ()
) -> Iterator[ImageRecord]:
    """Write the images of a batch into the tree (None: write nothing), one by one; each one's record, when it is whole.

    Images that failed (not finite) are left out of both, and so are the ids in `skip`.
    """
    inputs, counterfactuals = to_hwc(input_to_uint8(result.batch.x)), to_hwc(to_uint8(result.cf))
    noisy = to_hwc(to_uint8(result.noisy))
    frames = {kind: to_hwc(images) for kind, images in result.frames.items()}
    l_1 = [mean_difference(x, cf) for x, cf in zip(inputs, counterfactuals, strict=True)]
    finite = result.finite.tolist()
    for row, record in enumerate(_records(result, l_1)):
        if not finite[row] or record.id in skip:
            continue
        if tree is not None:
            for kind, images in frames.items():
                _write_frames(tree, kind, record.id, images[row])
            _write_image_files(tree, record, inputs[row], counterfactuals[row], noisy[row])
        yield record


def _records(result: Explanations, l_1: list[np.float32]) -> list[ImageRecord]:
    """One record per image; tolist() keeps a float32's exact value."""
    before, after = (torch.where(result.target == 1, p, 1 - p) for p in (result.p_target, result.cf_p_target))
    columns = {
        "label": result.batch.label,
        "pred": result.pred,
        "target": result.target,
        "cf_pred": result.cf_pred,
        "bkl": 1 - result.cf_p_target,
        "orig_conf": before,
        "cf_conf": after,
        "scale": result.scale,
    }
    columns = {name: values.tolist() for name, values in columns.items()}
    return [
        ImageRecord(id=id, l_1=float(l_1[row]), **{name: values[row] for name, values in columns.items()})
        for row, id in enumerate(result.batch.ids)
    ]


def _write_image_files(tree: ResultTree, record: ImageRecord, x: np.ndarray, cf: np.ndarray, noisy: np.ndarray) -> None:
    correct, flipped = record.correct, record.flipped
    original = tree.original(record.id, correct)
    # another experiment, about another decision, may have put the same input into the other folder: both stay
    if original.parent not in {path.parent for path in tree.stored_originals(record.id)}:
        write_image(original, x)
    write_image(tree.image("CF", record.id, correct, flipped), cf)
    write_image(tree.image("Noise", record.id, correct, flipped), noisy)
    write_image(tree.image("SM", record.id, correct, flipped), difference_map(x, cf))
    # last of all: an image whose text is there is complete
    write_atomically(tree.info(record.id, correct, flipped), record.text())


def _write_frames(tree: ResultTree, kind: str, id: int, images: np.ndarray) -> None:
    folder = tree.frame_folder(kind, id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder ({error.strerror})") from None
    for step, image in enumerate(images):
        write_image(tree.frame(kind, id, step), image)


def write_image(path: Path, image: np.ndarray) -> None:
    """An 8-bit image (H, W, 3) in the format that the path's suffix names."""
    write_atomically(path, encoded(image, path.suffix))


def encoded(image: np.ndarray, suffix: str) -> bytes:
    """The file of an 8-bit image (H, W, 3): suffix .jpg (Pillow's quality 75) or .png."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, format={".jpg": "JPEG", ".png": "PNG"}[suffix])
    return buffer.getvalue()


def check_original(tree: ResultTree, id: int, x: torch.Tensor) -> None:
    """Raise InputError if the tree holds another image than x (3, H, W) under this id."""
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
