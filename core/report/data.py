"""What a report shows, read from result trees: figures and files, nothing computed and nothing encoded yet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.files import read_yaml
from dime.core.metrics.metric import Features
from dime.core.metrics.mnac import attribute_changes
from dime.core.results import FRAME_KINDS, Pair, ResultTree, image_files
from dime.core.summary import INFO_LINES


@dataclass(frozen=True)
class ImageResult:
    """One image of an experiment.

    info: field of an ImageRecord -> its value; trees of the published code have six of them, those of other programs
    may have none. frames: the saved x_t and z_t in the order of the steps, of the kinds that were saved.
    """

    pair: Pair
    difference: Path | None
    info: dict[str, float]
    frames: dict[str, list[Path]]


@dataclass(frozen=True)
class Experiment:
    """One experiment: its images by id, and the files beside them that are there.

    evaluation: the JSON that evaluate.py left. attribute: the one explained, when the run tells it. classes: what the
    numbers of its decisions stand for, where each image is of one of several classes. changes: id -> (attribute, +1
    gained or -1 lost) as an oracle sees them; empty when none was asked.
    """

    tree: ResultTree
    images: dict[int, ImageResult]
    summary: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    plot: Path | None
    attribute: str | None
    classes: list[str] | None
    changes: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


def read_experiment(tree: ResultTree) -> Experiment:
    """Read everything but the pixels.

    Raises InputError for an experiment that is absent or empty, and names any other file that is not readable.
    """
    pairs = tree.pairs()
    if not pairs:
        raise InputError(f"{tree.results}: the experiment holds no counterfactual yet")
    config = _read_table(tree.report("config.yaml")) or {}
    names = config.get("classes", ATTRIBUTES)
    names = [str(name).replace("_", " ") for name in names] if isinstance(names, (list, tuple)) else []
    multiclass, query = config.get("decision") == "multiclass", config.get("query_label")
    named = not multiclass and type(query) is int and 0 <= query < len(names)
    plot = tree.report("CD.png")
    return Experiment(
        tree,
        {pair.id: _read_image(tree, pair) for pair in pairs},
        summary=_read_table(tree.report("summary.yaml")),
        evaluation=_read_table(tree.report("evaluation.json")),
        plot=plot if plot.is_file() else None,
        attribute=names[query] if named else None,
        classes=names if multiclass else None,
    )


def _read_image(tree: ResultTree, pair: Pair) -> ImageResult:
    """The known lines of an Info file, between which others may stand, and the files that are there."""
    info, known = {}, {line: name for name, line in INFO_LINES.items()}
    try:
        lines = pair.info.read_text(encoding="utf-8").splitlines() if pair.info.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{pair.info}: not readable ({error})") from None
    for key, _, value in (line.partition(": ") for line in lines):
        try:
            info |= {known[key]: float(value)} if key in known else {}
        except ValueError:
            raise InputError(f"{pair.info}: {key} is {value!r}, expected a number") from None
    difference = pair.counterfactual.parent.with_name("SM") / pair.counterfactual.name
    frames = {kind: image_files(tree.frame_folder(kind, pair.id)) for kind in FRAME_KINDS}
    return ImageResult(
        pair,
        difference if difference.is_file() else None,
        info,
        {kind: sorted(paths, key=lambda path: int(path.stem)) for kind, paths in frames.items() if paths},
    )


def _read_table(path: Path) -> dict[str, Any] | None:
    """A YAML or JSON file that holds a table; None when there is no such file."""
    if not path.exists():
        return None
    try:
        content = read_yaml(path) if path.suffix == ".yaml" else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable ({error}); mend it or remove it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no table; mend it or remove it")
    return content


def with_changes(experiment: Experiment, ids: Sequence[int], logits: Features) -> Experiment:
    """The experiment with the attributes that its counterfactuals of these ids change. logits: an oracle's, (N, 40).

    Raises InputError for an oracle of other attributes than CelebA's, or a damaged image.
    """
    pairs = [experiment.images[id].pair for id in ids if id in experiment.images]
    if not pairs:
        return experiment
    changes = attribute_changes(pairs, logits)
    if changes.shape[1] != len(ATTRIBUTES):
        raise InputError(f"the oracle has {changes.shape[1]} outputs, but CelebA has {len(ATTRIBUTES)} attributes")
    rows = zip(pairs, changes, strict=True)
    changed = {pair.id: [(int(a), int(row[a])) for a in row.nonzero()[0]] for pair, row in rows}
    return replace(experiment, changes=changed)
