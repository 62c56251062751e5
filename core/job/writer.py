"""Explanations onto disk in the published form, and what of a chunk already stands there.

An image is finished when its Info file is there, which is written last, and every other file of it too. A run that
saves no images keeps its records in the queue, batch by batch, and in stats.pth when it is done.
"""

import contextlib
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from dime.core.config import Config
from dime.core.errors import InputError
from dime.core.explain import Explanations
from dime.core.files import remove_orphans, write_atomically
from dime.core.images import difference_map, encoded, input_to_uint8, reopened, to_hwc, to_uint8
from dime.core.job.queue import Queue
from dime.core.results import CELLS, FRAME_KINDS, IMAGE_FORMATS, ResultTree, image_files, make_folder
from dime.core.summary import ImageRecord, read_stats

QUEUE = "running"
"""The folder of the chunk's queue, there only while it is not complete."""
CONFIG, STATS, SUMMARY, FAILED, INDEX = "config.yaml", "stats.pth", "summary.yaml", "failed.yaml", "index.csv"
REPORTS = (CONFIG, STATS, SUMMARY, FAILED, INDEX)
"""The files about a whole chunk."""

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
    whole_numbers = (result.label, result.pred, result.target, result.cf_pred)
    columns = (*whole_numbers, 1 - result.cf_p_target, result.l_1, before, after, result.scale)  # as in ImageRecord
    return [ImageRecord(*row) for row in zip(result.ids, *(column.tolist() for column in columns), strict=True)]


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
        if tree is None:
            yield record
            continue
        for kind, steps in frames.items():
            make_folder(tree.frame_folder(kind, record.id))
            for step, frame in enumerate(steps[row]):
                write_image(tree.frame(kind, record.id, step), frame)
        cell, x = (record.id, record.correct, record.flipped), inputs[row]
        original = tree.original(record.id, record.correct)
        # another experiment, about another decision, may have put the same input into the other folder: both stay
        if original.parent not in {path.parent for path in tree.stored_originals(record.id)}:
            write_image(original, x)
        for kind, values in images.items():
            write_image(tree.image(kind, *cell), values[row])
        write_image(tree.image("SM", *cell), difference_map(x, images["CF"][row]))
        write_atomically(tree.info(*cell), record.text())  # last of all: an image whose text is there is complete
        yield record


def write_image(path: Path, image: np.ndarray) -> None:
    """An 8-bit image (H, W, C), C = 1 or 3, in the format that the path's suffix names."""
    write_atomically(path, encoded(image, path.suffix))


def check_original(tree: ResultTree, id: int, x: torch.Tensor) -> None:
    """Raise InputError if the tree holds another image than x (C, H, W) under this id."""
    for path in tree.stored_originals(id):
        try:
            stored = np.asarray(Image.open(path).convert("RGB"))
        except OSError as error:
            raise InputError(f"{path}: not a readable image ({error}); remove it and run again") from None
        if not is_stored_as(stored, to_hwc(input_to_uint8(x)), path.suffix):
            raise InputError(
                f"{path}: another image lies there under an id of this run (other data, partition or image_size?); "
                "choose another --output_path"
            )


def is_stored_as(stored: np.ndarray, image: np.ndarray, suffix: str) -> bool:
    """Whether a file of the tree, read as (H, W, 3), holds this 8-bit image (H, W, C), up to SAME_IMAGE_TOLERANCE."""
    ours = np.asarray(reopened(image, suffix))
    return stored.shape == ours.shape and np.abs(stored - ours.astype(float)).mean() <= SAME_IMAGE_TOLERANCE


