"""Explaining a batch although it does not fit into memory, or half precision overflows on one of its images."""

from collections.abc import Callable
from dataclasses import replace

import torch

from dime.core.cli import say
from dime.core.errors import InputError
from dime.core.explain import Batch, Explainer, Explanations, Progress

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


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
        self._precise: RecoveringExplainer | None = None

    def __call__(self, batch: Batch, progress: Progress | None = None) -> Explanations:
        """As Explainer.explain.

        Raises InputError if a single image does not fit, or if smaller batches would change the random numbers.
        """
        parts, rows = [], list(range(len(batch)))
        while rows:
            part = batch.rows(rows[: self.limit])
            try:
                result = self.explainer.explain(part, progress)
            except (RuntimeError, MemoryError) as error:
                by_name = any(words in str(error) for words in OUT_OF_MEMORY)
                if not by_name and not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
                    raise
                result = None  # and leave the handler, which keeps the failed attempt's tensors alive
            if result is None:
                self._halve(len(part))
            else:
                parts.append(result)
                rows = rows[len(part) :]
        result = Explanations.joined(parts)
        finite = result.finite.tolist()
        if all(finite) or self._in_float32 is None:
            return result
        if self._precise is None:
            self._precise = RecoveringExplainer(self._in_float32())
        lost = [row for row, whole in enumerate(finite) if not whole]
        both = Explanations.joined([result, self._precise(batch.rows(lost), progress)])
        return both.rows([len(finite) + lost.index(row) if row in lost else row for row in range(len(finite))])

    def _halve(self, size: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.explainer.settings.noise == "stream":
            raise InputError("out of memory; with --noise stream batches cannot be split: give a smaller --batch_size")
        size = max(size, self.explainer.pad_to or 0)
        if size == 1:
            raise InputError("out of memory with a single image; free memory, or use a machine with more")
        if self.limit is None:
            say(f"Out of memory with {size} images: the batches are halved from here on; the results are the same.")
        self.limit = size // 2
        if self.explainer.pad_to:
            self.explainer = replace(self.explainer, pad_to=self.limit)
