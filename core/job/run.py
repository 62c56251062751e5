"""A run: one chunk of a data set, from its images to the written results."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from dataclasses import dataclass, field

import torch
import yaml
from tqdm import tqdm

from dime.core.datasets import PUBLISHED
from dime.core.errors import InputError
from dime.core.explain import Batch, Explanations
from dime.core.files import write_atomically
from dime.core.job.identity import identity_of, require_same_run, short_hash
from dime.core.job.recovery import RecoveringExplainer
from dime.core.job.setup import Setup
from dime.core.job.writer import (
    CONFIG,
    INDEX,
    LOCK,
    STATS,
    SUMMARY,
    ChunkFiles,
    check_original,
    exclusive,
    write_explanations,
)
from dime.core.photos import BadImageError
from dime.core.results import ResultTree
from dime.core.summary import ImageRecord, Summary, summarise, write_stats, write_summary

NOT_FINITE = "the counterfactual is not finite"
AT_TARGET = "its prediction is the target already"


@dataclass
class Run:
    """What to explain and where to put it.

    records: the finished images. failed: the others that have had their turn, with the reason.
    """

    setup: Setup
    tree: ResultTree
    records: dict[int, ImageRecord] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, self.source, self.question = self.setup.config, self.setup.source, self.setup.question
        self.config, self.ids = config, self.setup.selection[config.chunk :: config.num_chunks]
        if self.ids:  # else there are more chunks than images: this one's summary says so
            self.source.require_images(self.ids, all_of_them=config.on_bad_image != "record")
        self.files = ChunkFiles(self.tree, config, self.ids)
        self.flags = {**config.flags(), **self.setup.explainer.diffusion.flags, "classes": list(self.question.classes)}

    def __call__(self) -> Summary:
        """Explain what is not finished yet, image by image onto the disk; returns the summary that stands there.

        Raises InputError if the folder belongs to another run or to a living process, holds other inputs under these
        ids, or cannot be written.
        """
        in_float32 = self.setup.in_float32 if self.config.precision != "fp32" else None
        explain = RecoveringExplainer(self.setup.explainer, in_float32)
        self.identity = identity_of(self.setup, self.flags)  # from here on nothing but the disk can fail
        self.tree.create()
        with exclusive(self.files.report(LOCK)):
            self._begin()
            with _ProgressBar(self) as bar:
                for ids in self._batches():
                    self._write(explain(self._load(ids), bar.step))
                    bar.update()
            self.files.write_failed(self.failed)
            return self._end(explain.limit)

    def _batches(self) -> list[list[int]]:
        """The batches that are not finished, the same in every run of the command.

        One that is finished in part is computed whole, so that each image meets the same company, and gets the same
        bytes. A stream of random numbers runs through all batches: it starts at the first one again.
        """
        size = self.config.batch_size
        anew = self.config.noise == "stream" and not all(id in self.records for id in self.ids)
        batches = [self.ids[start : start + size] for start in range(0, len(self.ids), size)]
        return [batch for batch in batches if anew or not all(id in self.records for id in batch)]

    def _begin(self) -> None:
        """Make sure that the folder is this run's, tidy it up, and see what is finished."""
        files = self.files
        if self.config.overwrite:
            files.start_afresh()
        else:
            require_same_run(self.tree, self.identity)
        self.records = files.finished()
        for id in self.ids if self.config.save_images else ():
            if id not in self.records and self.tree.stored_originals(id):
                with contextlib.suppress(BadImageError):  # its turn comes
                    check_original(self.tree, id, self.source.load(id))
        files.clean(self.records)
        config = yaml.safe_dump({**self.flags, "identity": self.identity}, sort_keys=True)
        write_atomically(files.report(CONFIG), config)
        if self.config.dataset not in PUBLISHED or self.config.images:
            index = io.StringIO()
            rows = [("id", "file"), *((id, self.source.relative_name(id)) for id in self.setup.selection)]
            csv.writer(index, lineterminator="\n").writerows(rows)
            write_atomically(self.tree.report(INDEX), index.getvalue())

    def _load(self, ids: list[int]) -> Batch:
        """The images; a grey one stands in for a bad one, whose neighbours keep the shape of their batch."""
        images, device, question = [], self.setup.device, self.question
        for id in ids:
            try:
                images.append(self.source.load(id))
            except BadImageError as error:
                if self.config.on_bad_image == "abort":
                    raise
                self.failed[id] = str(error)
                images.append(self.source.stand_in())
        conditional = self.setup.explainer.diffusion.class_cond
        return Batch(
            ids=ids,
            x=torch.stack(images).to(device),
            label=None if question.labels is None else torch.from_numpy(question.labels[ids]).long().to(device),
            target=torch.tensor([question.target(id) for id in ids], device=device) if question.target else None,
            conditions=torch.stack([self.source.conditions(id) for id in ids]).to(device) if conditional else None,
        )

    def _write(self, result: Explanations) -> None:
        tree = self.tree if self.config.save_images else None
        skip = {*self.records, *self.failed}  # what stands there already, and the stand-ins of bad images
        for record in write_explanations(result, tree, skip, binary=not self.question.classes):
            self.records[record.id] = record
        for id, at_target in zip(result.ids, (result.pred == result.target).tolist(), strict=True):
            if id not in self.records and id not in self.failed:
                self.failed[id] = AT_TARGET if at_target else NOT_FINITE
        write_stats(self.files.report(STATS), self._in_order())
        if self.failed:
            self.files.write_failed(self.failed)

    def _end(self, limit: int | None) -> Summary:
        """The files of a finished chunk."""
        files, ordered = self.files, self._in_order()
        if self.ids and not ordered and set(self.failed.values()) == {AT_TARGET}:
            raise InputError(f"--target {self.config.target}: the prediction of all {len(self.ids)} images already")
        write_stats(files.report(STATS), ordered)
        summary = summarise(ordered, failed=len(self.failed), classes=self.question.classes)
        if self.question.labels is None:
            summary["unlabelled"] = len(ordered)  # their predictions stand for labels
        if limit is not None:
            summary["batch size"] = limit
        if self.config.num_chunks != 1:  # what merging needs to prove that nothing is missing
            summary["run"] = {
                "chunk": self.config.chunk,
                "num_chunks": self.config.num_chunks,
                "images": len(self.ids),
                "total": len(self.setup.selection),
                "identity": short_hash(self.identity),
            }
        write_summary(files.report(SUMMARY), summary)
        return summary

    def _in_order(self) -> list[ImageRecord]:
        return [self.records[id] for id in self.ids if id in self.records]


class _ProgressBar(tqdm):
    """A bar on stderr: images done, images per second, time left, flip rate, and the step under way."""

    def __init__(self, run: Run) -> None:
        self.run, self.live = run, sys.stderr.isatty()
        super().__init__(
            total=len(run.ids),
            unit="image",
            desc="Explaining",
            mininterval=0.2 if self.live else 60.0,  # between two lines on a terminal, in a file
            dynamic_ncols=True,
        )
        self.update()

    def step(self, scale: float, step: int) -> None:
        """An outer step begins."""
        if self.live:
            self.set_postfix_str(f"{self.flip_rate}, scale {scale:g}, step {step}")

    def update(self, n: float = 0) -> None:
        """So much is finished."""
        records, failed = self.run.records, self.run.failed
        flipped = sum(record.flipped for record in records.values())
        self.flip_rate = f"{100 * flipped / max(len(records), 1):.1f} % flipped"
        self.set_postfix_str(self.flip_rate, refresh=False)
        super().update(len({*records, *failed}) - self.n)
