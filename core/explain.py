"""From a batch of images to their counterfactuals: predict, pick the target, noise once, try scale after scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from core.guidance import Guidance
from core.images import to_uint8
from core.methods import Method
from core.noise import NoiseSource
from core.sampler import Denoiser
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

    @property
    def correct(self) -> torch.Tensor:
        """(N,) whether the input was classified as its label says."""
        return self.pred == self.batch.label


Progress = Callable[[float, int], None]
"""Called with (scale, step) at the start of every outer step."""


@dataclass(frozen=True)
class Explainer:
    """A diffusion model, a classifier with its distances, and a way to explain.

    Args:
        scales: classifier scales, tried in this order until an image flips.
        target_of: predictions (N,) -> targets (N,); the opposite label by default, as for a binary decision.
        keep_frames: which of x_t and z_t to keep, for saving.
        pad_to: run every chain on exactly this many images (repeating one), so that an image meets the same kernels
            whatever its company; None runs just the images there are.
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
    def __call__(self, batch: Batch, progress: Progress | None = None) -> Explanations:
        """Explain every image of the batch."""
        everyone = list(range(len(batch)))
        rows = self._padded(everyone)
        ids, x = [batch.ids[row] for row in rows], batch.x[rows]
        # as published: noised to schedule index tau, while denoising starts at index tau - 1
        noisy = self._denoiser(batch, rows).noised(x, self.method.tau, self.noise.noising(ids)(x.shape))
        features = self.guidance.input_features(x)
        logits = self.guidance.classifier(x)[: len(batch)]
        pred = self.guidance.decision.predict(logits)
        target = self.target_of(pred)
        result = Explanations(
            batch=batch,
            pred=pred,
            target=target,
            p_target=self.guidance.decision.probability(logits, target),
            noisy=noisy[: len(batch)],
            cf=torch.empty_like(batch.x),
            cf_pred=torch.empty_like(pred),
            cf_p_target=torch.empty(len(batch), device=batch.x.device),
            scale=torch.empty(len(batch), device=batch.x.device),
            finite=torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device),
        )
        pending = everyone
        for attempt, scale in enumerate(self.scales):
            self._attempt(result, features, attempt, scale, pending, progress)
            flipped = result.flipped.tolist()
            pending = [row for row in pending if not flipped[row]]
            if not pending:
                break
        return result

    def _attempt(
        self,
        result: Explanations,
        features: torch.Tensor | None,
        attempt: int,
        scale: float,
        pending: list[int],
        progress: Progress | None,
    ) -> None:
        """Try one scale on the pending rows, from the noised images that every scale starts from."""
        rows = self._padded(pending)
        batch, decision = result.batch, self.guidance.decision
        ids, target = [batch.ids[row] for row in rows], result.target[rows]
        x = batch.x[rows]
        recorder = _Recorder(self.keep_frames, len(pending))
        finite = torch.ones(len(rows), dtype=torch.bool, device=x.device)

        def observe(step: int, x_t: torch.Tensor, z_t: torch.Tensor) -> None:
            # a ReLU passes no gradient back from NaN: such an estimate may leave no trace in the result
            finite.logical_and_(x_t.isfinite().flatten(1).all(dim=1))
            recorder(step, x_t, z_t)
            if progress:
                progress(scale, step)

        cf = self.method(
            self._denoiser(batch, rows),
            x,
            result.noisy[rows],
            self.guidance.towards(x, None if features is None else features[rows], target, scale),
            noise=lambda i: self.noise.step(ids, attempt, i),
            observe=observe,
        )
        logits = self.guidance.classifier(cf)
        p_target = decision.probability(logits, target)
        finite &= cf.isfinite().flatten(1).all(dim=1) & p_target.isfinite()
        kept = slice(len(pending))  # the rows beyond are padding
        result.cf[pending] = cf[kept]
        result.cf_pred[pending] = decision.predict(logits)[kept]
        result.cf_p_target[pending] = p_target[kept]
        result.scale[pending] = scale
        result.finite[pending] = finite[kept]
        recorder.store(result.frames, pending, len(batch))

    def _denoiser(self, batch: Batch, rows: list[int]) -> Denoiser:
        labels = None if batch.conditions is None else batch.conditions[rows]
        return Denoiser(self.model, self.diffusion, labels)

    def _padded(self, rows: list[int]) -> list[int]:
        return rows + rows[:1] * max((self.pad_to or 0) - len(rows), 0)


class _Recorder:
    """Keeps the 8-bit frames of a chain on the CPU, for the first `count` images."""

    def __init__(self, kinds: frozenset[str], count: int) -> None:
        self.count = count
        self.steps: dict[str, list[torch.Tensor]] = {kind: [] for kind in sorted(kinds)}

    def __call__(self, step: int, x_t: torch.Tensor, z_t: torch.Tensor) -> None:
        images = {"x_t": x_t, "z_t": z_t}
        for kind, frames in self.steps.items():
            frames.append(to_uint8(images[kind][: self.count]).cpu())

    def store(self, frames: dict[str, torch.Tensor], rows: list[int], total: int) -> None:
        """Put the recorded frames into frames[kind] (total, τ, 3, H, W), replacing those of an earlier attempt."""
        for kind, steps in self.steps.items():
            recorded = torch.stack(steps, dim=1)
            if kind not in frames:
                frames[kind] = recorded.new_zeros((total, *recorded.shape[1:]))
            frames[kind][rows] = recorded
