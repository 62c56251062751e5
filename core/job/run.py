"""A run: one chunk of a data set, from its images to the written results, alone or shared with other processes."""

import contextlib
import csv
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from dime.core.cli import say
from dime.core.datasets import PUBLISHED
from dime.core.errors import InputError
from dime.core.explain import Batch, Explanations
from dime.core.files import write_atomically
from dime.core.job import writer
from dime.core.job.identity import identity_of, require_same_run, short_hash
from dime.core.job.queue import BUSY, POLL, Queue, Start
from dime.core.job.recovery import RecoveringExplainer
from dime.core.job.setup import Setup
from dime.core.job.world import World
from dime.core.job.writer import ChunkFiles, check_original, write_explanations
from dime.core.photos import BadImageError
from dime.core.results import ResultTree
from dime.core.summary import ImageRecord, Summary, summarise, write_stats, write_summary

NOT_FINITE = "the counterfactual is not finite"
AT_TARGET = "its prediction is the target already"
LOOK = 2.0
"""Seconds between two looks at what the other processes have done."""
AGREED = ("exp_name", "chunk", "overwrite", "on_bad_image", "oracle_figures")
"""Flags outside a run's identity that have to be the same in all processes that share it."""


class Lease(NamedTuple):
    """A batch that this process does. number: in the queue. failed: the bad images, with the reason; grey ones stand in
    for them in `batch`.
    """

    number: int
    batch: Batch
    failed: dict[int, str]


