"""What is true of the images that a run explained, when they are drawn faces: the picture that a perfect explainer
would have written, and where it differs from the input.

Pictures are 8-bit, (H, W, 3) in grey levels 0 to 255, and have passed through all that the run's pictures pass
through: the JPEG file of the data set, resizing and cropping to the network's size, and the tree's own image format.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dime.core.datasets import ATTRIBUTES, image_transform, open_dataset, read_image
from dime.core.drawn_faces import DRAWN, Face, counterfactual, draw, labels_of
from dime.core.drawn_faces.attributes import require_drawn
from dime.core.drawn_faces.drawing import changed_pixels
from dime.core.drawn_faces.folder import JPEG_QUALITY, image_name, load_faces
from dime.core.errors import InputError
from dime.core.images import input_to_uint8, to_hwc
from dime.core.job.writer import SAME_IMAGE_TOLERANCE, encoded
from dime.core.results import Pair, ResultTree
from dime.core.run_config import recorded

FLAGS = {"query_label": int, "image_size": int, "dataset": str, "use_train": bool, "data_dir": str}


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
        values = {flag: recorded(tree, flag) for flag in FLAGS}
        if data_dir is not None:
            values["data_dir"] = {data_dir}
        for flag, kind in FLAGS.items():
            found = values[flag]
            if len(found) != 1 or not all(isinstance(value, kind) for value in found):
                what = f"{len(found)} different values of" if len(found) > 1 else "no readable config.yaml with"
                raise InputError(
                    f"{tree.results}: {what} {flag}; the truth benchmark needs an experiment as main.py left it"
                )
        return cls(**{flag: found.pop() for flag, found in values.items()})


@dataclass(frozen=True)
class Case:
    """An explained image with its truth; pictures (H, W, 3), 8-bit.

    x, cf: the tree's input and counterfactual. truth: the true counterfactual. region: (H, W) bool, the pixels that it
    may change; empty where the attribute does not show (bangs below a hat). expected: (A,) bool, which of DRAWN the
    true counterfactual changes; more than the query where attributes exclude each other.
    """

    pair: Pair
    x: np.ndarray
    cf: np.ndarray
    truth: np.ndarray
    region: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class _Truth:
    """What a case has from its face alone."""

    region: np.ndarray
    expected: np.ndarray


class DrawnFaces:
    """The faces behind the images of a task. Raises InputError when they are not drawn faces, or lie elsewhere."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.query = ATTRIBUTES[task.query_label]
        require_drawn(self.query)
        if not Path(task.data_dir or ".").is_dir():
            raise InputError(
                f"{task.data_dir}: no such folder, but the run explained images of it; give its place as --celeba-path"
            )
        faces = load_faces(task.data_dir)
        self.by_name = {image_name(index): face for index, face in enumerate(faces)}
        self.names = open_dataset(task.dataset, task.data_dir, task.image_size, task.use_train).table["image_id"]
        self.transform = image_transform(task.image_size)
        self._truths: dict[int, _Truth] = {}
        self._pictures: dict[tuple[int, str], np.ndarray] = {}

    def face(self, id: int) -> Face:
        """The face that the run calls by this id. Raises InputError for an id that the data set does not have."""
        if id >= len(self.names):
            raise InputError(
                f"{self.task.data_dir}: has {len(self.names)} images to explain, but the experiment holds number {id}; "
                "give the folder that the run explained as --celeba-path"
            )
        name = self.names.iat[id]
        if name not in self.by_name:
            raise InputError(f"{self.task.data_dir}: its faces.jsonl does not describe {name}; draw the faces again")
        return self.by_name[name]

    def labels(self) -> np.ndarray:
        """Labels (M, A), 0 or 1, of all faces of the folder; columns as DRAWN."""
        return np.array([has(face) for face in self.by_name.values()], dtype=int)

    def picture(self, id: int, name: str = "") -> np.ndarray:
        """What a network sees of a face, (H, W, 3) 8-bit; with one attribute turned over, if one is named."""
        if (id, name) not in self._pictures:
            face = self.face(id)
            self._pictures[id, name] = self._developed(draw(counterfactual(face, name) if name else face))
        return self._pictures[id, name]

    def case(self, pair: Pair) -> Case:
        """A pair with its truth. Raises InputError when the tree's input is not the face that it should be."""
        if pair.id not in self._truths:
            self._truths[pair.id] = self._truth(pair.id)
        truth = self._truths[pair.id]
        x, cf = (np.asarray(read_image(str(path))) for path in (pair.original, pair.counterfactual))
        ours = _as_file(self.picture(pair.id), pair.original.suffix)
        if x.shape != ours.shape or np.abs(x.astype(float) - ours).mean() > SAME_IMAGE_TOLERANCE:
            raise InputError(
                f"{pair.original}: is not {self.names.iat[pair.id]} of {self.task.data_dir or '.'} as it is drawn "
                "today; give the folder that the run explained as --celeba-path, or draw it and run again"
            )
        true_picture = _as_file(self.picture(pair.id, self.query), pair.counterfactual.suffix)
        return Case(pair, x, cf, true_picture, truth.region, truth.expected)

    def _truth(self, id: int) -> _Truth:
        face = self.face(id)
        other = counterfactual(face, self.query)
        drawings = draw(face), draw(other)
        for name, drawing in zip(("", self.query), drawings, strict=True):
            self._pictures[id, name] = self._developed(drawing)
        mask = Image.fromarray(changed_pixels(*drawings)).convert("RGB")
        region = self.transform(mask)[0].numpy() > -1  # a pixel that any changed one enters
        return _Truth(region, has(face) != has(other))

    def _developed(self, drawing: Image.Image) -> np.ndarray:
        buffer = io.BytesIO()
        drawing.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return to_hwc(input_to_uint8(self.transform(Image.open(buffer).convert("RGB"))))


def has(face: Face) -> np.ndarray:
    """Which of DRAWN a face has, (A,) bool."""
    labels = labels_of(face)
    return np.array([labels[name] for name in DRAWN])


def _as_file(picture: np.ndarray, suffix: str) -> np.ndarray:
    """A picture as it comes back from a file of the tree."""
    return np.asarray(Image.open(io.BytesIO(encoded(picture, suffix))).convert("RGB"))
