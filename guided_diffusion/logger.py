"""What a run says: lines of text, and a table of named numbers for each step, to the terminal and to files.

configure(dir)             # or $OPENAI_LOGDIR, or a dated folder in the temporary directory
log("creating model")
logkv("step", 3); logkv_mean("loss", 0.2); logkv_mean("loss", 0.4)
dumpkvs()                  # writes step 3, loss 0.3
"""

from __future__ import annotations

import csv
import datetime
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Protocol, TextIO

from guided_diffusion import dist_util

DEBUG, INFO, WARN, ERROR = 10, 20, 30, 40


class Output(Protocol):
    """A place that the numbers go to."""

    def write(self, values: dict[str, Any]) -> None:
        """Take the numbers of one dump."""

    def close(self) -> None:
        """Nothing comes after this."""


class TextOutput:
    """Lines, and each dump as a table."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def line(self, text: str) -> None:
        """Write a line, at once."""
        self._file.write(text + "\n")
        self._file.flush()

    def write(self, values: dict[str, Any]) -> None:
        """A table of names and values."""
        rows = {key: _short(value) for key, value in sorted(values.items())}
        left, right = (max(map(len, column), default=0) for column in (rows, rows.values()))
        rule = "-" * (left + right + 7)
        body = [f"| {key:<{left}} | {value:<{right}} |" for key, value in rows.items()]
        self.line("\n".join([rule, *body, rule]))

    def close(self) -> None:
        """Close the file; the terminal stays."""
        if self._file is not sys.stdout:
            self._file.close()


class CSVOutput:
    """One row for each dump; new names become new columns.

    A file that is there already is continued. A row whose `step` is there too takes the place of that row and of all
    that came after it: a run that was stopped and resumed goes over its last steps again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        self._rewind_to_first_step = path.exists()

    def write(self, values: dict[str, Any]) -> None:
        """Append a row, under a new header where names are new."""
        if self._rewind_to_first_step:
            self._rewind_to_first_step = False
            self._rewrite(before=values.get("step"))
        new = sorted(set(values) - set(self._columns))
        if new:
            self._columns += new
            self._rewrite()
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(values)

    def close(self) -> None:
        """Nothing is open between two rows."""

    def _rewrite(self, before: float | None = None) -> None:
        """Write header and rows anew, without the rows from step `before` on."""
        rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
                self._columns = list(dict.fromkeys([*(reader.fieldnames or []), *self._columns]))
        if before is not None:
            rows = [row for row in rows if row.get("step") and float(row["step"]) < before]
        partial = self._path.with_name(f".{self._path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows({key: row.get(key, "") for key in self._columns} for row in rows)
        partial.replace(self._path)


class TensorBoardOutput:
    """Scalars against `step`, in the folder tb/."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def write(self, values: dict[str, Any]) -> None:
        """Add a point to the curve of each name."""
        step = int(values.get("step", 0))
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder, purge_step=step)  # a resumed run repeats its last steps
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file of events."""
        if self._writer is not None:
            self._writer.close()


class Logger:
    """Collects named numbers until they are dumped."""

    def __init__(self, folder: Path, outputs: list[Output], comm: Any = None) -> None:
        self.folder = folder
        self.outputs = outputs
        self._comm = comm
        self._values: dict[str, Any] = {}
        self._means: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])  # sum, count

    def log(self, *args: Any) -> None:
        """One line to every text output."""
        for output in self.outputs:
            if isinstance(output, TextOutput):
                output.line(" ".join(map(str, args)))

    def logkv(self, key: str, value: Any) -> None:
        """Set a number; a second call overwrites the first."""
        self._values[key] = value

    def logkv_mean(self, key: str, value: float | None) -> None:
        """Add to a number that is the mean of all calls since the last dump."""
        if value is not None:
            total = self._means[key]
            total[0] += float(value)
            total[1] += 1

    def dumpkvs(self) -> dict[str, Any]:
        """Write the numbers collected, forget them and return them; with an MPI communicator, means over its ranks."""
        means = {key: total / count for key, (total, count) in self._combined_means().items()}
        values = {**self._values, **means}
        for output in list(self.outputs) if values else ():
            try:
                output.write(values)
            except Exception as error:  # a full disk, a broken tensorboard: no reason to lose a training
                self.outputs.remove(output)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                print(f"{type(output).__name__} cannot be written ({reason}): going on without it.", flush=True)
        self._values, self._means = {}, defaultdict(lambda: [0.0, 0])
        return values

    def close(self) -> None:
        """Close every output."""
        for output in self.outputs:
            output.close()

    def _combined_means(self) -> dict[str, list[float]]:
        if self._comm is None:
            return self._means
        combined: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for means in self._comm.allgather(dict(self._means)):
            for key, (total, count) in means.items():
                combined[key] = [combined[key][0] + total, combined[key][1] + count]
        return combined


