"""What of a chunk already stands on disk: which images are finished, and whether somebody is at work on them.

An image is finished when its Info file is there, which is written last, and every other file of it too. A run that
saves no images keeps its records in stats.pth, batch by batch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from dime.core.cli import say
from dime.core.config import Config, kept_frames
from dime.core.errors import InputError
from dime.core.files import remove_orphans, write_atomically
from dime.core.results import CELLS, FRAME_KINDS, IMAGE_FORMATS, ResultTree, image_files
from dime.core.summary import ImageRecord, read_stats

LOCK = "running.lock"
"""There only while a process works on the chunk."""
CONFIG, STATS, SUMMARY, FAILED, INDEX = "config.yaml", "stats.pth", "summary.yaml", "failed.yaml", "index.csv"
REPORTS = (CONFIG, STATS, SUMMARY, FAILED, INDEX)
"""The files about a whole chunk."""


@dataclass(frozen=True)
class ChunkFiles:
    """The files of one chunk of a command. ids: its images."""

    tree: ResultTree
    config: Config
    ids: Sequence[int]

    def report(self, name: str) -> Path:
        """Where a report of this chunk lies."""
        return self.tree.report(name, self.config.num_chunks, self.config.chunk)

    def finished(self) -> dict[int, ImageRecord]:
        """The records of all finished images of this chunk, by id."""
        own = set(self.ids)
        if self.config.save_images:
            return {record.id: record for record in self._written() if record.id in own}
        path = self.report(STATS)
        return {record.id: record for record in read_stats(path) if record.id in own} if path.exists() else {}

    def clean(self, finished: Mapping[int, ImageRecord]) -> None:
        """Remove what dead runs left half done: temporary files, and the images that have only some of their files."""
        unfinished = [id for id in self.ids if id not in finished]
        frames = [self.tree.frame_folder(kind, id) for kind in kept_frames(self.config) for id in unfinished]
        remove_orphans([self.tree.results, *self.tree.folders(), *frames])
        self._remove_images(set(unfinished))

    def start_afresh(self) -> None:
        """Remove this chunk's images, frames and reports; of the whole experiment's when there is one chunk only.

        Raises InputError if the folder was made with another number of chunks, or is being written by one of them.
        """
        own = [self.report(name) for name in REPORTS]
        ids = set(self.ids)
        if self.config.num_chunks == 1:
            for lock in self.tree.reports(LOCK):
                if lock != self.report(LOCK):
                    with exclusive(lock):
                        pass
            own = [path for name in REPORTS for path in self.tree.reports(name)]
            ids |= {int(path.stem) for folder in self.tree.cell_folders() for path in _named_by_id(folder)}
        else:
            same = [self.tree.report(CONFIG, self.config.num_chunks, chunk) for chunk in range(self.config.num_chunks)]
            for other in self.tree.reports(CONFIG):
                if other not in same:
                    raise InputError(
                        f"{other}: made with another --num_chunks; one chunk cannot overwrite that: choose another "
                        "--exp_name or remove the folder"
                    )
            with contextlib.suppress(InputError):  # damaged statistics are removed like any others
                ids |= {record.id for record in read_stats(self.report(STATS))}
        self._remove_images(ids)
        for kind in FRAME_KINDS:
            for id in ids:
                shutil.rmtree(self.tree.frame_folder(kind, id), ignore_errors=True)
        for path in own:
            path.unlink(missing_ok=True)

    def write_failed(self, reasons: Mapping[int, str]) -> None:
        """failed.yaml: id -> why there is no counterfactual; no file when nothing failed."""
        if reasons:
            write_atomically(self.report(FAILED), yaml.safe_dump(dict(reasons), width=1000, allow_unicode=True))
        else:
            self.report(FAILED).unlink(missing_ok=True)

    def _written(self) -> Iterator[ImageRecord]:
        """Every finished image of the tree, of any chunk."""
        there = {folder: {path.name for path in folder.iterdir()} for folder in self.tree.folders()}
        for cell in CELLS:
            for path in _named_by_id(self.tree.results / cell / "Info"):
                try:
                    record = ImageRecord.from_text(int(path.stem), path.read_text())
                except (ValueError, OSError):
                    continue
                if self._is_complete(record, there):
                    yield record

    def _is_complete(self, record: ImageRecord, there: Mapping[Path, set[str]]) -> bool:
        cell = (record.id, record.correct, record.flipped)
        files = [self.tree.info(*cell), *(self.tree.image(kind, *cell) for kind in ("CF", "Noise", "SM"))]
        original = self.tree.original(record.id, record.correct)  # in whichever format
        return (
            all(file.name in there[file.parent] for file in files)
            and any(original.with_suffix(f".{suffix}").name in there[original.parent] for suffix in IMAGE_FORMATS)
            and all(self._has_frames(kind, record.id) for kind in kept_frames(self.config))
        )

    def _has_frames(self, kind: str, id: int) -> bool:
        folder = self.tree.frame_folder(kind, id)
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return all(self.tree.frame(kind, id, step).name in names for step in range(self.config.settings.steps))

    def _remove_images(self, ids: set[int]) -> None:
        for folder in self.tree.cell_folders():
            for path in _named_by_id(folder):
                if int(path.stem) in ids:
                    path.unlink(missing_ok=True)


def _named_by_id(folder: Path) -> list[Path]:
    texts = [path for path in folder.glob("*.txt") if path.stem.isdecimal()]
    return [*image_files(folder), *texts]


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which says who holds it. Raises InputError when another process does.

    The lock is the operating system's: it ends with its process, however that dies, so none is ever stale. Where there
    are no locks, that is said once and the work goes on.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = path.read_text(errors="replace") or "another process"
        raise InputError(
            f"{path.parent}: {holder} is working on the same images; wait for it, or end it and run again"
        ) from None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    except (OSError, NotImplementedError):
        say(f"{path.parent}: no file locks there; see to it that no two processes do the same chunk.")
        yield
        return
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
