"""Explaining a batch although it does not fit into memory, or half precision overflows on one of its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from core.cli import say
from core.errors import InputError
from core.explain import Batch, Explainer, Explanations, Progress
from core.noise import StreamNoise

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


class RecoveringExplainer:
    """An explainer that halves its batches when memory runs out, and tries an image that is not finite once more.

    Args:
        explainer: what explains a batch.
        in_float32: gives an explainer in full precision for such images, built when it is first needed; None when
            the first one computes in it.
    """

    def __init__(self, explainer: Explainer, in_float32: Callable[[], Explainer] | None = None) -> None:
        self.explainer = explainer
        self.limit: int | None = None
        """How many images are explained together since memory ran out; None while it has sufficed."""
        self._in_float32 = in_float32
        self._precise: Explainer | None = None

    @property
    def stream(self) -> StreamNoise | None:
        """The random numbers that run on from batch to batch, if they do."""
        return self.explainer.noise if isinstance(self.explainer.noise, StreamNoise) else None

    def __call__(self, batch: Batch, progress: Progress | None = None) -> Iterator[Explanations]:
        """The batch's explanations, in one part or, when memory does not suffice, in several.

        Raises InputError if a single image does not fit, or if smaller batches would change the random numbers.
        """
        rows = list(range(len(batch)))
        while rows:
            part = _part(batch, rows[: self.limit])
            try:
                result = self.explainer(part, progress)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                result = None  # and leave the handler, which keeps the failed attempt's tensors alive
            if result is None:
                self._halve(len(part))
                continue
            yield self._mended(result, progress)
            rows = rows[len(part) :]

    def _halve(self, size: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.stream:
            raise InputError("out of memory; with --noise stream batches cannot be split: give a smaller --batch_size")
        if size == 1:
            raise InputError("out of memory with a single image; free memory, or use a machine with more")
        if self.limit is None:
            say(f"Out of memory with {size} images: the batches are halved from here on; the results are the same.")
        self.limit = size // 2
        if self.explainer.pad_to:
            self.explainer = replace(self.explainer, pad_to=self.limit)

    def _mended(self, result: Explanations, progress: Progress | None) -> Explanations:
        rows = [row for row, finite in enumerate(result.finite.tolist()) if not finite]
        if not rows or self._in_float32 is None:
            return result
        if self._precise is None:
            self._precise = self._in_float32()
        again = self._precise(_part(result.batch, rows), progress)
        for name in ("noisy", "cf", "cf_pred", "cf_p_target", "scale", "finite"):
            getattr(result, name)[rows] = getattr(again, name)
        for kind, images in again.frames.items():
            result.frames[kind][rows] = images
        return result


def _part(batch: Batch, rows: list[int]) -> Batch:
    if len(rows) == len(batch):
        return batch
    conditions = None if batch.conditions is None else batch.conditions[rows]
    return Batch([batch.ids[row] for row in rows], batch.x[rows], batch.label[rows], conditions)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
