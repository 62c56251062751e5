"""What a report shows, read from result trees: figures and files, nothing computed and nothing encoded yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.files import read_yaml
from dime.core.metrics.metric import Features
from dime.core.metrics.mnac import decide
from dime.core.results import FRAME_KINDS, Pair, ResultTree, image_files
from dime.core.summary import INFO_LINES

Info = dict[str, float]
"""Field of an ImageRecord -> its value, for the lines that an Info file has."""


@dataclass(frozen=True)
class ImageResult:
    """One image of an experiment.

    info: what its text says; trees of the published code have six of the lines, those of other programs may have none.
    frames: the saved x_t and z_t in the order of the steps, of the kinds that were saved.
    """

    pair: Pair
    difference: Path | None
    info: Info
    frames: dict[str, list[Path]]


@dataclass(frozen=True)
class Experiment:
    """One experiment: its images by id, and the files beside them that are there.

    evaluation: the JSON that evaluate.py left. attribute: the one explained, when the run tells it. classes: what the
    numbers of its decisions stand for, where each image is of one of several classes.
    """

    tree: ResultTree
    images: dict[int, ImageResult]
    summary: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    plot: Path | None
    attribute: str | None
    classes: list[str] | None
    changes: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Id -> (attribute, +1 gained or -1 lost) as an oracle sees them; empty when none was asked."""


def read_experiment(tree: ResultTree) -> Experiment:
    """Read everything but the pixels.

    Raises InputError for an experiment that is absent or empty, and names any other file that is not readable.
    """
    pairs = tree.pairs()
    if not pairs:
        raise InputError(f"{tree.results}: the experiment holds no counterfactual yet")
    config = _read_table(tree.report("config.yaml"), read_yaml) or {}
    attribute, classes = _decision(config)
    plot = tree.report("CD.png")
    return Experiment(
        tree,
        {pair.id: _image_result(tree, pair) for pair in pairs},
        summary=_read_table(tree.report("summary.yaml"), read_yaml),
        evaluation=_read_table(tree.report("evaluation.json"), lambda path: json.loads(_read_text(path))),
        plot=plot if plot.is_file() else None,
        attribute=attribute,
        classes=classes,
    )


def _decision(config: dict[str, Any]) -> tuple[str | None, list[str] | None]:
    """The attribute, or the classes, that a run's configuration says were explained."""
    names = config.get("classes", ATTRIBUTES)
    names = [str(name).replace("_", " ") for name in names] if isinstance(names, (list, tuple)) else []
    if config.get("decision") == "multiclass":
        return None, names
    query = config.get("query_label")
    return (names[query] if type(query) is int and 0 <= query < len(names) else None), None


def _image_result(tree: ResultTree, pair: Pair) -> ImageResult:
    difference = pair.counterfactual.parent.with_name("SM") / pair.counterfactual.name
    frames = {
        kind: sorted(image_files(tree.frame_folder(kind, pair.id)), key=lambda path: int(path.stem))
        for kind in FRAME_KINDS
    }
    return ImageResult(
        pair,
        difference if difference.is_file() else None,
        read_info(pair.info) if pair.info.is_file() else {},
        {kind: sorted(paths, key=lambda path: int(path.stem)) for kind, paths in frames.items() if paths},
    )


def read_info(path: Path) -> Info:
    """The known lines of an Info file; others may stand between them. Raises InputError for one that is no number."""
    names = {line: name for name, line in INFO_LINES.items()}
    values: Info = {}
    for line in _read_text(path).splitlines():
        key, _, value = line.partition(": ")
        if key in names:
            try:
                values[names[key]] = float(value)
            except ValueError:
                raise InputError(f"{path}: {key} is {value!r}, expected a number") from None
    return values


def _read_table(path: Path, read: Callable[[Path], Any]) -> dict[str, Any] | None:
    """A YAML or JSON file that holds a table; None when there is no such file."""
    if not path.exists():
        return None
    try:
        content = read(path)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable ({error}); mend it or remove it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no table; mend it or remove it")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable ({error})") from None


def attribute_changes(images: Sequence[ImageResult], logits: Features) -> dict[int, list[tuple[int, int]]]:
    """Id -> which attributes the counterfactual has gained (+1) or lost (-1). logits: an oracle's, (N, 40).

    Raises InputError for an oracle of other attributes than CelebA's, or a damaged image.
    """
    if not images:
        return {}
    before = decide(logits([image.pair.original for image in images]))
    after = decide(logits([image.pair.counterfactual for image in images]))
    if before.shape[1] != len(ATTRIBUTES):
        raise InputError(f"the oracle has {before.shape[1]} outputs, but CelebA has {len(ATTRIBUTES)} attributes")
    changes = after - before
    return {
        image.pair.id: [(int(a), int(row[a])) for a in row.nonzero()[0]]
        for image, row in zip(images, changes, strict=True)
    }
