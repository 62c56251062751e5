"""The whole evaluation: every metric whose weights are present, over several experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError, UndefinedError
from dime.core.evaluation.features import ImageFeatures, Machine
from dime.core.evaluation.measures import (
    FLIP_RATE,
    SMALL_FS,
    Measurement,
    changed_attributes,
    class_transition,
    decision_change,
    diversity,
    face_features,
    face_verification,
    feature_similarity,
    flip_rate,
    frechet_features,
    frechet_names,
    oracle_logits,
    realism,
    remembered,
    select_pairs,
    small_features,
    spurious_correlations,
    train_labels,
)
from dime.core.evaluation.published import caveats
from dime.core.networks.classifiers import load_classifier, output_column
from dime.core.networks.features import load_lpips
from dime.core.networks.files import SAFETENSORS
from dime.core.results import Pair, ResultTree
from dime.core.run_config import recorded

SMILING = ATTRIBUTES.index("Smiling")


@dataclass
class Request:
    """What to evaluate and with what; networks are loaded when the first metric needs them.

    trees: the experiments. seeds: those of them that are one method under several seeds (for sigma_L), or
    none. query: the attribute explained; None: what each experiment's own configuration says, else Smiling. partition:
    cor, inc or all (COUT takes cor in place of all, as defined).
    """

    trees: Sequence[ResultTree]
    machine: Machine
    query: int | None
    partition: str
    seeds: Sequence[ResultTree]
    weights_path: Path
    oracle_path: Path
    classifier_path: Path
    celeba_path: str | None
    inception_weights: Path | None
    feature_network: str

    _pairs: dict[tuple[str, bool], list[Pair]] = field(default_factory=dict, init=False)

    def pairs(self, tree: ResultTree, flipped_only: bool = True) -> list[Pair]:
        """The pairs of an experiment in this partition; its folder is read once."""
        key = (tree.exp_name, flipped_only)
        if key not in self._pairs:
            self._pairs[key] = select_pairs(tree, self.partition, flipped_only)
        return self._pairs[key]

    def query_of(self, tree: ResultTree) -> int:
        """The attribute that an experiment explains."""
        if self.query is not None:
            return self.query
        known = {query for query in recorded(tree, "query_label") if isinstance(query, int)}
        return known.pop() if len(known) == 1 else SMILING

    @cached_property
    def faces(self) -> ImageFeatures:
        """VGGFace2 features, or those of the small network in its place."""
        return (face_features if self.has_face_network else small_features)(self.weights_path, self.machine)

    @property
    def has_face_network(self) -> bool:
        """Whether --weights-path is the face network that FVA is defined by, which is published as a pickle."""
        return self.weights_path.suffix != SAFETENSORS

    @cached_property
    def attributes(self) -> ImageFeatures:
        """The oracle's logits."""
        return oracle_logits(self.oracle_path, self.machine)

    @cached_property
    def labels(self) -> np.ndarray:
        """CelebA's train labels."""
        if self.celeba_path is None:
            raise InputError("needs --celeba-path, a folder in CelebA's layout, for the train labels")
        return train_labels(self.celeba_path)

    @cached_property
    def classifier(self) -> nn.Module:
        """The classifier that was explained."""
        classifier = load_classifier(self.classifier_path, self.machine.device)
        for tree in self.trees:
            output_column(classifier, self.query_of(tree), self.classifier_path)
        return classifier

    @cached_property
    def logits(self) -> ImageFeatures:
        """The classifier's logits."""
        return ImageFeatures(self.classifier, self.machine)

    @cached_property
    def frechet(self) -> tuple[ImageFeatures, Path]:
        """Features for Fréchet distances, and their weights."""
        weights = self.inception_weights if self.feature_network == "inception" else self.oracle_path
        return frechet_features(self.feature_network, weights, self.machine)

    @cached_property
    def sigma(self) -> Measurement:
        """sigma_L over the seeds."""
        if not self.seeds:
            raise InputError("needs --exp-pattern and --exp-values: one method under several seeds")
        return diversity(self.seeds, load_lpips(self.machine.device), self.machine, self.partition)


@dataclass
class Report:
    """What came out, by experiment: metric -> measurement, why others are missing, and what does not compare."""

    measurements: dict[str, dict[str, Measurement]]
    missing: dict[str, list[str]]
    caveats: dict[str, list[str]]

    @classmethod
    def empty(cls, experiments: Iterable[str]) -> Report:
        """Without a measurement yet."""
        names = list(experiments)
        return cls({name: {} for name in names}, {name: [] for name in names}, {name: [] for name in names})

    def of(self, experiment: str) -> Report:
        """The same for one of the experiments."""
        return Report(*({experiment: part[experiment]} for part in (self.measurements, self.missing, self.caveats)))