_current: Logger | None = None


def configure(
    dir: str | None = None,
    format_strs: list[str] | None = None,
    comm: Any = None,
    log_suffix: str = "",
) -> None:
    """Say where output goes: into `dir`, else $OPENAI_LOGDIR, else a dated folder in the temporary directory.

    `format_strs`: any of stdout, log (log.txt), csv (progress.csv) and tensorboard (tb/); the default is the first
    three on rank 0, and log on the others, each in a file of its own. `comm`: an mpi4py communicator to average over.
    Raises ValueError for an unknown format.
    """
    global _current
    rank = dist_util.rank()
    if rank > 0:
        log_suffix += f"-rank{rank:03d}"
    if format_strs is None:
        on_rank_0 = os.environ.get("OPENAI_LOG_FORMAT", "stdout,log,csv").split(",")
        format_strs = on_rank_0 if rank == 0 else ["log"]
    folder = Path(dir or os.environ.get("OPENAI_LOGDIR") or _dated_folder()).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    reset()
    _current = Logger(folder, [_make_output(name, folder, log_suffix) for name in format_strs if name], comm)
    if rank == 0:
        log(f"Logging to {folder}")


def reset() -> None:
    """Close the files; what is logged next goes where an unconfigured run's goes."""
    global _current
    if _current is not None:
        _current.close()
    _current = None


def get_current() -> Logger:
    """The logger in use; the first call configures one."""
    if _current is None:
        configure()
    return _current


def get_dir() -> str:
    """The folder that output goes to."""
    return str(get_current().folder)


def log(*args: Any, level: int = INFO) -> None:
    """Write a line, from level INFO up."""
    if level >= INFO:
        get_current().log(*args)


def debug(*args: Any) -> None:
    """Say at level DEBUG, which is not shown."""
    log(*args, level=DEBUG)


def info(*args: Any) -> None:
    """Write a line."""
    log(*args, level=INFO)


def warn(*args: Any) -> None:
    """Write a line."""
    log(*args, level=WARN)


def error(*args: Any) -> None:
    """Write a line."""
    log(*args, level=ERROR)


def logkv(key: str, value: Any) -> None:
    """Set a number for the next dump."""
    get_current().logkv(key, value)


def logkvs(values: dict[str, Any]) -> None:
    """Set several numbers for the next dump."""
    for key, value in values.items():
        logkv(key, value)


def logkv_mean(key: str, value: float) -> None:
    """Add to a mean for the next dump."""
    get_current().logkv_mean(key, value)


def dumpkvs() -> dict[str, Any]:
    """Write the numbers collected since the last dump, and return them."""
    return get_current().dumpkvs()


def _dated_folder() -> str:
    return str(Path(tempfile.gettempdir()) / f"openai-{datetime.datetime.now():%Y-%m-%d-%H-%M-%S-%f}")


def _make_output(name: str, folder: Path, suffix: str) -> Output:
    makers = {
        "stdout": lambda: TextOutput(sys.stdout),
        "log": lambda: TextOutput((folder / f"log{suffix}.txt").open("a")),
        "csv": lambda: CSVOutput(folder / f"progress{suffix}.csv"),
        "tensorboard": lambda: TensorBoardOutput(folder / f"tb{suffix}"),
    }
    if name not in makers:
        raise ValueError(f"log format {name!r}: expected one of {', '.join(makers)}")
    return makers[name]()


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
