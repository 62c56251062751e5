"""Explaining a batch although it does not fit into memory, or half precision overflows on one of its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from dime.core.cli import say
from dime.core.errors import InputError
from dime.core.explain import Batch, BatchExplainer, Explainer, Explanations, Progress, Trial, joined
from dime.core.noise import StreamNoise

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


Item = TypeVar("Item", Trial, int)
Result = TypeVar("Result")


class RecoveringExplainer(BatchExplainer):
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
        self._precise: BatchExplainer | None = None

    @property
    def stream(self) -> StreamNoise | None:
        """The random numbers that run on from batch to batch, if they do."""
        return self.explainer.noise if isinstance(self.explainer.noise, StreamNoise) else None

    def begin(self, batch: Batch, at_least: int = 0) -> list[Trial]:
        """See BatchExplainer. Raises InputError as `attempt`."""
        rows = list(range(len(batch)))
        parts = self._in_parts(lambda part, at_least: self.explainer.begin(batch.rows(part), at_least), rows, at_least)
        return [trial for part in parts for trial in part]

    def attempt(
        self, trials: Sequence[Trial], at_least: int = 0, progress: Progress | None = None
    ) -> tuple[Explanations, list[Trial]]:
        """See BatchExplainer.

        Raises InputError if a single image does not fit, or if smaller batches would change the random numbers.
        """
        parts = list(
            self._in_parts(
                lambda part, at_least: self.explainer.attempt(part, at_least, progress), list(trials), at_least
            )
        )
        finished = joined([finished for finished, _ in parts])
        return self._mended(finished, progress), [trial for _, again in parts for trial in again]

    def _in_parts(self, run: Callable[[list[Item], int], Result], items: list[Item], at_least: int) -> Iterator[Result]:
        """What `run` gives for the items, all at once while memory suffices."""
        while items:
            part = items[: self.limit]
            try:
                result = run(part, min(at_least, self.limit or at_least))
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                result = None  # and leave the handler, which keeps the failed attempt's tensors alive
            if result is None:
                self._halve(max(len(part), at_least))
                continue
            yield result
            items = items[len(part) :]

    def _halve(self, size: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.stream:
            raise InputError("out of memory; with --noise stream batches cannot be split: give a smaller --batch_size")
        size = min(size, self.limit or size)
        if size == 1:
            raise InputError("out of memory with a single image; free memory, or use a machine with more")
        if self.limit is None:
            say(f"Out of memory with {size} images: the batches are halved from here on; the results are the same.")
        self.limit = size // 2
        if self.explainer.pad_to:
            self.explainer = replace(self.explainer, pad_to=self.limit)

    def _mended(self, result: Explanations, progress: Progress | None) -> Explanations:
        lost = [row for row, finite in enumerate(result.finite.tolist()) if not finite]
        if not lost or self._in_float32 is None:
            return result
        if self._precise is None:
            self._precise = RecoveringExplainer(self._in_float32())
        kept = [row for row in range(len(result.batch)) if row not in lost]
        return joined([result.rows(kept), self._precise(result.batch.rows(lost), progress)])


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
