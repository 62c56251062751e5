"""From images to their counterfactuals: predict, pick the target, noise once, try scale after scale."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from dime.core.datasets import image_transform, read_image
from dime.core.errors import InputError
from dime.core.guidance import Classifier, Decision, FeatureNetwork, Guidance, MultiClass
from dime.core.images import input_to_uint8, mean_difference, to_hwc, to_image, to_uint8
from dime.core.masks import shrunk
from dime.core.methods import METHODS, Method
from dime.core.networks.checks import check_classifier, frozen
from dime.core.networks.diffusion import DiffusionModel
from dime.core.noise import NOISE_SOURCES, NoiseSource
from dime.core.sampler import Denoiser, Inversion, Observer
from dime.core.settings import Settings

Table = TypeVar("Table", bound="_Rows")


@dataclass(frozen=True)
class _Rows:
    """A table of images: every field is None, or has one entry an image (a dict: under each of its keys)."""

    ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self: Table, rows: Sequence[int]) -> Table:
        """These images alone, in this order."""
        return replace(self, **{field.name: _taken(getattr(self, field.name), rows) for field in fields(self)})

    @classmethod
    def joined(cls: type[Table], parts: Sequence[Table]) -> Table:
        """All images of the parts, one after another."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        return cls(**{name: _joined(column) for name, column in columns.items()})


