"""What a metric is and gives, which images it looks at and what it may use: the frame of every file beside this one."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from dime.core.cli import attribute, boolean
from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError, UndefinedError
from dime.core.guidance import Binary, Decision, MultiClass
from dime.core.metrics.features import Machine
from dime.core.networks.classifiers import load_classifier, output_column
from dime.core.results import Pair, ResultTree
from dime.core.settings import flag

PARTITIONS = ("cor", "inc", "all")
"""Images classified correctly, incorrectly, or both."""
SMILING = ATTRIBUTES.index("Smiling")

Features = Callable[[Sequence[Path]], torch.Tensor]
"""Image files -> features (N, D): an ImageFeatures, or one that remembers."""
T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """One number about one experiment.

    value: None where it is undefined, which NaN and infinity become too; `reason` says why. n: the images behind it.
    interval: 95 % bootstrap interval over images, where it means something. notes: lines that limit what the number
    says. detail: what the metric's figure is drawn from.
    """

    name: str
    value: float | None
    n: int
    interval: tuple[float, float] | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    detail: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)
            object.__setattr__(self, "reason", self.reason or f"no finite number comes out of its {self.n} images")
        if self.value is None or not np.isfinite(self.interval or ()).all():
            object.__setattr__(self, "interval", None)

    def as_dict(self) -> dict[str, Any]:
        """What a program reads; `reason` is there where the value is null."""
        found = {"name": self.name, "value": self.value, "n": self.n, "interval": self.interval}
        return found | ({"reason": self.reason} if self.value is None else {})


def mean(name: str, values: np.ndarray) -> Measurement:
    """The mean of a value per image (N,), with its interval; undefined where an image has none, or none is there."""
    n, lacking = len(values), int((~np.isfinite(values)).sum())
    if lacking or not n:
        return Measurement(name, None, n, reason=f"{lacking} of its {n} images have no value")
    return Measurement(
        name, float(values.mean()), n, bootstrap_interval(lambda rows: float(values[rows].mean()), len(values))
    )


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of a statistic of n images, given as a function of the indices (n,) of a resample.

    One image says nothing about others: None.
    """
    if n < 2:
        return None
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Metric:
    """One metric: a file of this package ends with an instance, which `protocol.METRICS` lists.

    rows: the names of all measurements that it may give, in the table's order. measure: pairs, then what `needs` gave
    -> its measurements; raises UndefinedError where none of them has a value. needs: what it computes with, as a tuple;
    raises InputError, saying what that is, where it is not there. flags: those of Context that it reads. names:
    those of `rows` that it gives under given flags, where not all. partition, flipped_only: the images that it is
    defined on: CC, IC or both, and whether of CCF alone. printed: a row's name in the output of the metric's own
    script, where that is not `name:`. of_seeds: whether it is about several experiments (--exp-pattern) together.
    robust: computed only where evaluate.py --robust asks for it. plot: draws the first measurement.
    """

    rows: tuple[str, ...]
    measure: Callable[..., list[Measurement]]
    needs: Callable[["Context", ResultTree], tuple] = lambda context, tree: ()
    flags: tuple[str, ...] = ()
    names: Callable[["Context"], tuple[str, ...]] | None = None
    partition: str = "all"
    flipped_only: bool = True
    printed: Mapping[str, str] = field(default_factory=dict)
    of_seeds: bool = False
    robust: bool = False
    plot: Callable[[Measurement], Figure] | None = None

    def names_in(self, context: "Context") -> tuple[str, ...]:
        """The rows that it gives here."""
        return self.names(context) if self.names else self.rows

    def on(self, context: "Context", tree: ResultTree, needed: tuple) -> list[Measurement]:
        """What it says of an experiment, with what `needs` gave; where it is undefined there, that, with the reason."""
        try:
            return self.measure(select_pairs(tree, context.partition or self.partition, self.flipped_only), *needed)
        except UndefinedError as error:
            return [Measurement(name, None, 0, reason=str(error)) for name in self.names_in(context)]