@dataclass
class Run:
    """What to explain and where to put it, in this process and those of its world."""

    setup: Setup
    tree: ResultTree
    world: World

    def __post_init__(self) -> None:
        config, self.source, self.question = self.setup.config, self.setup.source, self.setup.question
        self.config, self.ids = config, self.setup.selection[config.chunk :: config.num_chunks]
        if self.ids:  # else there are more chunks than images: this one's summary says so
            self.source.require_images(self.ids, all_of_them=config.on_bad_image != "record")
        self.files = ChunkFiles(self.tree, config, self.ids)
        self.flags = {**config.flags(), **self.setup.explainer.diffusion.flags, "classes": list(self.question.classes)}
        self.seconds: Counter[str] = Counter()
        self._interrupted = threading.Event()

    def __call__(self) -> Summary | None:
        """Explain what is not finished yet, image by image onto the disk.

        Returns the summary that stands there, in the one process that ends the run; None in the others. Raises
        InputError if the folder belongs to another run or to a living process, holds other inputs under these ids, or
        cannot be written.
        """
        in_float32 = self.setup.in_float32 if self.config.precision != "fp32" else None
        explain = RecoveringExplainer(self.setup.explainer, in_float32)
        self.identity = identity_of(self.setup, self.flags)  # from here on nothing but the disk can fail
        streamed = self.config.noise == "stream"
        if streamed and not self.world.alone:
            raise InputError("--noise stream: one process draws it, image after image; start only one")
        self.world.compare({**self.identity, **{name: self.flags[name] for name in AGREED}})
        name = "" if streamed else self.world.name
        self.queue = Queue(self.files.report(writer.QUEUE), name, self.world.me, self.world.speaks)
        with self.world.at_work(self.queue, self._begin):
            try:
                self._work(explain)
                return self._end() if self.queue.ends_the_run else None
            except InputError as error:
                self.queue.stop(f"{self.world.me}: {error}")
                raise

    def _begin(self, of_the_dead: list[Any]) -> Start:
        """Make sure that the folder is this run's, tidy it up, and see what is finished."""
        files, config = self.files, self.config
        self.tree.create()
        if config.overwrite:
            files.start_afresh()
        else:
            require_same_run(self.tree, self.identity)
        records = files.finished()
        if not config.save_images and not config.overwrite:
            records = {**records_in(of_the_dead), **records}
            if records:
                write_stats(files.report(writer.STATS), list(records.values()))
        for id in self.ids if config.save_images else ():
            if id not in records and self.tree.stored_originals(id):
                with contextlib.suppress(BadImageError):  # its turn comes
                    check_original(self.tree, id, self.source.load(id))
        files.clean(records)
        text = yaml.safe_dump({**self.flags, "identity": self.identity}, sort_keys=True)
        write_atomically(files.report(writer.CONFIG), text)
        if config.dataset not in PUBLISHED or config.images:
            index = io.StringIO()
            rows = [("id", "file"), *((id, self.source.relative_name(id)) for id in self.setup.selection)]
            csv.writer(index, lineterminator="\n").writerows(rows)
            write_atomically(self.tree.report(writer.INDEX), index.getvalue())
        finished = {"records": [astuple(record) for record in records.values()]}
        return Start(self._batches(records), finished, len(records), sum(r.flipped for r in records.values()))

    def _batches(self, finished: Mapping[int, ImageRecord]) -> list[tuple[list[int], list[int]]]:
        """The batches that are not finished, the same in every run of the command; and what of each of them is.

        One that is finished in part is computed whole, so that each image meets the same company, and gets the same
        bytes. A stream of random numbers runs through all batches: it starts at the first one again.
        """
        size = self.config.batch_size
        anew = self.config.noise == "stream" and not all(id in finished for id in self.ids)
        batches = [self.ids[start : start + size] for start in range(0, len(self.ids), size)]
        parts = [(batch, [id for id in batch if id in finished]) for batch in batches]
        return [(batch, done) for batch, done in parts if anew or len(done) < len(batch)]

    def _work(self, explain: RecoveringExplainer) -> None:
        """Sample batch after batch, while one thread reads the next one and another writes the last one."""
        with _ProgressBar(self) as bar, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as behind:
            ahead, written = reader.submit(self._read, self.queue.take()), None
            try:
                while True:
                    with self._clock("input"):
                        lease = ahead.result()
                    if lease is None:
                        if (number := self._wait(bar, written)) is None:
                            return
                        with self._clock("input"):
                            lease = self._read(number)
                    ahead = reader.submit(lambda: self._read(self.queue.take(ahead=True)))
                    with self._clock("sampling"):
                        result = explain(lease.batch, bar.step)
                    with self._clock("output"):
                        if written:
                            written.result()
                    written = behind.submit(self._write, lease, result, explain.limit)
            except InputError:  # of the next batch, maybe: what is sampled is written
                if written:
                    written.result()
                raise
            except BaseException:
                self._interrupted.set()
                raise

    def _wait(self, bar: "_ProgressBar", written: Future | None) -> int | None:
        """A batch that nobody does, maybe after waiting for others; None when all are done."""
        while True:
            with self._clock("others"):
                number = self.queue.take()
            if number != BUSY:
                return number
            if written:
                with self._clock("output"):
                    written = written.result()
            else:
                with self._clock("others"):
                    bar.look()
                    time.sleep(POLL)

    @contextlib.contextmanager
    def _clock(self, kind: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[kind] += time.monotonic() - began

    def _read(self, number: int | None) -> Lease | None:
        """The images of a batch; a grey one stands in for a bad one, whose neighbours keep the shape of their batch."""
        if number in (None, BUSY):
            return None
        (ids, _), images, failed = self.queue.todo[number], [], {}
        for id in ids:
            try:
                images.append(self.source.load(id))
            except BadImageError as error:
                if self.config.on_bad_image == "abort":
                    raise
                failed[id] = str(error)
                images.append(self.source.stand_in())
        return Lease(number, self.setup.batch(ids, images), failed)

    def _write(self, lease: Lease, result: Explanations, limit: int | None) -> None:
        """The files of a batch, then its line in the queue."""
        tree, records = self.tree if self.config.save_images else None, []
        skip = {*self.queue.todo[lease.number][1], *lease.failed}  # what stands there already, and what is bad
        for record in write_explanations(result, tree, skip, binary=not self.question.classes):
            if self._interrupted.is_set():
                return
            records.append(record)
        failed, whole = dict(lease.failed), skip.union(record.id for record in records)
        for id, at_target in zip(result.ids, (result.pred == result.target).tolist(), strict=True):
            if id not in whole:
                failed[id] = AT_TARGET if at_target else NOT_FINITE
        seconds, self.seconds = self.seconds, Counter()
        found = {"records": [astuple(record) for record in records], "failed": failed, "limit": limit}
        flipped = sum(record.flipped for record in records)
        self.queue.done(lease.number, {**found, "seconds": seconds}, len(records) + len(failed), flipped)

    def _end(self) -> Summary:
        """The files of a finished chunk, whoever has done its images; then the queue goes."""
        files, results, lost = self.files, self.queue.results(), self.queue.lost()
        records = records_in(results)
        ordered = [records[id] for id in self.ids if id in records]
        failed = {int(id): reason for result in results for id, reason in result.get("failed", {}).items()}
        failed = {id: reason for id, reason in failed.items() if id not in records}
        files.write_failed(failed)
        if self.ids and not ordered and set(failed.values()) == {AT_TARGET}:
            raise InputError(f"--target {self.config.target}: the prediction of all {len(self.ids)} images already")
        write_stats(files.report(writer.STATS), ordered)
        summary = summarise(ordered, failed=len(failed), classes=self.question.classes)
        if self.question.labels is None:
            summary["unlabelled"] = len(ordered)  # their predictions stand for labels
        if limits := [result["limit"] for result in results if result.get("limit")]:
            summary["batch size"] = min(limits)
        if self.config.num_chunks != 1:  # what merging needs to prove that nothing is missing
            summary["run"] = {
                "chunk": self.config.chunk,
                "num_chunks": self.config.num_chunks,
                "images": len(self.ids),
                "total": len(self.setup.selection),
                "identity": short_hash(self.identity),
            }
        write_summary(files.report(writer.SUMMARY), summary)
        for name in lost:
            say(f"{name} has ended before its work was done; others have done it.")
        seconds = sum((Counter(result.get("seconds", {})) for result in results), self.seconds)
        seconds["others"] += self.queue.idle_seconds()
        if total := sum(seconds.values()) * bool(seconds["sampling"]):
            parts = [f"{100 * seconds[kind] / total:.1f} %" for kind in ("sampling", "input", "output", "others")]
            say("Time: {} sampling; waiting for input {}, for output {}, for other processes {}".format(*parts))
        self.queue.close()
        return summary


def records_in(results: Sequence[dict[str, Any]]) -> dict[int, ImageRecord]:
    """The records among what the members of a queue have finished, by id."""
    return {row[0]: ImageRecord(*row) for result in results for row in result.get("records", ())}


class _ProgressBar(tqdm):
    """A bar on stderr for all processes: images done, images per second, time left, flip rate, the step under way."""

    def __init__(self, run: Run) -> None:
        self.queue, self.live, self.flip_rate, self._looked = run.queue, sys.stderr.isatty(), "", 0.0
        state = run.queue.peek()
        super().__init__(
            total=len(run.ids),
            initial=state.done,
            unit="image",
            desc="Explaining",
            mininterval=0.2 if self.live else 60.0,  # between two lines on a terminal, in a file
            dynamic_ncols=True,
            disable=not run.world.speaks,
        )

    def step(self, scale: float, step: int) -> None:
        """An outer step begins; ends all where another process has ended all."""
        self.look()
        if self.live:
            self.set_postfix_str(f"{self.flip_rate}, scale {scale:g}, step {step}")

    def look(self) -> None:
        """See what all processes have done by now, once a second at most."""
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            if state := self.queue.peek():
                self.flip_rate = f"{100 * state.flipped / max(state.done, 1):.1f} % flipped"
                self.set_postfix_str(self.flip_rate, refresh=False)
                self.update(state.done - self.n)

    def close(self) -> None:
        """The last state."""
        self._looked = 0.0
        with contextlib.suppress(InputError, SystemExit):
            self.look()
        super().close()
