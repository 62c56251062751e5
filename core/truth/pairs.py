"""The truth about a folder of images of two classes, beside which lies another with their true counterfactuals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dime.core.datasets import read_image
from dime.core.errors import InputError
from dime.core.images import input_to_uint8, to_hwc
from dime.core.truth.world import Known, Task, World

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
