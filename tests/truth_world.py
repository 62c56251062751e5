"""Drawn faces and result trees whose counterfactuals are known, for the truth benchmark."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from dime.core.datasets import ATTRIBUTES, CelebA, image_transform
from dime.core.drawn_faces import DRAWN, counterfactual, draw
from dime.core.drawn_faces.folder import Plan, write_folder
from dime.core.images import input_to_uint8, to_hwc
from dime.core.job.writer import write_image
from dime.core.results import ResultTree
from dime.core.training.classifier import to_file
from dime.models.small_cnn import SmallCNN

SEED = 5
SIZE = 32
IMAGES = 6
QUERY = "Smiling"

Explain = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Input, true counterfactual (H, W, 3), 8-bit, and id -> a counterfactual."""


def make_faces(folder: Path, seed: int = SEED) -> Path:
    """A data set of drawn faces, in the val partition."""
    write_folder(folder, Plan(seed, num_val=IMAGES))
    return folder


def make_network(path: Path, names: Sequence[str] = DRAWN, seed: int = 0) -> Path:
    """A tiny classifier with drawn weights that decides on some attributes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SmallCNN(len(names), widths=(4, 4, 4, 4))
    torch.save(to_file(network, names), path)
    return path


@functools.cache
def true_picture(id: int) -> np.ndarray:
    """The true counterfactual of a face as a run would write it, (SIZE, SIZE, 3)."""
    file = io.BytesIO()
    draw(counterfactual(Plan(SEED, num_val=IMAGES).face(id), QUERY)).save(file, "JPEG", quality=95)
    return to_hwc(input_to_uint8(image_transform(SIZE)(Image.open(file))))


def explain_faces(
    output_path: Path,
    name: str,
    data: Path,
    explain: Explain,
    image_format: str = "png",
    correct: Callable[[int], bool] = lambda id: True,
    flipped: Callable[[int], bool] = lambda id: True,
    **config: object,
) -> ResultTree:
    """A result tree as main.py leaves it, but with counterfactuals of one's own."""
    tree = ResultTree(output_path, name, image_format)
    tree.create()
    dataset = CelebA(str(data), "val", SIZE)
    for id in range(IMAGES):
        x = to_hwc(input_to_uint8(dataset[id].image))
        write_image(tree.original(id, correct(id)), x)
        write_image(tree.image("CF", id, correct(id), flipped(id)), explain(x, true_picture(id), id))
    flags = {
        "query_label": ATTRIBUTES.index(QUERY),
        "image_size": SIZE,
        "dataset": "CelebA",
        "use_train": False,
        "data_dir": str(data),
    }
    tree.report("config.yaml").write_text(yaml.safe_dump(flags | config))
    return tree
