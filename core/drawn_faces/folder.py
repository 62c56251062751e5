"""A folder of drawn faces in CelebA's layout, with the parameters of every face beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dime.core.datasets import ATTRIBUTES, IMAGE_FOLDER, PARTITIONS
from dime.core.drawn_faces.attributes import Correlation
from dime.core.drawn_faces.drawing import draw
from dime.core.drawn_faces.face import Face, labels_of, sample_face
from dime.core.errors import InputError

SETTINGS_FILE = "drawn_faces.json"
FACES_FILE = "faces.jsonl"
JPEG_QUALITY = 95
DRAWING_VERSION = 1
"""Raised whenever the same seed would give another picture."""
BLOCK = 32  # faces drawn per task of a worker


@dataclass(frozen=True)
class Plan:
    """What a folder of drawn faces contains: faces 0, 1, … of a seed, in the order train, val, test."""

    seed: int = 0
    num_train: int = 0
    num_val: int = 0
    num_test: int = 0
    correlations: tuple[Correlation, ...] = ()

    def __len__(self) -> int:
        return self.num_train + self.num_val + self.num_test

    def face(self, index: int) -> Face:
        """Face number `index` of the folder."""
        return sample_face(self.seed, index, self.correlations)

    def partitions(self) -> Iterator[int]:
        """CelebA's partition number of every face."""
        for name, count in zip(PARTITIONS, (self.num_train, self.num_val, self.num_test), strict=True):
            yield from [PARTITIONS[name]] * count

    def settings(self) -> dict:
        """The plan as it is written beside the pictures."""
        return {
            "drawing_version": DRAWING_VERSION,
            "seed": self.seed,
            "num_train": self.num_train,
            "num_val": self.num_val,
            "num_test": self.num_test,
            "correlate": [str(correlation) for correlation in self.correlations],
        }


def image_name(index: int) -> str:
    """The file name of face number `index`: CelebA counts from 1."""
    return f"{index + 1:06d}.jpg"


def write_folder(path: str | Path, plan: Plan, num_workers: int = 1, progress: bool = False) -> bool:
    """Draw a folder in CelebA's layout; False when it is already there, drawn by the same plan.

    The folder appears under its name only when it is complete. The pictures do not depend on num_workers.
    Raises InputError when the plan is empty, when its correlations contradict each other, or when `path` already
    holds anything else.
    """
    path = Path(path).expanduser().absolute()
    if len(plan) == 0:
        raise InputError("no faces asked for: give num_train, num_val or num_test above 0")
    if _already_there(path, plan):
        return False
    plan.face(0)  # contradictions show before anything is written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give a folder that you own") from None
    try:
        _fill(workplace, plan, num_workers, progress)
        return _move(workplace, path, plan)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def load_faces(path: str | Path) -> list[Face]:
    """The parameters of every face of a folder, in the order of its pictures. Raises InputError when there are none."""
    file = Path(path) / FACES_FILE
    try:
        return [Face.from_dict(json.loads(line)) for line in file.read_text().splitlines()]
    except FileNotFoundError:
        raise InputError(f"{file}: not found; only a folder written by make-drawn-faces.py knows its faces") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: damaged ({error}); draw the faces again") from None


def _already_there(path: Path, plan: Plan) -> bool:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    try:
        found = json.loads((path / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        raise InputError(
            f"{path}: already holds something else than drawn faces; give a new or an empty folder"
        ) from None
    wanted = plan.settings()
    differing = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        has = found.get(key) if isinstance(found, dict) else found
        raise InputError(
            f"{path}: holds faces drawn with {key} = {has}, not {wanted[key]}; give another folder or remove this one"
        )
    return True


def _fill(folder: Path, plan: Plan, num_workers: int, progress: bool) -> None:
    (folder / IMAGE_FOLDER).mkdir()
    rows = []
    with (
        (folder / FACES_FILE).open("w") as faces,
        tqdm(total=len(plan), unit="face", disable=None if progress else True) as bar,
    ):
        for block in _blocks(folder, plan, num_workers):
            for face in block:
                values = labels_of(face).values()
                rows.append(",".join([image_name(face.index), *("1" if value else "-1" for value in values)]))
                faces.write(json.dumps(face.to_dict(), separators=(",", ":")) + "\n")
            bar.update(len(block))
    header = ",".join(["image_id", *ATTRIBUTES])
    (folder / "list_attr_celeba.csv").write_text("\n".join([header, *rows]) + "\n")
    partitions = [f"{image_name(index)},{number}" for index, number in enumerate(plan.partitions())]
    (folder / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *partitions]) + "\n")
    (folder / SETTINGS_FILE).write_text(json.dumps(plan.settings(), indent=2) + "\n")
    folder.chmod(0o777 & ~_umask())  # a temporary folder starts private


def _blocks(folder: Path, plan: Plan, num_workers: int) -> Iterator[list[Face]]:
    starts = range(0, len(plan), BLOCK)
    task = partial(_draw_block, folder / IMAGE_FOLDER, plan)
    if num_workers <= 1:
        yield from map(task, starts)
        return
    with ProcessPoolExecutor(min(num_workers, len(starts))) as pool:
        yield from pool.map(task, starts)


def _draw_block(folder: Path, plan: Plan, start: int) -> list[Face]:
    faces = [plan.face(index) for index in range(start, min(start + BLOCK, len(plan)))]
    for face in faces:
        draw(face).save(folder / image_name(face.index), quality=JPEG_QUALITY)
    return faces


def _move(workplace: Path, path: Path, plan: Plan) -> bool:
    """Give the finished folder its name; False when another process was faster with the same plan."""
    try:
        if path.is_dir():
            path.rmdir()
        workplace.rename(path)
    except OSError:
        if _already_there(path, plan):
            return False
        raise
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
