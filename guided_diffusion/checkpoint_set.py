"""The files that a training leaves: model000123.pt, ema_0.9999_000123.pt, opt000123.pt, as one set or not at all.

A set is written in two steps, so that a kill at any moment leaves the old set or the new one whole, even when both
have the same number: first every file lies on the disk under its temporary name, the optimizer's last; then all are
renamed, the optimizer's last again. While the optimizer's temporary file is there and whole, the set only has to be
renamed, which `recover` does.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guided_diffusion import checkpoint_util
from guided_diffusion.files import open_file

MODEL, OPTIMIZER = "model", "opt"
NOTES = "training"
"""The entry of opt*.pt that holds what is not the optimizer's; the optimizer ignores it."""


def ema_name(rate: float) -> str:
    """The first part of the name of the averaged weights' file."""
    return f"ema_{rate}_"


def parse_resume_step_from_filename(filename: str) -> int:
    """The number after the last `model` in a path, as in …/model000123.pt; 0 where there is none."""
    found = re.match(r"\d+(?=\.|$)", filename.rpartition(MODEL)[2])
    return int(found.group()) if found else 0


@dataclass(frozen=True)
class SetPaths:
    """Where the files of set `number` in a folder are, by the first part of their names; the folder may be remote."""

    folder: str
    number: int

    def __getitem__(self, name: str) -> str:
        return f"{self.folder}/{name}{self.number:06d}.pt"

    def has(self, name: str) -> bool:
        """Whether that file is there."""
        try:
            open_file(self[name], "rb").close()
        except FileNotFoundError:
            return False
        return True


class CheckpointFolder:
    """The sets in a local folder: the newest one, a new one, the old ones that may go.

    `names`: the first parts of a set's files, the optimizer's last. `keep`: how many sets stay (0: all).
    `own`: the numbers of the sets that this training wrote; no other file is ever removed.
    """

    def __init__(self, folder: str | Path, names: list[str], keep: int = 1) -> None:
        self.folder = str(folder)
        self.names = names
        self.keep = keep
        self.own: list[int] = []

    def recover(self) -> None:
        """Finish or undo what a killed process left half done."""
        for path in Path(self.folder).glob(f".{self.names[-1]}*.pt.partial"):
            if _is_whole(path):
                self._publish(int(re.search(r"(\d+)\.pt\.partial$", path.name).group(1)))
        for name in self.names:
            for path in Path(self.folder).glob(f".{name}*.pt.partial"):
                path.unlink(missing_ok=True)

    def complete_sets(self) -> list[SetPaths]:
        """The sets with all their files, the newest first."""
        models = Path(self.folder).glob(f"{MODEL}*.pt")
        numbers = {int(found.group(1)) for path in models if (found := re.fullmatch(r"model(\d{6,})\.pt", path.name))}
        sets = (SetPaths(self.folder, number) for number in sorted(numbers, reverse=True))
        return [paths for paths in sets if all(paths.has(name) for name in self.names)]

    def find_start(self, resume_checkpoint: str, continue_folder: bool) -> tuple[str, SetPaths] | None:
        """A network's file and its siblings: the newest set here, or `resume_checkpoint`; None for a fresh start.

        With both, the folder's sets count if they came of this very `resume_checkpoint`: then the same command is
        being run again. Readies the folder: makes it, tidies it up, and learns which sets are this training's own.
        Raises OSError for a folder that cannot be written.
        """
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OSError(f"{self.folder}: checkpoints cannot be written there ({error.strerror})") from error
        self.recover()
        sets = self.complete_sets() if continue_folder else []
        own = [paths for paths in sets if _read_notes(paths).get("resume_checkpoint") == resume_checkpoint]
        self.own = sorted(paths.number for paths in own)
        if candidates := own if resume_checkpoint else sets:
            return candidates[0][MODEL], candidates[0]
        if not resume_checkpoint:
            return None
        folder, number = resume_checkpoint.rpartition("/")[0], parse_resume_step_from_filename(resume_checkpoint)
        return resume_checkpoint, SetPaths(folder or ".", number)

    def write(self, number: int, contents: Iterable[tuple[str, Any]]) -> None:
        """Write a set, given as (name, content) in the order of `names`; then remove own sets beyond `keep`.

        Raises OSError when it cannot be written; the sets that were there are then still whole.
        """
        paths = SetPaths(self.folder, number)
        try:
            for name, content in contents:
                checkpoint_util.write_partial(paths[name], content)
        except BaseException:
            for name in self.names:
                checkpoint_util.partial_path(paths[name]).unlink(missing_ok=True)
            raise
        self._publish(number)
        self.own = sorted({*self.own, number})
        for old in self.own[: -self.keep] if self.keep else []:
            for name in self.names:
                Path(SetPaths(self.folder, old)[name]).unlink(missing_ok=True)
        self.own = self.own[-self.keep :]

    def _publish(self, number: int) -> None:
        for path in (SetPaths(self.folder, number)[name] for name in self.names):
            if checkpoint_util.partial_path(path).exists():
                checkpoint_util.publish(path)


def _read_notes(paths: SetPaths) -> dict[str, Any]:
    """The notes of a set on this machine, without reading its tensors; empty in files of other programs."""
    saved = checkpoint_util.load(paths[OPTIMIZER], mmap=True)
    notes = saved.get(NOTES) if isinstance(saved, dict) else None
    return notes if isinstance(notes, dict) else {}


def _is_whole(path: Path) -> bool:
    """Whether a file that torch.save wrote is complete; its checksums say so."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
