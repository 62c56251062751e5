"""A folder of drawn faces in CelebA's layout, with the parameters of every face beside it."""

import json
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dime.core.datasets import ATTRIBUTES, IMAGE_FOLDER, PARTITIONS
from dime.core.drawn_faces.drawing import draw
from dime.core.drawn_faces.face import Correlation, Face, labels_of, sample_face
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

    def settings(self) -> dict:
        """The plan as it is written beside the pictures."""
        numbers = {name: value for name, value in vars(self).items() if name != "correlations"}
        return {"drawing_version": DRAWING_VERSION, **numbers, "correlate": list(map(str, self.correlations))}


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
    workplace = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        (workplace / IMAGE_FOLDER).mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give a folder that you own") from None
    try:
        _fill(workplace, plan, num_workers, progress)
        if path.is_dir():
            path.rmdir()
        workplace.rename(path)
    except OSError:
        if _already_there(path, plan):  # another process was faster with the same plan
            return False
        raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return True


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
        found = dict(json.loads((path / SETTINGS_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        problem = "already holds something else than drawn faces; give a new or an empty folder"
        raise InputError(f"{path}: {problem}") from None
    for key, value in plan.settings().items():
        if found.get(key) != value:
            problem = f"holds faces drawn with {key} = {found.get(key)}, not {value}"
            raise InputError(f"{path}: {problem}; give another folder or remove this one")
    return True


def _fill(folder: Path, plan: Plan, num_workers: int, progress: bool) -> None:
    counts = zip(PARTITIONS.values(), (plan.num_train, plan.num_val, plan.num_test), strict=True)
    partitions = [number for number, count in counts for _ in range(count)]
    starts = range(0, len(plan), BLOCK)
    workers = min(num_workers, len(starts))
    faces: list[Face] = []
    draw_block = partial(_draw_block, folder / IMAGE_FOLDER, plan)
    with (
        tqdm(total=len(plan), unit="face", disable=None if progress else True) as bar,
        ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool,
    ):
        for block in pool.map(draw_block, starts) if pool else map(draw_block, starts):
            faces += block
            bar.update(len(block))
    labels = [[image_name(f.index), *(1 if value else -1 for value in labels_of(f).values())] for f in faces]
    tables = {
        "list_attr_celeba.csv": [["image_id", *ATTRIBUTES], *labels],
        "list_eval_partition.csv": [
            ["image_id", "partition"],
            *zip([row[0] for row in labels], partitions, strict=True),
        ],
        FACES_FILE: [[json.dumps(face.to_dict(), separators=(",", ":"))] for face in faces],
        SETTINGS_FILE: [[json.dumps(plan.settings(), indent=2)]],
    }
    for name, rows in tables.items():
        (folder / name).write_text("".join(",".join(map(str, row)) + "\n" for row in rows))


def _draw_block(folder: Path, plan: Plan, start: int) -> list[Face]:
    faces = [plan.face(index) for index in range(start, min(start + BLOCK, len(plan)))]
    for face in faces:
        draw(face).save(folder / image_name(face.index), quality=JPEG_QUALITY)
    return faces
