"""The truth about drawn faces: the picture that a perfect explainer would have written, and where it differs.

It passes through all that the run's pictures pass through: the JPEG file of the data set, resizing and cropping to the
network's size, and the tree's own image format.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import numpy as np
from PIL import Image

from dime.core.datasets import ATTRIBUTES, image_transform, open_dataset, read_image
from dime.core.drawn_faces import DRAWN, Face, counterfactual, draw
from dime.core.drawn_faces.drawing import changed_pixels
from dime.core.drawn_faces.face import require_drawn
from dime.core.drawn_faces.folder import JPEG_QUALITY, image_name, load_faces
from dime.core.errors import InputError
from dime.core.images import input_to_uint8, to_hwc
from dime.core.job.writer import SAME_IMAGE_TOLERANCE, encoded
from dime.core.results import Pair, ResultTree
from dime.core.truth.cases import Case


@dataclass(frozen=True)
class Task:
    """What a run explained, as its config.yaml says; fields are flags of main.py."""

    query_label: int
    image_size: int
    dataset: str
    use_train: bool
    data_dir: str

    @classmethod
    def of(cls, tree: ResultTree, data_dir: str | None = None) -> Task:
        """The task of an experiment; data_dir: where the data set lies now, if not there any more.

        Raises InputError where the experiment's configuration lacks a part, or chunks disagree.
        """
        tree.pairs()  # that there is an experiment at all
        found = {flag: tree.recorded(flag) for flag in get_type_hints(cls)}
        found |= {} if data_dir is None else {"data_dir": {data_dir}}
        for flag, kind in get_type_hints(cls).items():
            if len(found[flag]) != 1 or not all(isinstance(value, kind) for value in found[flag]):
                what = "different values of" if len(found[flag]) > 1 else "no readable config.yaml with"
                raise InputError(
                    f"{tree.results}: {what} {flag}; the truth benchmark needs an experiment as main.py left it"
                )
        return cls(**{flag: values.pop() for flag, values in found.items()})

    def __str__(self) -> str:
        part = "train" if self.use_train else "val"
        what = f"{ATTRIBUTES[self.query_label]} at {self.image_size} pixels"
        return f"{what} on {self.dataset} ({part}) of {self.data_dir or '.'}"


class DrawnFaces:
    """What is known of a task's images, each of which can be drawn with one attribute turned over.

    names: the A attributes that a picture may show. query: the one that was explained. Raises InputError when the
    images are no drawn faces, or lie elsewhere; and everywhere for an id that the data set does not have.
    """

    names = DRAWN

    def __init__(self, task: Task) -> None:
        self.data_dir, self.query = task.data_dir or ".", ATTRIBUTES[task.query_label]
        require_drawn(self.query)
        if not Path(self.data_dir).is_dir():
            raise InputError(
                f"{task.data_dir}: no such folder, but the run explained images of it; give its place as --celeba-path"
            )
        self.faces = {image_name(index): face for index, face in enumerate(load_faces(task.data_dir))}
        table = open_dataset(task.dataset, task.data_dir, task.image_size, task.use_train).table
        self.files = [Path(name).name for name in table.iloc[:, 0]]
        self.transform = image_transform(task.image_size)
        self._known, self._turned = cache(self._know), cache(self._turn)  # what one experiment needs, all do

    def face(self, id: int) -> Face:
        """The face that the run calls by this id."""
        if id >= len(self.files):
            raise InputError(
                f"{self.data_dir}: has {len(self.files)} images to explain, but the experiment holds number {id}; "
                "give the folder that the run explained as --celeba-path"
            )
        name = self.files[id]
        if name not in self.faces:
            raise InputError(f"{self.data_dir}: its faces.jsonl does not describe {name}; draw the faces again")
        return self.faces[name]

    def has(self, id: int) -> np.ndarray:
        """Which attributes the image has, (A,) bool."""
        return _attributes(self.face(id))

    def labels(self) -> np.ndarray:
        """Labels (M, A), 0 or 1, of the whole data set."""
        return np.array([_attributes(face) for face in self.faces.values()], dtype=int)

    def picture(self, id: int, turned: str = "") -> np.ndarray:
        """The image as a network sees it, (H, W, 3), 8-bit; with one attribute turned over, if one is named."""
        return self._known(id)[turned == self.query] if turned in ("", self.query) else self._turned(id, turned)

    def case(self, pair: Pair) -> Case:
        """A pair of files with its truth. Raises InputError when the tree's input is not the image it should be."""
        picture, truth, region, expected = self._known(pair.id)
        x, cf = (np.asarray(read_image(str(path))) for path in (pair.original, pair.counterfactual))
        ours = _as_file(picture, pair.original.suffix)
        if x.shape != ours.shape or np.abs(x.astype(float) - ours).mean() > SAME_IMAGE_TOLERANCE:
            raise InputError(
                f"{pair.original}: is not {self.files[pair.id]} of {self.data_dir} as it is drawn "
                "today; give the folder that the run explained as --celeba-path, or draw it and run again"
            )
        truth = _as_file(truth, pair.counterfactual.suffix)
        return Case(pair, x, cf, truth, region, self.has(pair.id), expected)

    def _know(self, id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Picture, true counterfactual, region and the attributes that change, of one image."""
        face, other = self.face(id), counterfactual(self.face(id), self.query)
        drawings = draw(face), draw(other)
        mask = Image.fromarray(changed_pixels(*drawings)).convert("RGB")
        region = self.transform(mask)[0].numpy() > -1  # a pixel that any changed one enters
        return *map(self._as_seen, drawings), region, _attributes(face) != _attributes(other)

    def _turn(self, id: int, turned: str) -> np.ndarray:
        return self._as_seen(draw(counterfactual(self.face(id), turned)))

    def _as_seen(self, drawing: Image.Image) -> np.ndarray:
        buffer = io.BytesIO()
        drawing.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return to_hwc(input_to_uint8(self.transform(Image.open(buffer).convert("RGB"))))


def _attributes(face: Face) -> np.ndarray:
    """Which of DRAWN a face has, (A,) bool."""
    return np.array([name in face.has for name in DRAWN])


def _as_file(picture: np.ndarray, suffix: str) -> np.ndarray:
    """A picture as it comes back from a file of the tree."""
    return np.asarray(Image.open(io.BytesIO(encoded(picture, suffix))).convert("RGB"))
