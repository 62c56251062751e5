"""The truth about drawn faces: the picture that a perfect explainer would have written, and where it differs.

It passes through all that the run's pictures pass through: the JPEG file of the data set, resizing and cropping to the
network's size, and the tree's own image format. And: does an explanation reveal a planted shortcut?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dime.core.datasets import ATTRIBUTES
from dime.core.drawn_faces import DRAWN, Face, counterfactual, draw
from dime.core.drawn_faces.drawing import changed_pixels
from dime.core.drawn_faces.face import require_drawn
from dime.core.drawn_faces.folder import JPEG_QUALITY, image_name, load_faces
from dime.core.errors import InputError
from dime.core.images import input_to_uint8, reopened, to_hwc
from dime.core.metrics.cd import correlation_difference, correlations
from dime.core.metrics.features import Machine, batches
from dime.core.metrics.metric import Context, recorded_classifier
from dime.core.results import ResultTree
from dime.core.truth.cases import Cases, outputs_on
from dime.core.truth.rows import Row
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
        mask = Image.fromarray(changed_pixels(self._drawn(id, ""), self._drawn(id, self.query))).convert("RGB")
        region = self.source.transform(mask)[0].numpy() > -1  # a pixel that any changed one enters
        has, other = (_attributes(face) for face in (self.face(id), counterfactual(self.face(id), self.query)))
        return Known(self.picture(id), self.picture(id, self.query), region, has, has != other)

    def _draw(self, id: int, turned: str) -> Image.Image:
        return draw(counterfactual(self.face(id), turned) if turned else self.face(id))


def _attributes(face: Face) -> np.ndarray:
    """Which of DRAWN a face has, (A,) bool."""
    return np.array([name in face.has for name in DRAWN])


@dataclass(frozen=True)
class Shortcut:
    """An attribute that a classifier may use in the place of the query; InputError for one that is not drawn.

    What counterfactuals change besides the attribute asked for stands beside what the classifier truly relies on: how
    its decision turns when that alone is changed.
    """

    query: str
    name: str

    def __post_init__(self) -> None:
        require_drawn(self.name)
        if self.name == self.query:
            raise InputError(f"--shortcut {self.name}: is the attribute explained; name another one")

    @property
    def row_names(self) -> tuple[str, ...]:
        """The rows of the table: what the explanations tell, then what is true; docs/truth.md says what they mean."""
        told = ("CD", f"{self.name}: correlation of changes", f"{self.name}: moves along")
        turned = (f"classifier: turned by {name} alone" for name in (self.query, self.name))
        return (*told, *turned, f"classifier: reliance on {self.name}")

    def told(self, truth: DrawnFaces, known: np.ndarray) -> tuple[Row, ...]:
        """What the counterfactuals that reached their target say.

        known: (A,) bool, the attributes that the oracle decides on; CD is taken over those. An image counts for "moves
        along" if its input is not yet at the shortcut's side of the target.
        """
        own = truth.names.index(self.name)
        query, column = (int(known[: truth.names.index(name)].sum()) for name in (self.query, self.name))
        labels = truth.labels()[:, known]

        def cd(changes: np.ndarray) -> float:
            value = correlation_difference(labels, changes, query).value
            return np.nan if value is None else value

        def correlation(changes: np.ndarray) -> float:
            with np.errstate(invalid="ignore"):
                return float(np.nan_to_num(correlations(changes, query)[column]))

        def changes(c: Cases) -> np.ndarray:
            return (c.cf_seen - c.seen)[:, known]

        def along(c: Cases) -> np.ndarray:
            return np.where(c.seen[:, own] != c.target, c.cf_seen[:, own] == c.target, np.nan)

        return (
            Row(self.row_names[0], changes, cd, "flipped", interval=False),
            Row(self.row_names[1], changes, correlation, "flipped"),
            Row(self.row_names[2], along, among="flipped"),
        )

    def true(
        self, trees: Sequence[ResultTree], ids: Sequence[int], truth: DrawnFaces, machine: Machine
    ) -> tuple[Row, ...]:
        """What the classifier of some runs goes by: its decisions on images with one attribute turned over.

        ids: in order. Raises InputError where the runs do not explain one classifier, or it is not there.
        """
        if len({recorded_classifier(tree) for tree in trees}) != 1:
            raise InputError(f"{trees[0].results}: its seeds explain different classifiers")
        network, decision = Context(machine).explained(trees[0])

        def logits_on(turned: str) -> np.ndarray:
            """The logits (N, 1) of the query on the images, with an attribute turned over ('': as they are)."""
            pictures = batches(ids, lambda id: truth.picture(id, turned), machine)
            return torch.cat([outputs_on(np.stack(part), network, machine) for part in pictures])[:, [decision.output]]

        names = (self.query, self.name)
        before, after = logits_on(""), torch.cat([logits_on(name) for name in names], dim=1)
        before, after = before.double().numpy(), after.double().numpy()
        had = np.stack([truth.has(id)[[truth.names.index(name) for name in names]] for id in ids])
        effects = np.where(had, -1, 1) * (after - before)  # (N, 2), of giving each of the two
        turned = (after > 0) != (before > 0)

        def reliance(effects: np.ndarray) -> float:
            query, shortcut = effects.mean(axis=0)
            return float(shortcut / max(abs(shortcut) + abs(query), np.finfo(float).tiny))

        *_, by_query, by_shortcut, relied_on = self.row_names
        return (
            Row(by_query, lambda c: turned[np.searchsorted(ids, c.ids), 0], among="all"),
            Row(by_shortcut, lambda c: turned[np.searchsorted(ids, c.ids), 1], among="all"),
            Row(relied_on, lambda c: effects[np.searchsorted(ids, c.ids)], reliance, "all"),
        )
