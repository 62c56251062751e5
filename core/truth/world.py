"""What the truth benchmark knows of the images that runs explain: what a perfect explainer would have made of each.

A world of your own is a subclass of World that says what it knows of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_type_hints

import numpy as np

from dime.core.datasets import ATTRIBUTES, open_dataset, read_image
from dime.core.errors import InputError
from dime.core.images import input_to_uint8, reopened, to_hwc
from dime.core.job.writer import is_stored_as
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
    def of(cls, tree: ResultTree, data_dir: str | None = None) -> "Task":
        """The task of an experiment; data_dir: where the data set lies now, if not there any more.

        Raises InputError where the experiment's configuration lacks a part, or chunks disagree.
        """
        tree.pairs()  # that there is an experiment at all
        found = {flag: tree.recorded(flag) for flag in get_type_hints(cls)}
        found |= {} if data_dir is None else {"data_dir": {data_dir}}
        for flag, kind in get_type_hints(cls).items():
            if len(found[flag]) != 1 or not all(isinstance(value, kind) for value in found[flag]):
                what = "different values of" if len(found[flag]) > 1 else "no readable config.yaml with"
                expected = "the truth benchmark needs an experiment as main.py left it"
                raise InputError(f"{tree.results}: {what} {flag}; {expected}")
        return cls(*(value for (value,) in found.values()))

    def __str__(self) -> str:
        part = "train" if self.use_train else "val"
        query = "the classes" if self.query_label < 0 else ATTRIBUTES[self.query_label]
        return f"{query} at {self.image_size} pixels on {self.dataset} ({part}) of {self.data_dir or '.'}"


class Known(NamedTuple):
    """What is known of an image: picture, truth: (H, W, 3), 8-bit, it and its true counterfactual as a network sees
    them; region, has, expected: as in Case.
    """

    picture: np.ndarray
    truth: np.ndarray
    region: np.ndarray
    has: np.ndarray
    expected: np.ndarray


class World(ABC):
    """Images that a task explained, and their true counterfactuals.

    names: the A attributes that a picture may show. query: the one that was explained. exclusive: whether an oracle's
    outputs are classes, of which a picture shows one. known: id -> what is known of the image that the run calls so;
    what one experiment needs, all do. Raises InputError where the images are not there, or of another kind; and
    everywhere for an id that the data set does not have.
    """

    names: Sequence[str]
    query: str
    exclusive = False

    def __init__(self, task: Task) -> None:
        self.data_dir = task.data_dir or "."
        if not Path(self.data_dir).is_dir():
            raise InputError(
                f"{task.data_dir}: no such folder, but the run explained images of it; give its place as --celeba-path"
            )
        self.source = open_dataset(task.dataset, task.data_dir, task.image_size, task.use_train)
        self.known = cache(self.know)

    @abstractmethod
    def know(self, id: int) -> Known:
        """Find out what is known of an image."""

    def name_of(self, id: int) -> str:
        """What an image is called in its folder."""
        if id >= len(self.source):
            raise InputError(
                f"{self.data_dir}: has {len(self.source)} images to explain, but the experiment holds number {id}; "
                "give the folder that the run explained as --celeba-path"
            )
        return self.source.relative_name(id)

    def case(self, pair: Pair) -> Case:
        """A pair of files with its truth. Raises InputError when the tree's input is not the image it should be."""
        known = self.known(pair.id)
        x, cf = (np.asarray(read_image(str(path))) for path in (pair.original, pair.counterfactual))
        if not is_stored_as(x, known.picture, pair.original.suffix):
            raise InputError(
                f"{pair.original}: is not {self.name_of(pair.id)} of {self.data_dir} as it is today; "
                "give the folder that the run explained as --celeba-path, or make it and run again"
            )
        truth = np.asarray(reopened(known.truth, pair.counterfactual.suffix))
        return Case(pair, x, cf, truth, known.region, known.has, known.expected)


TRUTH_FOLDER = "truth"


class FolderPairs(World):
    """Images in folders of two classes. The folder `truth` beside the one that was explained holds, under the same
    names, each of them as it would be, were it of the other class. The region is where the two differ.

    seen: what oracles may see in a picture, the two classes among it; none of the others is meant to change.
    """

    exclusive = True

    def __init__(self, task: Task, seen: Sequence[str]) -> None:
        super().__init__(task)
        classes = self.source.names
        if len(classes) != 2:
            raise InputError(f"{self.data_dir}: holds {len(classes)} classes, but true counterfactuals are of two")
        self.names, self.query = list(dict.fromkeys([*classes, *seen])), classes[1]
        self.truths = Path(self.data_dir).resolve().parent / TRUTH_FOLDER
        if not self.truths.is_dir():
            raise InputError(f"{self.truths}: no such folder; the true counterfactuals are looked for there")

    def know(self, id: int) -> Known:
        """Read it and its counterpart."""
        paths = Path(self.data_dir, self.name_of(id)), self.truths / self.name_of(id)
        picture, truth = (to_hwc(input_to_uint8(self.source.transform(read_image(str(path))))) for path in paths)
        label = self.names[int(self.source.conditions(id))]
        return Known(
            picture,
            truth,
            region=(picture != truth).any(axis=-1),
            has=np.array([name == label for name in self.names]),
            expected=np.array([name in self.source.names for name in self.names]),
        )