Compute = Callable[[Request, ResultTree], Sequence[Measurement]]


@dataclass(frozen=True)
class Metric:
    """One step of the protocol.

    names: of the measurements it may give, rows of the table. prepare: loads what it needs, raising InputError where
    that is not present. compute: its numbers on one experiment. flipped_only: whether it looks at counterfactuals that
    reached their target only.
    """

    names: tuple[str, ...]
    prepare: Callable[[Request], Any]
    compute: Compute
    flipped_only: bool = True


def evaluate(request: Request) -> Report:
    """Compute every metric that can be computed. Raises InputError for damaged images and experiments."""
    report = Report.empty(tree.exp_name for tree in request.trees)
    for tree in request.trees:
        request.pairs(tree, flipped_only=False)  # what is wrong with a tree shows before the hours of work
    for metric in METRICS:
        label = ", ".join(name for name in metric.names if "(" not in name)  # without the stand-ins' names
        try:
            metric.prepare(request)
        except InputError as error:
            for lines in report.missing.values():
                lines.append(f"{label}: {error}")
            continue
        for tree in request.trees:
            missing = report.missing[tree.exp_name]
            if metric.flipped_only and not any(pair.flipped for pair in request.pairs(tree, flipped_only=False)):
                missing.append(f"{label}: no counterfactual of {tree.exp_name} reached its target")
                continue
            try:
                measurements = metric.compute(request, tree)
            except UndefinedError as error:
                missing.append(f"{label} of {tree.exp_name}: {error}")
                continue
            for measurement in measurements:
                report.measurements[tree.exp_name][measurement.name] = measurement
    for tree in request.trees:
        measured = report.measurements[tree.exp_name]
        report.caveats[tree.exp_name] = caveats(tree, request.pairs(tree, flipped_only=False), measured)
    return report


def _same_person(pairs: Sequence[Pair], request: Request) -> Sequence[Measurement]:
    if request.has_face_network:
        return face_verification(pairs, request.faces)
    return [feature_similarity(pairs, request.faces)]


def _realism(request: Request, tree: ResultTree) -> Sequence[Measurement]:
    features, weights = request.frechet
    inputs = remembered(features, tree, request.feature_network, weights)
    return realism(tree, request.partition, request.feature_network, inputs, features)


def _transition(request: Request, tree: ResultTree) -> Sequence[Measurement]:
    partition = "cor" if request.partition == "all" else request.partition
    pairs = select_pairs(tree, partition, flipped_only=False)
    return [class_transition(pairs, request.classifier, _column(request, tree), request.machine)[0]]


def _column(request: Request, tree: ResultTree) -> int:
    return output_column(request.classifier, request.query_of(tree), request.classifier_path)


METRICS: tuple[Metric, ...] = (
    Metric(
        names=(FLIP_RATE,),
        prepare=lambda request: None,
        compute=lambda request, tree: [flip_rate(request.pairs(tree, flipped_only=False))],
        flipped_only=False,
    ),
    Metric(
        names=("FVA", "FS", SMALL_FS),
        prepare=lambda request: request.faces,
        compute=lambda request, tree: _same_person(request.pairs(tree), request),
    ),
    Metric(
        names=("MNAC",),
        prepare=lambda request: request.attributes,
        compute=lambda request, tree: [changed_attributes(request.pairs(tree), request.attributes)],
    ),
    Metric(
        names=("CD",),
        prepare=lambda request: (request.labels, request.attributes),
        compute=lambda request, tree: [
            spurious_correlations(request.pairs(tree), request.attributes, request.labels, request.query_of(tree))[0]
        ],
    ),
    Metric(
        names=("MAD",),
        prepare=lambda request: request.classifier,
        compute=lambda request, tree: [
            decision_change(request.pairs(tree, flipped_only=False), request.logits, _column(request, tree))
        ],
        flipped_only=False,
    ),
    Metric(names=("COUT",), prepare=lambda request: request.classifier, compute=_transition, flipped_only=False),
    Metric(
        names=(*frechet_names("inception"), *frechet_names("oracle")),
        prepare=lambda request: request.frechet,
        compute=_realism,
    ),
    Metric(
        names=("sigma_L",),
        prepare=lambda request: request.sigma,
        compute=lambda request, tree: [request.sigma] * (tree in request.seeds),
        flipped_only=False,
    ),
)
"""The protocol, in the order of its table. A metric of your own is an entry here."""

METRIC_NAMES = tuple(name for metric in METRICS for name in metric.names)
"""The rows of the table."""
