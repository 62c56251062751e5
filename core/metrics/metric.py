"""What a metric is, which images it looks at, and what it may use: the frame of every file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError, UndefinedError
from dime.core.guidance import Binary, Decision, MultiClass
from dime.core.metrics.features import ImageFeatures, Machine
from dime.core.metrics.measurement import Measurement
from dime.core.networks.classifiers import load_classifier, output_column
from dime.core.results import Pair, ResultTree
from dime.core.run_config import recorded

PARTITIONS = ("cor", "inc", "all")
"""Images classified correctly, incorrectly, or both."""
SMILING = ATTRIBUTES.index("Smiling")

Features = Callable[[Sequence[Path]], torch.Tensor]
"""Image files -> features (N, D): an ImageFeatures, or one that remembers."""
T = TypeVar("T")


@dataclass(frozen=True)
class Metric:
    """One metric: a file of this package ends with an instance, which `protocol.METRICS` lists.

    rows: the names of all measurements that it may give, in the table's order. measure: pairs, then what `needs` gave
    -> its measurements; raises UndefinedError where none of them has a value. needs: what it computes with, as a tuple;
    raises InputError, saying what that is, where it is not there. flags: keys of scripts.FLAGS that it reads. names:
    those of `rows` that it gives under given flags, where not all. partition, flipped_only: the images that it is
    defined on: CC, IC or both, and whether of CCF alone. printed: a row's name in the output of the metric's own
    script, where that is not `name:`. of_seeds: whether it is about several experiments (--exp-pattern) together.
    asked_by: a flag of evaluate.py, such as --robust, without which it is not computed; '' computes it always. plot:
    draws the first measurement, as a PNG file.
    """

    rows: tuple[str, ...]
    measure: Callable[..., list[Measurement]]
    needs: Callable[[Context, ResultTree], tuple] = lambda context, tree: ()
    flags: tuple[str, ...] = ()
    names: Callable[[Context], tuple[str, ...]] | None = None
    partition: str = "all"
    flipped_only: bool = True
    printed: Mapping[str, str] = field(default_factory=dict)
    of_seeds: bool = False
    asked_by: str = ""
    plot: Callable[[Measurement], bytes] | None = None

    def names_in(self, context: Context) -> tuple[str, ...]:
        """The rows that it gives here."""
        return self.names(context) if self.names else self.rows

    def on(self, context: Context, tree: ResultTree, needed: tuple) -> list[Measurement]:
        """What it says of an experiment, with what `needs` gave; where it is undefined there, that, with the reason."""
        try:
            return self.measure(select_pairs(tree, context.partition or self.partition, self.flipped_only), *needed)
        except UndefinedError as error:
            return [Measurement(name, None, 0, reason=str(error)) for name in self.names_in(context)]


@dataclass
class Context:
    """What metrics may use. A network is loaded when the first metric asks for it, once for all experiments.

    partition: cor, inc or all; None: the metric's own. query_label: the attribute explained; None: what each
    experiment recorded, else Smiling. seeds: experiments that differ in their seed alone. Others: see scripts.FLAGS.
    """

    machine: Machine
    partition: str | None = None
    query_label: int | None = None
    seeds: Sequence[ResultTree] = ()
    weights_path: Path = Path("models/resnet50_vggface2_model.pkl")
    oracle_path: Path = Path("models/oracle.pth")
    classifier_path: str = "models/classifier.pth"
    inception_weights: Path | None = None
    celeba_path: str | None = None
    feature_network: str = "inception"

    _loaded: dict[Callable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, load: Callable[[Context], T]) -> T:
        """What load(context) gives, which is called once: networks and labels that one metric alone needs."""
        if load not in self._loaded:
            self._loaded[load] = load(self)
        return self._loaded[load]

    @cached_property
    def classifier(self) -> nn.Module:
        """The classifier that was explained."""
        return load_classifier(self.classifier_path, self.machine.device)

    @cached_property
    def logits(self) -> ImageFeatures:
        """The classifier's logits (N, K) of image files."""
        return ImageFeatures(self.classifier, self.machine)

    def query_of(self, tree: ResultTree) -> int:
        """The attribute, or the output of the classifier, that an experiment explains."""
        if self.query_label is not None:
            return self.query_label
        known = {query for query in recorded(tree, "query_label") if isinstance(query, int)}
        return known.pop() if len(known) == 1 else SMILING

    def decision_of(self, tree: ResultTree) -> Decision:
        """The decision that an experiment explains. Raises InputError where the classifier does not make it."""
        return explained_decision(tree, self.classifier, self.query_of(tree), self.classifier_path)


def explained_decision(tree: ResultTree, classifier: nn.Module, query: int, path: str | Path) -> Decision:
    """What the experiment's configuration says was explained: exclusive classes, else one binary output.

    Raises InputError where the classifier, read from `path`, has other classes or no such output.
    """
    if not is_multiclass(tree):
        return Binary(output_column(classifier, query, path))
    for classes in recorded(tree, "classes"):
        if isinstance(classes, tuple) and len(classes) != classifier.num_outputs:
            raise InputError(
                f"{path}: has {classifier.num_outputs} outputs, but {tree.exp_name} explains {len(classes)} classes"
            )
    return MultiClass()


def is_multiclass(tree: ResultTree) -> bool:
    """Whether the experiment explains a choice among exclusive classes."""
    return recorded(tree, "decision") == {"multiclass"}


def select_pairs(tree: ResultTree, partition: str = "all", flipped_only: bool = True) -> list[Pair]:
    """The pairs of an experiment that a metric looks at: those of CCF, or all of them.

    Raises UndefinedError where there is none of that kind; InputError where the experiment is empty, where sizes
    differ, or as ResultTree.pairs does.
    """
    pairs = tree.pairs()
    if not pairs:
        raise InputError(f"{tree.results}: the experiment holds no counterfactual yet")
    chosen = [pair for pair in pairs if in_partition(pair, partition) and (pair.flipped or not flipped_only)]
    if not chosen:
        kind = {"cor": "a correctly classified", "inc": "an incorrectly classified", "all": "an"}[partition]
        reached = " whose counterfactual reached its target" if flipped_only else ""
        raise UndefinedError(f"none of the {len(pairs)} pairs of {tree.exp_name} is of {kind} image{reached}")
    require_one_size(originals(chosen) + counterfactuals(chosen))
    return chosen


def in_partition(pair: Pair, partition: str) -> bool:
    """Whether --partition takes this pair in."""
    return partition == "all" or pair.correct == (partition == "cor")


def originals(pairs: Sequence[Pair]) -> list[Path]:
    """The files of the inputs."""
    return [pair.original for pair in pairs]


def counterfactuals(pairs: Sequence[Pair]) -> list[Path]:
    """The files of the counterfactuals."""
    return [pair.counterfactual for pair in pairs]


def require_one_size(paths: Sequence[Path]) -> None:
    """Raise InputError where a file is no image, or images have several sizes; only heads of files are read."""
    expected = None
    for path in paths:
        try:
            with Image.open(path) as image:
                size = image.size
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{path}: not a readable image ({error})") from None
        expected = expected or size
        if size != expected:
            raise InputError(
                f"{path}: is {size[0]}x{size[1]}, but {paths[0]} is {expected[0]}x{expected[1]}; "
                "all images of an experiment must have one size"
            )
