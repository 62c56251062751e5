"""From a command to what it needs: the images, the question about them, and the explainer that answers it."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dime.core.arithmetic import CompiledUNet, compile_unet, prepare_unet
from dime.core.cli import say
from dime.core.config import Config
from dime.core.datasets import Source, download, open_dataset
from dime.core.errors import InputError, nearest
from dime.core.explain import Batch, Explainer
from dime.core.folders import read_lines
from dime.core.guidance import Binary, Decision, MultiClass
from dime.core.networks.checks import check_classifier
from dime.core.networks.classifiers import load_classifier, output_column
from dime.core.networks.diffusion import DiffusionModel, load_diffusion
from dime.core.networks.features import load_perceptual
from dime.core.photos import BadImageError


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


@dataclass(frozen=True)
class Setup:
    """A command, ready to run.

    config: its flags, where they leave something open as it was decided: precision, compile, query_label. selection:
    the ids that all chunks together explain.
    """

    config: Config
    device: torch.device
    source: Source
    question: Question
    selection: list[int]
    explainer: Explainer

    def batch(self, ids: list[int], images: Sequence[torch.Tensor] | None = None) -> Batch:
        """Images of the source (or `images` (C, H, W) in their places), with what is known and asked of each."""
        labels, target, device = self.question.labels, self.question.target, self.device
        conditional = self.explainer.diffusion.class_cond
        return Batch(
            ids=ids,
            x=torch.stack(images or [self.source.load(id) for id in ids]).to(device),
            label=None if labels is None else torch.from_numpy(labels[ids]).long().to(device),
            target=torch.tensor([target(id) for id in ids], device=device) if target else None,
            conditions=torch.stack([self.source.conditions(id) for id in ids]).to(device) if conditional else None,
        )

    def in_float32(self) -> Explainer:
        """The same explainer in full precision.

        Its noise is each image's own: a second attempt must not move the stream that the others draw from.
        """
        settings = replace(self.explainer.settings, noise="per_image")
        return replace(self.explainer, diffusion=load_model(self.config, self.device, "fp32"), settings=settings)


def set_up(config: Config, device: torch.device) -> Setup:
    """Load and check everything; InputError for what does not fit together. Nothing is written."""
    precision = config.precision or ("fp16" if config.diffusion.get("use_fp16") else "fp32")
    lacking = (precision == "fp16" and device.type == "cpu") or (
        precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported()
    )
    if lacking:
        say(f"{precision} does not run on {device}: the U-Net computes in fp32.")
        precision = "fp32"
    diffusion = load_model(config, device, precision)
    if config.download:
        download(config.dataset, config.data_dir)
    source = open_dataset(
        config.dataset, config.data_dir, diffusion.image_size, config.use_train, config.images, config.resize,
        diffusion.channels,
    )  # fmt: skip
    classifier = load_classifier(
        config.classifier_path, device, size=config.classifier_size, mean=config.classifier_mean,
        std=config.classifier_std, value_range=config.classifier_range, trust=config.trust_classifier,
    )  # fmt: skip
    question = ask(config, source, classifier)
    selection = question.select(len(source), config.target_label, config.batch_size * config.num_batches)
    if config.compile:
        shape = torch.Size((config.batch_size, diffusion.channels, diffusion.image_size, diffusion.image_size))
        diffusion = replace(diffusion, network=compile_unet(diffusion.network, shape))
    compiled = isinstance(diffusion.network, CompiledUNet)
    explainer = Explainer(
        classifier,
        diffusion,
        question.decision,
        config.settings,
        load_perceptual(config.l_perc_layer, config.perceptual_path, device=device) if config.l_perc else None,
        keep_frames=config.kept_frames,
        pad_to=config.batch_size if config.pad_batches or compiled else None,
    )
    try:  # the networks on the first image, to find out now what would fail in the middle of the work
        image = source.load(selection[0])
    except BadImageError:
        image = source.stand_in()
    x, conditions = image[None].to(device), source.conditions(selection[0])
    diffusion.check(x, None if conditions is None else conditions[None])
    check_classifier(classifier, x, question.decision, config.classifier_path)
    config = replace(config, precision=precision, compile=compiled, query_label=question.query)
    return Setup(config, device, source, question, selection, explainer)


def load_model(config: Config, device: torch.device, precision: str) -> DiffusionModel:
    """The diffusion model, ready to compute."""
    diffusion = load_diffusion(config.model_path, config.diffusion, device)
    published = config.noise == "stream" or config.method == "gmd"
    prepare_unet(diffusion.network, precision, device, published=published)
    return diffusion


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
