"""The main job: one chunk of a data set, from its images to the written results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from tqdm import tqdm

from dime.core.datasets import Source
from dime.core.errors import InputError
from dime.core.explain import Batch, Explanations, Trial
from dime.core.files import write_atomically
from dime.core.job.identity import Identity, require_same_run, short_hash
from dime.core.job.lock import exclusive
from dime.core.job.progress_log import CONFIG, LOCK, NOISE, STATS, SUMMARY, ProgressLog
from dime.core.job.recovery import RecoveringExplainer
from dime.core.job.work_queue import WorkQueue
from dime.core.job.writer import check_original, write_explanations
from dime.core.photos import BadImageError
from dime.core.summary import ImageRecord, Summary, summarise, write_stats, write_summary

NOT_FINITE = "the counterfactual is not finite"
REDRAW_SECONDS = {True: 0.2, False: 60.0}
"""How often the progress bar is drawn: on a terminal, and into a file."""

Check = Callable[[], None]
"""Called where the job may end early: raises what is to end it."""


@dataclass(frozen=True)
class Job:
    """What to explain and where to put it.

    log: the images of this chunk, positions in the data set, and where their files lie. total: how many images all
    chunks have. query_label: the attribute whose decision is explained. config: the run's flags, kept beside its
    results with `identity`, which another run into the same folder must share. refill: see core.job.work_queue.
    conditional: the diffusion model is told the image's labels. abort_on_bad_image: raise instead of recording it.
    overwrite: forget earlier results.
    """

    dataset: Source
    log: ProgressLog
    total: int
    query_label: int
    batch_size: int
    config: dict[str, Any]
    identity: Identity
    refill: bool = True
    conditional: bool = False
    abort_on_bad_image: bool = False
    overwrite: bool = False

    def run(self, explain: RecoveringExplainer, device: torch.device, check: Check = lambda: None) -> Summary:
        """Explain what is not finished yet, image by image onto the disk; returns the summary that stands there.

        Raises InputError if the folder belongs to another run or to a living process, holds other inputs under these
        ids, or cannot be written.
        """
        log = self.log
        log.tree.create()
        with exclusive(log.report(LOCK)):
            records = self._begin(check)
            failed: dict[int, str] = {}
            with _Progress(len(log.ids)) as progress:
                progress.done(records)
                for finished in self._work(explain, records, failed, device, progress):
                    skip = {*records, *failed}  # what stands there already, and the stand-ins of bad images
                    for record in write_explanations(finished, log.tree if log.save_images else None, skip):
                        records[record.id] = record
                        check()
                    failed |= {id: NOT_FINITE for id in finished.batch.ids if id not in records and id not in failed}
                    write_stats(log.report(STATS), self._in_order(records))
                    if failed:
                        log.write_failed(failed)
                    progress.done(records, failed)
            log.write_failed(failed)
            return self._end(records, failed, explain.limit)

    def _work(
        self,
        explain: RecoveringExplainer,
        records: dict[int, ImageRecord],
        failed: dict[int, str],
        device: torch.device,
        progress: _Progress,
    ) -> Iterator[Explanations]:
        """What is finished, group by group; bad images are put into `failed`.

        Groups are the same in every run of the command. Images that an earlier run has finished are not computed
        again: the others repeat one of theirs in their places, so that they meet the same kernels, and get the same
        bytes, as in their company.
        """
        queue, left = self._queue(explain, records)
        trials: dict[int, Trial] = {}
        for group in queue:
            new = [id for id in group.new if id not in left]
            if new:
                batch, bad = self._load(new, device)
                failed.update(bad)
                trials |= {trial.id: trial for trial in explain.begin(batch, len(group.new))}
            tried = [trials[id] for id in group.ids if id in trials]
            if tried:
                finished, again = explain.attempt(tried, len(group.ids), progress.step)
                trials = {trial.id: trial for trial in again}
                if len(finished.batch):
                    yield finished
            for id in group.ids:
                if id in left:
                    left[id] -= 1
            queue.again = [id for id in group.ids if id in trials or left.get(id)]
            if explain.stream and not queue.again:
                begun = len(self.log.ids) - len(queue.waiting)
                self.log.save_noise(-(-begun // self.batch_size), explain.stream.state)

    def _begin(self, check: Check) -> dict[int, ImageRecord]:
        """Make sure that the folder is this run's, tidy it up, and see what is finished."""
        if self.overwrite:
            self.log.start_afresh()
        else:
            require_same_run(self.log.tree, self.identity)
        records = self.log.finished()
        if self.log.save_images:
            for id in self.log.ids:
                check()
                if id not in records:
                    self._check_original(id)
        self.log.clean(records)
        config = {**self.config, "identity": self.identity}
        write_atomically(self.log.report(CONFIG), yaml.safe_dump(config, sort_keys=True))
        return records

    def _check_original(self, id: int) -> None:
        if self.log.tree.stored_originals(id):
            try:
                image = self.dataset.load(id)
            except BadImageError:
                return  # its turn comes
            check_original(self.log.tree, id, image)

    def _queue(self, explain: RecoveringExplainer, records: dict[int, ImageRecord]) -> tuple[WorkQueue, dict[int, int]]:
        """What is to be done, and how many attempts each finished image has had, which need not be made again.

        A stream of random numbers goes on after the last batch that was complete, or from its beginning.
        """
        ids, size = self.log.ids, self.batch_size
        unfinished = [place for place, id in enumerate(ids) if id not in records]
        if not unfinished:
            return WorkQueue((), size, self.refill), {}
        if explain.stream is None:
            return WorkQueue(ids, size, self.refill), _attempts(records, explain.explainer.scales)
        complete, state = self.log.saved_noise()
        if state is None or complete > unfinished[0] // size:
            return WorkQueue(ids, size, refill=False), {}
        try:
            explain.stream.state = state
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{self.log.report(NOISE)}: not a random state of this device ({error})") from None
        return WorkQueue(ids[complete * size :], size, refill=False), {}

    def _load(self, ids: Sequence[int], device: torch.device) -> tuple[Batch, dict[int, str]]:
        """A batch, and the bad images in it (id -> why), in whose place others stand."""
        images: list[torch.Tensor] = []
        bad: dict[int, str] = {}
        for id in ids:
            try:
                images.append(self.dataset.load(id))
            except BadImageError as error:
                if self.abort_on_bad_image:
                    raise
                bad[id] = str(error)
                images.append(self.dataset.stand_in())
        conditions = torch.stack([self.dataset.conditions(id) for id in ids]).to(device) if self.conditional else None
        batch = Batch(
            ids=list(ids),
            x=torch.stack(images).to(device),
            label=torch.as_tensor(self.dataset.targets(self.query_label)[list(ids)], device=device),
            conditions=conditions,
        )
        return batch, bad

    def _end(self, records: dict[int, ImageRecord], failed: dict[int, str], limit: int | None) -> Summary:
        """The files of a finished chunk."""
        log, ordered = self.log, self._in_order(records)
        write_stats(log.report(STATS), ordered)
        summary = summarise(ordered, failed=len(failed))
        if limit is not None:
            summary["batch size"] = limit
        if log.num_chunks != 1:  # what merging needs to prove that nothing is missing
            summary["run"] = {
                "chunk": log.chunk,
                "num_chunks": log.num_chunks,
                "images": len(log.ids),
                "total": self.total,
                "identity": short_hash(self.identity),
            }
        write_summary(log.report(SUMMARY), summary)
        log.report(NOISE).unlink(missing_ok=True)
        return summary

    def _in_order(self, records: dict[int, ImageRecord]) -> list[ImageRecord]:
        return [records[id] for id in self.log.ids if id in records]


def require_images(dataset: Source, selection: Sequence[int], ids: Sequence[int], all_of_them: bool) -> None:
    """Raise InputError if nothing is selected, or this chunk's images are not there: any of them, or all of them."""
    if not selection:
        raise InputError(f"no image is left to explain (of {len(dataset)}): see --target_label")
    if ids:  # else there are more chunks than images: this one's summary says so
        dataset.require_images(ids, all_of_them)


def _attempts(records: dict[int, ImageRecord], scales: Sequence[float]) -> dict[int, int]:
    """id -> how many scales were tried, of the images whose last one stands in `scales` once."""
    exact = torch.tensor(scales).tolist()  # as float32, like those of the records
    return {id: exact.index(record.scale) + 1 for id, record in records.items() if exact.count(record.scale) == 1}


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

    def done(self, records: dict[int, ImageRecord], failed: Sized = ()) -> None:
        """So much is finished."""
        flipped = sum(record.flipped for record in records.values())
        self.flip_rate = [f"{100 * flipped / max(len(records), 1):.1f} % flipped"]
        self.bar.set_postfix_str(self.flip_rate[0], refresh=False)
        self.bar.update(len(records) + len(failed) - self.bar.n)