def _taken(value: Any, rows: Sequence[int]) -> Any:
    if isinstance(value, dict):
        return {key: _taken(item, rows) for key, item in value.items()}
    if isinstance(value, list):
        return [value[row] for row in rows]
    return None if value is None else value[rows]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _joined([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [item for value in values for item in value]
    return None if first is None else torch.cat(list(values))


@dataclass(frozen=True)
class Batch(_Rows):
    """Images to explain.

    ids: N numbers, which name each image's noise. x: (N, C, H, W) in [-1, 1]. label: (N,) the truth about the decision
    that is explained; None: unknown, and the prediction stands for it. target: (N,) what to turn the decision into;
    None: see Decision.opposite. conditions: what a class-conditional diffusion model is told, one row an image.
    """

    ids: list[int]
    x: torch.Tensor
    label: torch.Tensor | None = None
    target: torch.Tensor | None = None
    conditions: torch.Tensor | None = None


@dataclass(frozen=True)
class Explanations(_Rows):
    """What came out, image by image.

    ids, x, label: the images, as in Batch. noisy, cf: (N, C, H, W), the input noised to τ and the counterfactual.
    pred, target, cf_pred: (N,) int64. p_target, cf_p_target: (N,) the target's probability for the input and for the
    counterfactual. scale: (N,) the last classifier scale tried. finite: (N,) False where the counterfactual, or a clean
    estimate on the way to it, is not a number somewhere; such an image has failed and never counts as flipped.
    frames: for each kept kind (x_t, z_t) the 8-bit images (N, τ, C, H, W) at the start of each outer step.
    """

    ids: list[int]
    x: torch.Tensor
    label: torch.Tensor
    pred: torch.Tensor
    target: torch.Tensor
    p_target: torch.Tensor
    noisy: torch.Tensor
    cf: torch.Tensor
    cf_pred: torch.Tensor
    cf_p_target: torch.Tensor
    scale: torch.Tensor
    finite: torch.Tensor
    frames: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def flipped(self) -> torch.Tensor:
        """(N,) whether the counterfactual reached its target."""
        return self.finite & (self.cf_pred == self.target)

    @property
    def l_1(self) -> np.ndarray:
        """(N,) float32: mean |input - counterfactual| of the 8-bit images, on the scale from 0 to 1."""
        pairs = zip(to_hwc(input_to_uint8(self.x)), to_hwc(to_uint8(self.cf)), strict=True)
        return np.array([mean_difference(x, cf) for x, cf in pairs], np.float32)

    def images(self) -> list[Image.Image]:
        """The counterfactuals as pictures."""
        return [to_image(image) for image in to_hwc(to_uint8(self.cf))]


Progress = Callable[[float, int], None]
"""Called with (the scale being tried, step) at the start of every outer step."""


@dataclass(frozen=True)
class Explainer:
    """A classifier, a diffusion model, and a way to explain the one with the other.

    Args:
        classifier: any differentiable callable, images (N, C, H, W) in [-1, 1] -> logits (N, K).
        diffusion: draws the same kind of images (dime.load_diffusion).
        decision: how logits become a decision: mutually exclusive classes (default), or one binary output.
        settings: the method, its scales, seed and weights.
        perceptual: images -> features (N, ...), needed where settings.l_perc is not 0.
        keep_frames: which of x_t and z_t to keep.
        pad_to: run every chain on at least this many images (repeating one), so that an image meets the same kernels
            whatever its company.
        method: another one than settings names.

    Raises InputError for settings that the diffusion model cannot follow.
    """

    classifier: Classifier
    diffusion: DiffusionModel
    decision: Decision = field(default_factory=MultiClass)
    settings: Settings = field(default_factory=Settings)
    perceptual: FeatureNetwork | None = None
    keep_frames: frozenset[str] = frozenset()
    pad_to: int | None = None
    method: Method | None = None

    def __post_init__(self) -> None:
        timesteps, tau = self.diffusion.process.num_timesteps, self.settings.start_step
        if not 1 <= tau < timesteps:
            raise InputError(
                f"--start_step {tau}: the process has {timesteps} timesteps (--timestep_respacing "
                f"{self.diffusion.flags.get('timestep_respacing', '')!r}); give 1 to {timesteps - 1}"
            )
        if self.settings.l_perc and self.perceptual is None:
            raise InputError("l_perc: a perceptual distance needs a network; give one as `perceptual`")

    def __call__(
        self,
        images: torch.Tensor | Sequence[Image.Image | str | Path],
        targets: torch.Tensor | Sequence[int] | int | None = None,
        ids: Sequence[int] | None = None,
    ) -> Explanations:
        """Explain images: no file is written, and the classifier comes out as it went in.

        Args:
            images: (N, C, H, W) in [-1, 1], or pictures or files of any size, which are resized and cropped.
            targets: what to turn each decision into; one for all, or one an image. None: the opposite of a binary
                decision, the second most likely class otherwise.
            ids: numbers that name each image's noise; 0, 1, ... by default.

        Raises InputError for images that do not fit the diffusion model, a classifier that cannot be explained, and
        a target that is the prediction already.
        """
        x = self._as_tensor(images)
        batch = Batch(list(ids) if ids is not None else list(range(len(x))), x)
        if targets is not None:
            batch = replace(batch, target=torch.as_tensor(targets, device=x.device).long().expand(len(x)))
        check_classifier(self.classifier, x, self.decision)
        with frozen(self.classifier):
            result = self.explain(batch)
        reached = (result.pred == result.target).nonzero().flatten().tolist()
        if reached:
            raise InputError(
                f"image {reached[0]}: its target {int(result.target[reached[0]])} is its prediction already"
            )
        return result

    @torch.no_grad()
    def explain(self, batch: Batch, progress: Progress | None = None) -> Explanations:
        """Explain a batch; images whose target is their prediction already are left as they are."""
        everyone = list(range(len(batch)))
        rows = self._padded(everyone)
        x, ids = batch.x[rows], [batch.ids[row] for row in rows]
        # as published: noised to schedule index tau, while denoising starts at index tau - 1
        denoiser, draw = self._denoiser(_taken(batch.conditions, rows)), self._noise.noising(ids)
        noisy = denoiser.noised(x, self._method.tau, draw(x.shape))
        inversion = self._method.invert(denoiser, x, noisy, draw)
        features = self._guidance.input_features(x)
        logits = self.classifier(x)
        pred = self.decision.predict(logits)
        target = self.decision.opposite(logits) if batch.target is None else batch.target[rows]
        p_target = self.decision.probability(logits, target)
        n = slice(len(batch))  # the rows beyond are padding
        result = Explanations(
            ids=batch.ids,
            x=batch.x,
            label=pred[n] if batch.label is None else batch.label,
            pred=pred[n],
            target=target[n],
            p_target=p_target[n],
            noisy=noisy[n],
            cf=batch.x.clone(),
            cf_pred=pred[n].clone(),
            cf_p_target=p_target[n].clone(),
            scale=torch.zeros(len(batch), device=x.device),
            finite=torch.ones(len(batch), dtype=torch.bool, device=x.device),
            frames={
                kind: torch.zeros((len(batch), len(self._method.indices), *x.shape[1:]), dtype=torch.uint8)
                for kind in sorted(self.keep_frames)
            },
        )
        trying = (result.pred != result.target).nonzero().flatten().tolist()
        for attempt, scale in enumerate(self.settings.classifier_scales):
            if not trying:
                break
            rows = self._padded(trying)
            start = Batch([ids[row] for row in rows], x[rows], None, target[rows], _taken(batch.conditions, rows))
            recorder = _Recorder(result.frames, trying, scale, progress)
            known = inversion and inversion.rows(rows)
            cf = self._attempt(start, noisy[rows], known, _taken(features, rows), attempt, recorder)
            logits = self.classifier(cf)
            p_target = self.decision.probability(logits, start.target)
            finite = recorder.finite & cf.isfinite().flatten(1).all(dim=1) & p_target.isfinite()
            n = slice(len(trying))
            result.cf[trying], result.cf_p_target[trying] = cf[n], p_target[n]
            result.cf_pred[trying], result.finite[trying] = self.decision.predict(logits)[n], finite[n]
            result.scale[trying] = scale
            done = result.flipped[trying] & (result.cf_p_target[trying] >= self.settings.confidence)
            trying = [row for row, is_done in zip(trying, done.tolist(), strict=True) if not is_done]
        return result

    def _attempt(
        self,
        batch: Batch,
        noisy: torch.Tensor,
        inversion: Inversion | None,
        features: torch.Tensor | None,
        attempt: int,
        observe: Observer,
    ) -> torch.Tensor:
        """The counterfactuals that a scale gives; every attempt starts from the same noised image."""
        scale = self.settings.classifier_scales[attempt]
        pull = self._guidance.towards(batch.x, features, batch.target, scale)
        cf = self._method(
            self._denoiser(batch.conditions),
            batch.x,
            noisy,
            pull,
            noise=lambda i: self._noise.step(batch.ids, attempt, i),
            observe=observe,
            inversion=inversion,
        )
        return shrunk(cf, pull) if self.settings.shrink else cf

    @cached_property
    def _method(self) -> Method:
        return self.method or METHODS[self.settings.method](self.settings)

    @cached_property
    def _noise(self) -> NoiseSource:
        return NOISE_SOURCES[self.settings.noise](self.settings.seed, self.diffusion.device)

    @cached_property
    def _guidance(self) -> Guidance:
        s = self.settings
        weights = {"l1": s.l1_loss, "l2": s.l2_loss, "l_perc": s.l_perc, "confidence": s.confidence}
        return Guidance(self.classifier, self.decision, self.perceptual, **weights)

    def _denoiser(self, conditions: torch.Tensor | None = None) -> Denoiser:
        return Denoiser(self.diffusion.network, self.diffusion.process, conditions)

    def _padded(self, rows: list[int]) -> list[int]:
        return rows + rows[:1] * ((self.pad_to or 0) - len(rows))

    def _as_tensor(self, images: torch.Tensor | Sequence[Image.Image | str | Path]) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] on the diffusion model's device."""
        size, channels = self.diffusion.image_size, self.diffusion.channels
        if not isinstance(images, torch.Tensor):
            transform, mode = image_transform(size), "RGB" if channels == 3 else "L"
            opened = [image if isinstance(image, Image.Image) else read_image(str(image)) for image in images]
            images = torch.stack([transform(image.convert(mode)) for image in opened])
        if images.shape[1:] != (channels, size, size) or not images.is_floating_point():
            raise InputError(
                f"images {tuple(images.shape)} of {images.dtype}: expected floats (N, {channels}, {size}, {size}), "
                "as the diffusion model draws them"
            )
        if not images.abs().max() <= 1 + 1e-3:  # resizing overshoots a little
            raise InputError(f"images from {images.min():g} to {images.max():g}: expected values in [-1, 1]")
        return images.to(self.diffusion.device, torch.float32)


@dataclass
class _Recorder:
    """Watches an attempt at some rows of a table: their 8-bit frames, and which estimates are finite."""

    frames: dict[str, torch.Tensor]
    rows: list[int]
    scale: float
    progress: Progress | None
    finite: torch.Tensor | bool = True

    def __call__(self, step: int, x_t: torch.Tensor, z_t: torch.Tensor) -> None:
        # a ReLU passes no gradient back from NaN: such an estimate may leave no trace in the result
        self.finite = x_t.isfinite().flatten(1).all(dim=1) & self.finite
        for kind, kept in self.frames.items():
            image = {"x_t": x_t, "z_t": z_t}[kind][: len(self.rows)]
            kept[self.rows, step] = to_uint8(image).cpu()
        if self.progress:
            self.progress(self.scale, step)