@dataclass(frozen=True)
class ChunkFiles:
    """The files of one chunk of a command. ids: its images."""

    tree: ResultTree
    config: Config
    ids: Sequence[int]

    def report(self, name: str) -> Path:
        """Where a report of this chunk lies."""
        return self.tree.report(name, self.config.num_chunks, self.config.chunk)

    def finished(self) -> dict[int, ImageRecord]:
        """The records of all finished images of this chunk, by id."""
        own, found = set(self.ids), []
        if not self.config.save_images:
            found = read_stats(self.report(STATS)) if self.report(STATS).exists() else []
            return {record.id: record for record in found if record.id in own}
        there = {path for folder in self.tree.folders() for path in folder.iterdir()}
        for cell in CELLS:
            for path in _named_by_id(self.tree.results / cell / "Info"):
                with contextlib.suppress(ValueError, OSError):  # a damaged text: the image is not finished
                    found.append(ImageRecord.from_text(int(path.stem), path.read_text()))
        return {record.id: record for record in found if record.id in own and self._is_complete(record, there)}

    def clean(self, finished: Mapping[int, ImageRecord]) -> None:
        """Remove what dead runs left half done: temporary files, and the images that have only some of their files."""
        unfinished = [id for id in self.ids if id not in finished]
        frames = [self.tree.frame_folder(kind, id) for kind in self.config.kept_frames for id in unfinished]
        remove_orphans([self.tree.results, *self.tree.folders(), *frames])
        self._remove_images(set(unfinished))

    def start_afresh(self) -> None:
        """Remove this chunk's images, frames and reports; of the whole experiment's when there is one chunk only.

        Raises InputError if the folder was made with another number of chunks, or is being written by one of them.
        """
        own = [self.report(name) for name in REPORTS]
        ids = set(self.ids)
        if self.config.num_chunks == 1:
            for folder in self.tree.results.glob(f"chunk-*_num-chunks-*_{QUEUE}"):
                if at_work := Queue(folder).at_work():
                    raise InputError(f"{folder.parent}: {at_work} is working on a chunk; wait for it, or end it first")
                shutil.rmtree(folder, ignore_errors=True)
            own = [path for name in REPORTS for path in self.tree.reports(name)]
            ids |= {int(path.stem) for folder in self.tree.cell_folders() for path in _named_by_id(folder)}
        else:
            same = [self.tree.report(CONFIG, self.config.num_chunks, chunk) for chunk in range(self.config.num_chunks)]
            for other in self.tree.reports(CONFIG):
                if other not in same:
                    raise InputError(
                        f"{other}: made with another --num_chunks; one chunk cannot overwrite that: choose another "
                        "--exp_name or remove the folder"
                    )
            with contextlib.suppress(InputError):  # damaged statistics are removed like any others
                ids |= {record.id for record in read_stats(self.report(STATS))}
        self._remove_images(ids)
        for kind in FRAME_KINDS:
            for id in ids:
                shutil.rmtree(self.tree.frame_folder(kind, id), ignore_errors=True)
        for path in own:
            path.unlink(missing_ok=True)

    def write_failed(self, reasons: Mapping[int, str]) -> None:
        """failed.yaml: id -> why there is no counterfactual; no file when nothing failed."""
        if reasons:
            write_atomically(self.report(FAILED), yaml.safe_dump(dict(reasons), width=1000, allow_unicode=True))
        else:
            self.report(FAILED).unlink(missing_ok=True)

    def _is_complete(self, record: ImageRecord, there: set[Path]) -> bool:
        cell = (record.id, record.correct, record.flipped)
        files = [self.tree.info(*cell), *(self.tree.image(kind, *cell) for kind in ("CF", "Noise", "SM"))]
        original = self.tree.original(record.id, record.correct)  # in whichever format
        for kind in self.config.kept_frames:
            frames = {self.tree.frame(kind, record.id, step) for step in range(self.config.settings.steps)}
            if not frames.issubset(self.tree.frame_folder(kind, record.id).glob("*")):
                return False
        return there.issuperset(files) and any(original.with_suffix(f".{end}") in there for end in IMAGE_FORMATS)

    def _remove_images(self, ids: set[int]) -> None:
        for folder in self.tree.cell_folders():
            for path in _named_by_id(folder):
                if int(path.stem) in ids:
                    path.unlink(missing_ok=True)


def _named_by_id(folder: Path) -> list[Path]:
    texts = [path for path in folder.glob("*.txt") if path.stem.isdecimal()]
    return [*image_files(folder), *texts]
