"""The classifier that is explained, from whatever it is kept in (core.networks.kinds), as one thing for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.networks import kinds
from dime.core.networks.checks import CALL_ERRORS, first_line, require_logits
from dime.core.networks.files import ready
from dime.core.networks.kinds import Input
from dime.models.classifiers import DenseNetClassifier
from dime.models.small_cnn import SmallCNN

PROBES = (256, 224, 299, 128, 64, 32, 28)
"""Sizes at which a network that does not say its input's is asked how many outputs it has."""


class Classifier(nn.Module):
    """A network behind differentiable resizing and normalising: x (N, C, H, W) in [-1, 1] -> logits (N, K).

    Bilinear and antialiased: without that, a smaller network would see some of the pixels only, and the others would
    never change; enlarging is the same with and without. The whole image is shown, nothing is cropped.
    """

    def __init__(self, network: nn.Module, wanted: Input) -> None:
        super().__init__()
        self.network = network
        self.size = (wanted.size, wanted.size) if isinstance(wanted.size, int) else wanted.size
        normalised = wanted.mean is not None or wanted.std is not None
        low, high = wanted.value_range or ((0, 1) if normalised else (-1, 1))
        mean = torch.tensor(0 if wanted.mean is None else wanted.mean, dtype=torch.float32).view(-1, 1, 1)
        std = torch.tensor(1 if wanted.std is None else wanted.std, dtype=torch.float32).view(-1, 1, 1)
        if not high > low or not (std > 0).all():
            raise InputError(
                f"a classifier's range must rise and its std be above 0, not {low},{high} and {wanted.std}"
            )
        self.register_buffer("scale", (high - low) / 2 / std, persistent=False)
        self.register_buffer("shift", ((high + low) / 2 - mean) / std, persistent=False)
        self.training = False

    def train(self, mode: bool = True) -> Classifier:
        """Do nothing: a network that was loaded stays in eval mode (an exported program has no modes at all)."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, K)."""
        if self.size is not None and tuple(x.shape[-2:]) != tuple(self.size):
            x = F.interpolate(x, tuple(self.size), mode="bilinear", antialias=True, align_corners=False)
        output = self.network(x * self.scale + self.shift)
        return getattr(output, "logits", output)


def load_classifier(
    spec: str | Path,
    device: torch.device,
    *,
    size: int | Sequence[int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    value_range: Sequence[float] | None = None,
    trust: bool = False,
) -> nn.Module:
    """The classifier to explain: x (N, C, H, W) in [-1, 1] -> logits (N, K); in eval mode, frozen, in float32.

    Args:
        spec: a file, or KIND:NAME[@WEIGHTS] (models/README.md has the table).
        device: where it computes.
        size, mean, std, value_range: what the network itself wants to see (`Input`); each overrides what its kind says.
        trust: run the program in a TorchScript or torch.export archive.

    Its attribute `num_outputs` is K, `names` what the outputs are called, or None where nothing says so. Raises
    InputError for a file that is missing, unsafe or of another network, and for a library that is not installed.
    """
    spec, given = str(spec), {"size": size, "mean": mean, "std": std, "value_range": value_range}
    given = {name: value for name, value in given.items() if value is not None}
    loaded = kinds.load(spec, trust)
    if loaded.input is None and not given:
        raise InputError(f"{spec}: does not say what it wants to see; give --classifier_size, _mean, _std or _range")
    classifier, wanted = ready(loaded.network, spec, device), replace(loaded.input or Input(), **given)
    if wanted != Input() or not isinstance(classifier, (DenseNetClassifier, SmallCNN)):
        classifier = Classifier(classifier, wanted).to(device)
        classifier.num_outputs = _count_outputs(classifier, spec, device)
    named = loaded.names is not None and len(loaded.names) == classifier.num_outputs
    classifier.names = list(loaded.names) if named else None
    return classifier


def output_column(
    classifier: nn.Module, query: int | str, path: str | Path, attributes: Sequence[str] | None = ATTRIBUTES
) -> int:
    """Which output of a loaded classifier decides on a query: an attribute of the data, or an output's index or name.

    attributes: what the data calls its attributes, among which an index counts; None: it counts outputs. Where the
    classifier names no outputs, they are in the data's order. Raises InputError where no output decides on the query.
    """
    names, called = classifier.names, query
    if isinstance(query, int) and names is not None and attributes is not None and query < len(attributes):
        called = attributes[query]
    if isinstance(called, str):
        known = list(names or attributes or ())
        if called not in known:
            some = known if len(known) <= 8 else [*get_close_matches(called, known, 5), "…"]
            raise InputError(f"--query_label {query} ({called}): {path} decides on {', '.join(some)} only")
        called = known.index(called)
    if called >= classifier.num_outputs:
        raise InputError(f"--query_label {query}: {path} has {classifier.num_outputs} outputs, counted from 0")
    return called


def _count_outputs(classifier: Classifier, spec: str, device: torch.device) -> int:
    """K, by asking for the logits of one grey image, of three channels or of one."""
    sizes = [classifier.size] if classifier.size else [(side, side) for side in PROBES]
    errors = []
    for shape in ((1, channels, *size) for channels in (3, 1) for size in sizes):
        try:
            with torch.no_grad():
                logits = classifier(torch.zeros(shape, device=device))
        except CALL_ERRORS as error:
            errors.append(first_line(error))
            continue
        return require_logits(logits, 1, spec).shape[1]
    raise InputError(f"{spec}: takes no images of {sizes[0]} ({errors[0]}); give its input size: --classifier_size")
