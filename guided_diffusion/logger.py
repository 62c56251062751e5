"""What a run says: lines of text, and a table of named numbers for each step, to the terminal and to files.

configure(dir)             # or $OPENAI_LOGDIR, or a dated folder in the temporary directory
log("creating model")
logkv("step", 3); logkv_mean("loss", 0.2); logkv_mean("loss", 0.4)
dumpkvs()                  # writes step 3, loss 0.3
"""

import csv
import datetime
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from guided_diffusion import dist_util
from guided_diffusion.files import remove_orphans, write_atomically

Values = dict[str, Any]


class Logger:
    """The numbers collected since the last dump, and the outputs for lines and for dumps, by their names."""

    def __init__(self, folder: Path, formats: list[str], suffix: str = "") -> None:
        self.folder = folder
        self.values: Values = {}
        self.means: dict[str, tuple[float, int]] = {}  # sum, count
        self.lines: dict[str, Callable[[str], None]] = {}
        self.tables: dict[str, Callable[[Values], None]] = {}
        self.files, self.writer = ExitStack(), None
        for name in formats:
            if name == "stdout":
                self.lines["terminal"] = partial(print, flush=True)
            elif name == "log":
                path = folder / f"log{suffix}.txt"
                file = self.files.enter_context(path.open("a", encoding="utf-8"))
                self.lines[path.name] = partial(print, file=file, flush=True)
            elif name == "csv":
                self.tables[f"progress{suffix}.csv"] = Table(folder / f"progress{suffix}.csv").write
            elif name == "tensorboard":
                self.tables["tensorboard"] = partial(self._draw, folder / f"tb{suffix}")
            else:
                raise ValueError(f"log format {name!r}: expected one of stdout, log, csv, tensorboard")

    def _draw(self, folder: Path, values: Values) -> None:
        """Add a point to TensorBoard's curve of each name."""
        step = int(values.get("step", 0))
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # a resumed run repeats its last steps
            self.writer = self.files.enter_context(SummaryWriter(folder, purge_step=step))
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()


class Table:
    """A CSV file with a row for each dump; new names become new columns.

    A file that is there already is continued. A row whose `step` is there too takes the place of that row and of all
    that came after it: a run that was stopped and resumed goes over its last steps again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        self._is_continued = path.exists()

    def write(self, values: Values) -> None:
        """Append a row, under a new header where names are new."""
        if self._is_continued or values.keys() - set(self._columns):
            rows: list[dict[str, str]] = []
            if self._path.exists():
                with self._path.open(newline="", encoding="utf-8") as file:
                    reader = csv.DictReader(file)
                    rows, self._columns = list(reader), list(reader.fieldnames or [])
            if self._is_continued and "step" in values:
                rows = [row for row in rows if row.get("step") and float(row["step"]) < values["step"]]
            self._columns += [name for name in sorted(values) if name not in self._columns]
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, self._columns)
            writer.writeheader()
            writer.writerows({key: row.get(key, "") for key in self._columns} for row in rows)
            write_atomically(self._path, text.getvalue().encode())
            self._is_continued = False
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(values)


_current: Logger | None = None


def configure(
    dir: str | None = None, format_strs: list[str] | None = None, comm: Any = None, log_suffix: str = ""
) -> None:
    """Say where output goes: into `dir`, else $OPENAI_LOGDIR, else a dated folder in the temporary directory.

    `format_strs`: any of stdout, log (log.txt), csv (progress.csv) and tensorboard (tb/); the default is the first
    three on rank 0, and log on the others, each in a file of its own. `comm` has no effect: means are of one process.
    A file that cannot be written later on is left out from then on, which is said: it is no reason to end a training.
    Raises ValueError for an unknown format.
    """
    global _current
    rank = dist_util.rank()
    if rank > 0:
        log_suffix += f"-rank{rank:03d}"
    if format_strs is None:
        format_strs = os.environ.get("OPENAI_LOG_FORMAT", "stdout,log,csv").split(",") if rank == 0 else ["log"]
    dated = f"{tempfile.gettempdir()}/openai-{datetime.datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
    folder = Path(dir or os.environ.get("OPENAI_LOGDIR") or dated).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    remove_orphans([folder])  # of trainings that were killed while they wrote
    reset()
    _current = Logger(folder, [name for name in format_strs if name], log_suffix)
    if rank == 0:
        log(f"Logging to {folder}")


def reset() -> None:
    """Close the files; what is logged next goes where an unconfigured run's goes."""
    global _current
    if _current is not None:
        with suppress(OSError):  # on a full disk; said when it was written to
            _current.files.close()
    _current = None


def get_current() -> Logger:
    """The logger in use; the first call configures one."""
    if _current is None:
        configure()
    return _current


def get_dir() -> str:
    """The folder that output goes to."""
    return str(get_current().folder)


def log(*args: Any) -> None:
    """Write a line to every text output, at once."""
    _pass_on(" ".join(map(str, args)), get_current().lines)


info = warn = error = log


def logkv(key: str, val: Any) -> None:
    """Set a number for the next dump; a second call overwrites the first."""
    get_current().values[key] = val


def logkvs(d: Values) -> None:
    """Set several numbers for the next dump."""
    get_current().values.update(d)


def logkv_mean(key: str, val: float | None) -> None:
    """Add to a number that is the mean of all calls since the last dump (None: nothing)."""
    if val is not None:
        total, count = get_current().means.get(key, (0.0, 0))
        get_current().means[key] = (total + float(val), count + 1)


def dumpkvs() -> Values:
    """Write the numbers collected since the last dump, forget them and return them."""
    current = get_current()
    values = current.values | {key: total / count for key, (total, count) in current.means.items()}
    current.values, current.means = {}, {}
    if values:
        rows = {key: _short(value) for key, value in sorted(values.items())}
        left, right = (max(map(len, column)) for column in (rows, rows.values()))
        rule = "-" * (left + right + 7)
        log("\n".join([rule, *(f"| {key:<{left}} | {value:<{right}} |" for key, value in rows.items()), rule]))
        _pass_on(values, current.tables)
    return values


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _pass_on(content: Any, outputs: dict[str, Callable[[Any], None]]) -> None:
    for name, write in list(outputs.items()):
        try:
            write(content)
        except Exception as error:  # a full disk, a tensorboard that cannot be imported
            del outputs[name]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"{name} cannot be written ({reason}): going on without it", flush=True)
