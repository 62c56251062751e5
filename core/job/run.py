"""A run: one chunk of a data set, from its images to the written results."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from tqdm import tqdm

from dime.core.datasets import Source
from dime.core.errors import InputError
from dime.core.explain import Batch, Explanations
from dime.core.files import write_atomically
from dime.core.job.chunk_files import CONFIG, INDEX, LOCK, STATS, SUMMARY, ChunkFiles
from dime.core.job.identity import Identity, require_same_run, short_hash
from dime.core.job.lock import exclusive
from dime.core.job.recovery import RecoveringExplainer
from dime.core.job.writer import check_original, write_explanations
from dime.core.photos import BadImageError
from dime.core.summary import ImageRecord, Summary, summarise, write_stats, write_summary

NOT_FINITE = "the counterfactual is not finite"
AT_TARGET = "its prediction is the target already"
REDRAW_SECONDS = {True: 0.2, False: 60.0}
"""How often the progress bar is drawn: on a terminal, and into a file."""


@dataclass(frozen=True)
class Job:
    """What to explain and where to put it.

    files: the images of this chunk, positions in the source, and where their files lie. selection: those of all
    chunks. labels: (n,) the truth about the decision for every image of the source; None: unknown. targets: the
    class that an image is to become; None: the explainer's choice. config: the run's flags, kept beside its results
    with `identity`, which another run into the same folder must share. classes: names of the classes; empty for a
    binary decision. index: write index.csv, which
    file each id stands for. abort_on_bad_image: raise instead of recording it. overwrite: forget earlier results.
    """

    source: Source
    files: ChunkFiles
    selection: Sequence[int]
    batch_size: int
    config: dict[str, Any]
    identity: Identity
    labels: Sequence[int] | None = None
    targets: Callable[[int], int] | None = None
    classes: Sequence[str] = ()
    conditional: bool = False
    index: bool = False
    abort_on_bad_image: bool = False
    overwrite: bool = False

    def run(self, explain: RecoveringExplainer, device: torch.device) -> Summary:
        """Explain what is not finished yet, image by image onto the disk; returns the summary that stands there.

        Raises InputError if the folder belongs to another run or to a living process, holds other inputs under these
        ids, or cannot be written.
        """
        files = self.files
        files.tree.create()
        with exclusive(files.report(LOCK)):
            state = _State(self._begin())
            with _ProgressBar(len(files.ids)) as bar:
                bar.done(state.records)
                for ids in self._batches(state, stream=explain.explainer.settings.noise == "stream"):
                    batch = self._load(ids, state, device)
                    self._write(explain(batch, bar.step), state)
                    bar.done(state.records, state.failed)
            files.write_failed(state.failed)
            return self._end(state, explain.limit)

    def _batches(self, state: _State, stream: bool) -> Iterator[list[int]]:
        """The batches that are not finished, the same in every run of the command.

        One that is finished in part is computed whole, so that each image meets the same company, and gets the same
        bytes. A stream of random numbers runs through all batches: it starts at the first one again.
        """
        ids, size = self.files.ids, self.batch_size
        batches = [list(ids[start : start + size]) for start in range(0, len(ids), size)]
        if stream and not all(id in state.records for id in ids):
            yield from batches
            return
        yield from (batch for batch in batches if not all(id in state.records for id in batch))

    def _begin(self) -> dict[int, ImageRecord]:
        """Make sure that the folder is this run's, tidy it up, and see what is finished."""
        files = self.files
        if self.overwrite:
            files.start_afresh()
        else:
            require_same_run(files.tree, self.identity)
        records = files.finished()
        if files.save_images:
            for id in files.ids:
                if id not in records and files.tree.stored_originals(id):
                    self._check_original(id)
        files.clean(records)
        config = {**self.config, "identity": self.identity}
        write_atomically(files.report(CONFIG), yaml.safe_dump(config, sort_keys=True))
        if self.index:
            write_atomically(files.tree.report(INDEX), self._index())
        return records

    def _check_original(self, id: int) -> None:
        try:
            image = self.source.load(id)
        except BadImageError:
            return  # its turn comes
        check_original(self.files.tree, id, image)

    def _index(self) -> str:
        """index.csv: which file an id stands for."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("id", "file"))
        table.writerows((id, self.source.relative_name(id)) for id in self.selection)
        return text.getvalue()

    def _load(self, ids: list[int], state: _State, device: torch.device) -> Batch:
        """The images; a grey one stands in for a bad one, whose neighbours keep the shape of their batch."""
        images = []
        for id in ids:
            try:
                images.append(self.source.load(id))
            except BadImageError as error:
                if self.abort_on_bad_image:
                    raise
                state.failed[id] = str(error)
                images.append(self.source.stand_in())

        def column(value_of: Callable[[int], int] | None) -> torch.Tensor | None:
            return None if value_of is None else torch.tensor([int(value_of(id)) for id in ids], device=device)

        conditions = [self.source.conditions(id) for id in ids] if self.conditional else None
        return Batch(
            ids=ids,
            x=torch.stack(images).to(device),
            label=column(None if self.labels is None else self.labels.__getitem__),
            target=column(self.targets),
            conditions=None if conditions is None else torch.stack(conditions).to(device),
        )

    def _write(self, result: Explanations, state: _State) -> None:
        tree = self.files.tree if self.files.save_images else None
        skip = {*state.records, *state.failed}  # what stands there already, and the stand-ins of bad images
        for record in write_explanations(result, tree, skip, binary=not self.classes):
            state.records[record.id] = record
        for id, at_target in zip(result.ids, (result.pred == result.target).tolist(), strict=True):
            if id not in state.records and id not in state.failed:
                state.failed[id] = AT_TARGET if at_target else NOT_FINITE
        write_stats(self.files.report(STATS), self._in_order(state.records))
        if state.failed:
            self.files.write_failed(state.failed)

    def _end(self, state: _State, limit: int | None) -> Summary:
        """The files of a finished chunk."""
        files, ordered = self.files, self._in_order(state.records)
        if files.ids and not ordered and set(state.failed.values()) == {AT_TARGET}:
            raise InputError(f"--target {self.config['target']}: the prediction of all {len(files.ids)} images already")
        write_stats(files.report(STATS), ordered)
        summary = summarise(ordered, failed=len(state.failed), classes=self.classes)
        if self.labels is None:
            summary["unlabelled"] = len(ordered)  # their predictions stand for labels
        if limit is not None:
            summary["batch size"] = limit
        if files.num_chunks != 1:  # what merging needs to prove that nothing is missing
            summary["run"] = {
                "chunk": files.chunk,
                "num_chunks": files.num_chunks,
                "images": len(files.ids),
                "total": len(self.selection),
                "identity": short_hash(self.identity),
            }
        write_summary(files.report(SUMMARY), summary)
        return summary

    def _in_order(self, records: dict[int, ImageRecord]) -> list[ImageRecord]:
        return [records[id] for id in self.files.ids if id in records]


@dataclass
class _State:
    """How far a run is: the finished images, and the failed ones with the reason."""

    records: dict[int, ImageRecord]
    failed: dict[int, str] = field(default_factory=dict)


class _ProgressBar:
    """A bar on stderr: images done, images per second, time left, flip rate, and the step under way."""

    def __init__(self, total: int) -> None:
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=total, unit="image", desc="Explaining", mininterval=REDRAW_SECONDS[self.live], dynamic_ncols=True
        )
        self.flip_rate = ""

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.set_postfix_str(self.flip_rate, refresh=False)
        self.bar.close()

    def step(self, scale: float, step: int) -> None:
        """An outer step begins."""
        if self.live:
            self.bar.set_postfix_str(f"{self.flip_rate}, scale {scale:g}, step {step}")

    def done(self, records: dict[int, ImageRecord], failed: Sized = ()) -> None:
        """So much is finished."""
        flipped = sum(record.flipped for record in records.values())
        self.flip_rate = f"{100 * flipped / max(len(records), 1):.1f} % flipped"
        self.bar.set_postfix_str(self.flip_rate, refresh=False)
        self.bar.update(len(records) + len(failed) - self.bar.n)