@dataclass
class Context:
    """What metrics may use. A network is loaded when the first metric asks for it, once for all experiments.

    partition: cor, inc or all; None: the metric's own. seeds: experiments that differ in their seed alone. The others
    are flags of the scripts.
    """

    machine: Machine
    partition: str | None = None
    seeds: Sequence[ResultTree] = ()
    weights_path: Path = flag(
        Path("models/resnet50_vggface2_model.pkl"),
        "VGGFace2 ResNet-50 (resnet50_ft_weight.pkl beside it is found too), or a small CNN (.safetensors)",
        Path,
    )
    oracle_path: Path = flag(Path("models/oracle.pth"), "the attribute oracle", Path)
    classifier_path: str | None = flag(
        None, "the classifier explained; unset: as the run recorded, else models/classifier.pth"
    )
    second_classifier_path: str | None = flag(None, "one trained apart, for --robust: does it see the flips too?")
    trust_classifier: bool = flag(False, "load a classifier whose file is a program, which then runs here", boolean)
    celeba_path: str | None = flag(None, "folder in CelebA's layout, for CD's train labels")
    query_label: int | None = flag(
        None, "attribute explained, by index or name; unset: as the run recorded, else 31, Smiling", attribute
    )
    feature_network: str = flag(
        "inception",
        "the space of Frechet distances; with oracle they are no FID, for images on which Inception makes no sense",
        choices=("inception", "oracle"),
    )
    inception_weights: Path | None = flag(
        None, "pytorch-fid's Inception-V3 weights; unset: models/, the torch hub cache, or a download", Path
    )
    _loaded: dict[tuple, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, load: Callable[..., T], *arguments: Hashable) -> T:
        """What load(*arguments) gives, which is called once: networks and labels serve all experiments."""
        key = (load, *arguments)
        if key not in self._loaded:
            self._loaded[key] = load(*arguments)
        return self._loaded[key]

    def query_of(self, tree: ResultTree) -> int:
        """The attribute, or the output of the classifier, that an experiment explains."""
        if self.query_label is not None:
            return self.query_label
        known = {query for query in tree.recorded("query_label") if isinstance(query, int)}
        return known.pop() if len(known) == 1 else SMILING

    def explained(self, tree: ResultTree, second: bool = False) -> tuple[nn.Module, Decision]:
        """The classifier that an experiment explains (second: the one to compare with), and its decision: exclusive
        classes, else one binary output.

        Raises InputError where it cannot be loaded, or has other classes or no such output.
        """
        if second and not self.second_classifier_path:
            raise InputError("--second-classifier-path names no classifier, such as one trained from another seed")
        moved = self.second_classifier_path if second else self.classifier_path
        wanted = recorded_classifier(tree, moved)
        with Image.open(tree.originals()[0]) as image:
            grey = image.mode == "L"
        classifier, path = self.once(load_recorded, wanted, self.machine.device, self.trust_classifier, grey), wanted[0]
        if not is_multiclass(tree):
            asked = classifier.num_outputs > 1 or (self.query_label is not None and classifier.names)
            return classifier, Binary(output_column(classifier, self.query_of(tree), path) if asked else 0)
        for classes in tree.recorded("classes"):
            if isinstance(classes, tuple) and len(classes) != classifier.num_outputs:
                raise InputError(
                    f"{path}: has {classifier.num_outputs} outputs, but {tree.exp_name} explains {len(classes)} classes"
                )
        return classifier, MultiClass()


def recorded_classifier(tree: ResultTree, path: str | None = None) -> tuple:
    """What an experiment explains, as its config.yaml says: spec, size, mean, std, range (see load_classifier).

    path: where the classifier lies now. Raises InputError where the file, which may be a stranger's, names code to run.
    """
    config = next(iter(tree.configurations()), {})
    if not (spec := path or config.get("classifier_path")) or not isinstance(spec, str):
        spec = "models/classifier.pth"
    if not path and spec.startswith("python:"):
        raise InputError(f"{tree.exp_name} explains {spec}, which runs code; if you trust it, say --classifier-path")
    given = [config.get(f"classifier_{name}") for name in ("size", "mean", "std", "range")]
    given = [tuple(value) if isinstance(value, list) else value for value in given]
    return spec, *given


def load_recorded(wanted: tuple, device: torch.device, trust: bool, grey: bool) -> nn.Module:
    """The classifier that `recorded_classifier` describes.

    trust: run it where its file is a program. grey: it sees one channel of the three equal ones of a grey image.
    """
    spec, size, mean, std, value_range = wanted
    try:
        network = load_classifier(spec, device, size=size, mean=mean, std=std, value_range=value_range, trust=trust)
    except (TypeError, ValueError) as error:
        raise InputError(f"{spec}: the experiment's config.yaml describes its input wrongly ({error})") from None
    if grey:
        network.register_forward_pre_hook(lambda module, images: (images[0][:, :1],))
    return network


def is_multiclass(tree: ResultTree) -> bool:
    """Whether the experiment explains a choice among exclusive classes."""
    return tree.recorded("decision") == {"multiclass"}


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
        except OSError as error:
            raise InputError(f"{path}: not a readable image ({error})") from None
        expected = expected or size
        if size != expected:
            raise InputError(
                f"{path}: is {size[0]}x{size[1]}, but {paths[0]} is {expected[0]}x{expected[1]}; "
                "all images of an experiment must have one size"
            )
