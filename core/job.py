"""The main job: one chunk of a data set, from its images to the written results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from tqdm import tqdm

from core.datasets import CelebA
from core.errors import InputError
from core.explain import Batch, Explainer
from core.files import write_atomically
from core.results import ResultTree
from core.summary import ImageRecord, Summary, summarise, write_stats, write_summary
from core.writer import check_original, write_explanations

REDRAW_SECONDS = {True: 0.2, False: 60.0}
"""How often the progress bar is drawn: on a terminal, and into a file."""


@dataclass(frozen=True)
class Job:
    """What to explain and where to put it.

    ids: the images of this chunk, positions in the data set. query_label: the attribute whose decision is explained.
    config: the run's flags, kept beside its results. conditional: the diffusion model is told the image's labels.
    """

    dataset: CelebA
    ids: Sequence[int]
    query_label: int
    batch_size: int
    tree: ResultTree
    config: dict[str, Any]
    num_chunks: int = 1
    chunk: int = 0
    save_images: bool = True
    conditional: bool = False

    def check(self) -> None:
        """Raise InputError for what would stop the job half-way: no image, missing images, a tree of other data."""
        if not self.ids:
            raise InputError(
                f"no image is left to explain (of {len(self.dataset)}): see --target_label, --num_chunks and --chunk"
            )
        self.dataset.require_images(self.ids)
        if self.save_images:
            for id in self.ids:
                if self.tree.stored_originals(id):
                    check_original(self.tree, id, self.dataset[id].image)

    def run(self, explainer: Explainer, device: torch.device) -> Summary:
        """Explain every image, writing results batch by batch; returns the summary that stands on disk."""
        self.tree.create()
        write_atomically(self._report("config.yaml"), yaml.safe_dump(self.config, sort_keys=True))
        records: list[ImageRecord] = []
        failed: list[int] = []
        with _Progress(len(self.ids)) as progress:
            for batch in self._batches(device):
                result = explainer(batch, progress.step)
                finished = write_explanations(result, self.tree if self.save_images else None)
                records += finished
                failed += sorted(set(batch.ids) - {record.id for record in finished})
                write_stats(self._report("stats.pth"), records)
                progress.done(len(batch), sum(record.flipped for record in records), len(records))
        if failed:
            self._report_failed(failed)
        summary = summarise(records, failed=len(failed))
        write_summary(self._report("summary.yaml"), summary)
        return summary

    def _batches(self, device: torch.device) -> Iterator[Batch]:
        for start in range(0, len(self.ids), self.batch_size):
            samples = [self.dataset[id] for id in self.ids[start : start + self.batch_size]]
            labels = torch.stack([sample.labels for sample in samples]).to(device)
            yield Batch(
                ids=[sample.id for sample in samples],
                x=torch.stack([sample.image for sample in samples]).to(device),
                label=labels[:, self.query_label].long(),
                conditions=labels if self.conditional else None,
            )

    def _report_failed(self, failed: list[int]) -> None:
        reasons = dict.fromkeys(failed, "the counterfactual is not finite")
        write_atomically(self._report("failed.yaml"), yaml.safe_dump(reasons))

    def _report(self, name: str):
        return self.tree.report(name, self.num_chunks, self.chunk)


class _Progress:
    """A bar on stderr: images done, images per second, time left, flip rate, and the step under way."""

    def __init__(self, total: int) -> None:
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=total, unit="image", desc="Explaining", mininterval=REDRAW_SECONDS[self.live], dynamic_ncols=True
        )
        self.flip_rate: list[str] = []

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.set_postfix_str(", ".join(self.flip_rate), refresh=False)
        self.bar.close()

    def step(self, scale: float, step: int) -> None:
        """An outer step begins."""
        if self.live:
            self.bar.set_postfix_str(", ".join([*self.flip_rate, f"scale {scale:g}, step {step}"]))

    def done(self, images: int, flipped: int, finished: int) -> None:
        """A batch is written."""
        self.flip_rate = [f"{100 * flipped / max(finished, 1):.1f} % flipped"]
        self.bar.set_postfix_str(self.flip_rate[0], refresh=False)
        self.bar.update(images)
