"""From a batch of images to their counterfactuals: predict, pick the target, noise once, try scale after scale."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from dime.core.guidance import Guidance
from dime.core.images import to_uint8
from dime.core.methods import Method
from dime.core.noise import NoiseSource
from dime.core.sampler import Denoiser
from guided_diffusion.respace import SpacedDiffusion


@dataclass(frozen=True)
class Batch:
    """Images to explain.

    ids: N ids. x: (N, 3, H, W) in [-1, 1]. label: (N,) the truth about the decision that is explained.
    conditions: (N, C) what a class-conditional diffusion model is told, or None.
    """

    ids: Sequence[int]
    x: torch.Tensor
    label: torch.Tensor
    conditions: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: Sequence[int]) -> Batch:
        """These images alone, in this order."""
        conditions = None if self.conditions is None else self.conditions[rows]
        return Batch([self.ids[row] for row in rows], self.x[rows], self.label[rows], conditions)


@dataclass
class Explanations:
    """What came out for a batch, image by image.

    noisy, cf: (N, 3, H, W), the input noised to τ and the counterfactual. pred, target, cf_pred: (N,) int64.
    p_target, cf_p_target: (N,) the target's probability for the input and for the counterfactual.
    scale: (N,) the last classifier scale tried. finite: (N,) False where the counterfactual, or a clean
    estimate on the way to it, is not a number somewhere; such an image has failed and never counts as flipped.
    frames: for each kept kind (x_t, z_t) the 8-bit images (N, τ, 3, H, W) at the start of each outer step.
    """

    batch: Batch
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

    def rows(self, rows: Sequence[int]) -> Explanations:
        """These images alone, in this order."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        frames = {kind: images[rows] for kind, images in self.frames.items()}
        return Explanations(batch=self.batch.rows(rows), frames=frames, **columns)


_COLUMNS = ("pred", "target", "p_target", "noisy", "cf", "cf_pred", "cf_p_target", "scale", "finite")


def joined(parts: Sequence[Explanations]) -> Explanations:
    """All images of the parts, one after another."""
    batches = [part.batch for part in parts]
    conditions = [batch.conditions for batch in batches]
    return Explanations(
        batch=Batch(
            ids=[id for batch in batches for id in batch.ids],
            x=torch.cat([batch.x for batch in batches]),
            label=torch.cat([batch.label for batch in batches]),
            conditions=None if conditions[0] is None else torch.cat(conditions),
        ),
        frames={kind: torch.cat([part.frames[kind] for part in parts]) for kind in parts[0].frames},
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in _COLUMNS},
    )


@dataclass(frozen=True)
class Trial:
    """An image on its way to a counterfactual: what each attempt at it starts from, and which comes next.

    x, noisy: (3, H, W). label, pred, target, p_target: scalars. conditions, features: without the batch dimension,
    None where nothing needs them.
    """

    id: int
    x: torch.Tensor
    label: torch.Tensor
    conditions: torch.Tensor | None
    noisy: torch.Tensor
    features: torch.Tensor | None
    pred: torch.Tensor
    target: torch.Tensor
    p_target: torch.Tensor
    attempt: int = 0


Progress = Callable[[float, int], None]
"""Called with (the largest scale being tried, step) at the start of every outer step."""


class BatchExplainer(ABC):
    """Explains images in two parts: `begin` once, then `attempt` until an image has flipped or no scale is left."""

    @abstractmethod
    def begin(self, batch: Batch, at_least: int = 0) -> list[Trial]:
        """Predict, pick the target, noise. `at_least`: compute on so many images, repeating one."""

    @abstractmethod
    def attempt(
        self, trials: Sequence[Trial], at_least: int = 0, progress: Progress | None = None
    ) -> tuple[Explanations, list[Trial]]:
        """Try each image with its next scale, all together: what is finished, and who must be tried again."""

    def __call__(self, batch: Batch, progress: Progress | None = None) -> Explanations:
        """Explain every image of the batch, in its order."""
        trials, parts = self.begin(batch), []
        while trials:
            finished, trials = self.attempt(trials, progress=progress)
            parts.append(finished)
        together = joined(parts)
        return together.rows([together.batch.ids.index(id) for id in batch.ids])


