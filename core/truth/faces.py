"""The truth about drawn faces: the picture that a perfect explainer would have written, and where it differs.

It passes through all that the run's pictures pass through: the JPEG file of the data set, resizing and cropping to the
network's size, and the tree's own image format.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from dime.core.datasets import ATTRIBUTES
from dime.core.drawn_faces import DRAWN, Face, counterfactual, draw
from dime.core.drawn_faces.drawing import changed_pixels
from dime.core.drawn_faces.face import require_drawn
from dime.core.drawn_faces.folder import JPEG_QUALITY, image_name, load_faces
from dime.core.errors import InputError
from dime.core.images import input_to_uint8, reopened, to_hwc
from dime.core.truth.world import Known, Task, World


class DrawnFaces(World):
    """Drawn faces, each of which can be drawn with one attribute turned over."""

    names = DRAWN

    def __init__(self, task: Task) -> None:
        self.query = ATTRIBUTES[task.query_label]
        require_drawn(self.query)
        super().__init__(task)
        self.faces = {image_name(index): face for index, face in enumerate(load_faces(self.data_dir))}
        self._drawn = lru_cache(1000)(self._draw)

    def face(self, id: int) -> Face:
        """The face that the run calls by this id."""
        name = Path(self.name_of(id)).name
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
        as_stored = reopened(self._drawn(id, turned), ".jpg", quality=JPEG_QUALITY)
        return to_hwc(input_to_uint8(self.source.transform(as_stored)))

    def know(self, id: int) -> Known:
        """Draw it twice."""
        mask = Image.fromarray(changed_pixels(self._drawn(id), self._drawn(id, self.query))).convert("RGB")
        region = self.source.transform(mask)[0].numpy() > -1  # a pixel that any changed one enters
        has, other = (_attributes(face) for face in (self.face(id), counterfactual(self.face(id), self.query)))
        return Known(self.picture(id), self.picture(id, self.query), region, has, has != other)

    def _draw(self, id: int, turned: str = "") -> Image.Image:
        return draw(counterfactual(self.face(id), turned) if turned else self.face(id))


def _attributes(face: Face) -> np.ndarray:
    """Which of DRAWN a face has, (A,) bool."""
    return np.array([name in face.has for name in DRAWN])
