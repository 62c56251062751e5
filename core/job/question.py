"""What is asked about a set of images: which decision of the classifier, its truth, and what to turn it into."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from dime.core.config import Config
from dime.core.datasets import Source
from dime.core.errors import InputError, nearest
from dime.core.folders import read_lines
from dime.core.guidance import Binary, Decision, MultiClass
from dime.core.networks.classifiers import output_column


@dataclass(frozen=True)
class Question:
    """A decision about the images of a source.

    query: what is explained, by index: an attribute of the source, or an output; -1 for classes. classes: their names,
    in the order of the outputs; empty for a binary decision. labels: (n,) the truth about every image: 0 or 1, or a
    class; None: unknown. target: id -> what its decision is to become; None: the opposite, or the runner-up.
    fixed_target: the one class that all are to become, if it is one.
    """

    decision: Decision
    query: int
    classes: Sequence[str] = ()
    labels: np.ndarray | None = None
    target: Callable[[int], int] | None = None
    fixed_target: int | None = None

    def select(self, n: int, target_label: int, limit: int) -> list[int]:
        """The ids that a run explains, all its chunks together: filter by label, then cut to `limit`.

        target_label 0 or 1 keeps the images that do not carry it yet (label = 1 - target_label); -1 keeps all. Images
        whose label is the class that all are to become are left out.
        """
        if target_label != -1 and (self.labels is None or self.classes):
            raise InputError(f"--target_label {target_label}: needs labels 0 and 1; leave it out")
        keep = np.ones(n, dtype=bool)
        if target_label != -1:
            keep = self.labels == 1 - target_label
        elif self.fixed_target is not None and self.labels is not None:
            keep = self.labels != self.fixed_target
        ids = np.flatnonzero(keep).tolist()[:limit]
        if not ids:
            raise InputError(f"no image is left to explain (of {n}): see --target_label and --target")
        return ids


def ask(config: Config, source: Source, classifier: nn.Module) -> Question:
    """The question of a command. classifier: as load_classifier gives it, with `names` and `num_outputs`.

    Raises InputError for a query or target that nothing is called, and for classes of source and classifier that do
    not fit together.
    """
    own, outputs = classifier.names, classifier.num_outputs
    if config.class_names:
        own = read_lines(config.class_names)
        if twice := next((name for name in own if own.count(name) > 1), None):
            raise InputError(f"--class_names {config.class_names}: {twice!r} is there twice")
    if own is not None and len(own) != outputs:
        raise InputError(f"{config.class_names}: {len(own)} names, but {config.classifier_path} has {outputs} outputs")
    if config.decision == "binary":
        return _ask_binary(config, source, classifier, own)
    if outputs < 2:
        raise InputError(f"--decision multiclass: {config.classifier_path} has one output; give --decision binary")
    if own is None and source.exclusive and len(source.names) == outputs:
        own = source.names
    names = list(own or map(str, range(outputs)))
    labels = source.targets(None) if source.exclusive else None
    if labels is not None:
        unknown = next((name for name in source.names if name not in names), None)
        if unknown is not None:
            raise InputError(
                f"{config.data_dir}: its class {unknown!r} is none of the classifier's{nearest(unknown, names)}; "
                "name its outputs as the folder does with --class_names FILE, one a line"
            )
        labels = np.array([names.index(name) for name in source.names])[labels]
    target, fixed = None, None
    if config.target in ("", "runner-up"):
        pass
    elif config.target not in names and Path(config.target).is_file():
        target = _targets_in(Path(config.target), source, names)
    else:
        fixed = index_of(config.target, names, "--target")
        target = lambda id: fixed  # noqa: E731
    return Question(MultiClass(config.use_logits), -1, names, labels, target, fixed)


def _ask_binary(config: Config, source: Source, classifier: nn.Module, own: Sequence[str] | None) -> Question:
    outputs = classifier.num_outputs
    single = outputs == 1
    if config.query_label == -1 and not single:
        raise InputError("--query_label is missing: what is explained, for example 31 or Smiling")
    query = 0 if config.query_label == -1 else config.query_label
    if not source.exclusive and source.names and not (single and config.query_label == -1):
        query = index_of(query, source.names, "--query_label")  # the source's own numbers, as published
        output = 0 if single else output_column(classifier, query, config.classifier_path, source.names[query], own)
        return Question(Binary(output, config.use_logits), query, labels=source.targets(query))
    names = list(own or [])
    output = index_of(query, names or list(map(str, range(outputs))), "--query_label")
    labels = source.targets(None) if source.exclusive else None
    if labels is not None and names and names[output] in source.names:
        labels = (labels == source.names.index(names[output])).astype(int)
    elif labels is not None and not (single and len(source.names) == 2):
        raise InputError(
            f"--query_label {config.query_label}: which of the folder's classes ({', '.join(source.names[:5])}, ...) "
            "is meant is unknown; name the classifier's outputs with --class_names, or give --decision multiclass"
        )
    return Question(Binary(output, config.use_logits), output, labels=labels)


def _targets_in(path: Path, source: Source, names: Sequence[str]) -> Callable[[int], int]:
    """id -> class, from a csv of file or id, class."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    known: dict[str, int] = {}
    for number, row in enumerate(rows):
        if len(row) != 2:
            raise InputError(f"{path}: line {number + 1} has {len(row)} columns, expected file or id, class")
        if number == 0 and row[1] not in names and not row[1].isdecimal():
            continue  # a header
        known[row[0]] = index_of(row[1].strip(), names, f"{path}: line {number + 1}")

    def target(id: int) -> int:
        for key in (str(id), source.relative_name(id)):
            if key in known:
                return known[key]
        raise InputError(f"{path}: no class for image {id} ({source.relative_name(id)})")

    return target


def index_of(value: int | str, names: Sequence[str], flag: str) -> int:
    """The place of a name among names, or a place given as a number; an InputError offers the nearest names."""
    text = str(value)
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    span = f"give 0 to {len(names) - 1} or a name"
    raise InputError(f"{flag} {text}: unknown{nearest(text, names)}; {span} such as {names[min(len(names) - 1, 31)]}")