@dataclass(frozen=True)
class Explainer(BatchExplainer):
    """A diffusion model, a classifier with its distances, and a way to explain.

    Args:
        scales: classifier scales, tried in this order until an image flips.
        target_of: predictions (N,) -> targets (N,); the opposite label by default, as for a binary decision.
        keep_frames: which of x_t and z_t to keep, for saving.
        pad_to: run every chain on at least this many images (repeating one), so that an image meets the same kernels
            whatever its company.
    """

    model: nn.Module
    diffusion: SpacedDiffusion
    guidance: Guidance
    method: Method
    noise: NoiseSource
    scales: Sequence[float]
    target_of: Callable[[torch.Tensor], torch.Tensor] = lambda pred: 1 - pred
    keep_frames: frozenset[str] = frozenset()
    pad_to: int | None = None

    @torch.no_grad()
    def begin(self, batch: Batch, at_least: int = 0) -> list[Trial]:
        """See BatchExplainer."""
        rows = self._padded(range(len(batch)), at_least)
        ids, x = [batch.ids[row] for row in rows], batch.x[rows]
        # as published: noised to schedule index tau, while denoising starts at index tau - 1
        noisy = Denoiser(self.model, self.diffusion).noised(x, self.method.tau, self.noise.noising(ids)(x.shape))
        features = self.guidance.input_features(x)
        logits = self.guidance.classifier(x)
        pred = self.guidance.decision.predict(logits)
        target = self.target_of(pred)
        p_target = self.guidance.decision.probability(logits, target)
        return [
            Trial(
                id,
                x[row].clone(),
                batch.label[row],
                None if batch.conditions is None else batch.conditions[row],
                noisy[row].clone(),  # not a view, which would keep the whole batch
                None if features is None else features[row].clone(),
                pred[row],
                target[row],
                p_target[row],
            )
            for row, id in enumerate(batch.ids)
        ]

    @torch.no_grad()
    def attempt(
        self, trials: Sequence[Trial], at_least: int = 0, progress: Progress | None = None
    ) -> tuple[Explanations, list[Trial]]:
        """See BatchExplainer; every attempt starts from the same noised image."""
        result = self._attempt(trials, self._padded(trials, at_least), progress)
        last = len(self.scales) - 1
        over = [
            flipped or trial.attempt == last for trial, flipped in zip(trials, result.flipped.tolist(), strict=True)
        ]
        again = [
            replace(trial, attempt=trial.attempt + 1) for trial, done in zip(trials, over, strict=True) if not done
        ]
        return result.rows([row for row, done in enumerate(over) if done]), again

    def _attempt(self, trials: Sequence[Trial], padded: Sequence[Trial], progress: Progress | None) -> Explanations:
        """What comes out for the trials; `padded` are these and copies, in whose company they are computed."""
        ids, attempts = [trial.id for trial in padded], [trial.attempt for trial in padded]
        x, noisy, features, conditions, target = (
            _stacked(padded, name) for name in ("x", "noisy", "features", "conditions", "target")
        )
        scales = torch.tensor([self.scales[attempt] for attempt in attempts], device=x.device)
        largest = max(self.scales[attempt] for attempt in attempts)
        recorder = _Recorder(self.keep_frames, len(trials))
        finite = torch.ones(len(padded), dtype=torch.bool, device=x.device)

        def observe(step: int, x_t: torch.Tensor, z_t: torch.Tensor) -> None:
            # a ReLU passes no gradient back from NaN: such an estimate may leave no trace in the result
            finite.logical_and_(x_t.isfinite().flatten(1).all(dim=1))
            recorder(step, x_t, z_t)
            if progress:
                progress(largest, step)

        cf = self.method(
            Denoiser(self.model, self.diffusion, conditions),
            x,
            noisy,
            self.guidance.towards(x, features, target, scales),
            noise=lambda i: self.noise.step(ids, attempts, i),
            observe=observe,
        )
        logits = self.guidance.classifier(cf)
        p_target = self.guidance.decision.probability(logits, target)
        finite &= cf.isfinite().flatten(1).all(dim=1) & p_target.isfinite()
        kept = slice(len(trials))  # the rows beyond are padding
        return Explanations(
            Batch(ids[kept], x[kept], _stacked(trials, "label"), None if conditions is None else conditions[kept]),
            pred=_stacked(trials, "pred"),
            target=target[kept],
            p_target=_stacked(trials, "p_target"),
            noisy=noisy[kept],
            cf=cf[kept],
            cf_pred=self.guidance.decision.predict(logits)[kept],
            cf_p_target=p_target[kept],
            scale=scales[kept],
            finite=finite[kept],
            frames=recorder.frames(),
        )

    def _padded(self, items: Sequence, at_least: int) -> list:
        return [*items, *list(items[:1]) * max(max(self.pad_to or 0, at_least) - len(items), 0)]


def _stacked(trials: Sequence[Trial], name: str) -> torch.Tensor | None:
    """One field of all trials, with a batch dimension; None where it is None."""
    values = [getattr(trial, name) for trial in trials]
    return None if values[0] is None else torch.stack(values)


class _Recorder:
    """Keeps the 8-bit frames of a chain on the CPU, for the first `count` images."""

    def __init__(self, kinds: frozenset[str], count: int) -> None:
        self.count = count
        self.steps: dict[str, list[torch.Tensor]] = {kind: [] for kind in sorted(kinds)}

    def __call__(self, step: int, x_t: torch.Tensor, z_t: torch.Tensor) -> None:
        images = {"x_t": x_t, "z_t": z_t}
        for kind, frames in self.steps.items():
            frames.append(to_uint8(images[kind][: self.count]).cpu())

    def frames(self) -> dict[str, torch.Tensor]:
        """kind -> (count, τ, 3, H, W)."""
        return {kind: torch.stack(steps, dim=1) for kind, steps in self.steps.items()}
