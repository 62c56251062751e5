"""Checkpoints on disk: state dicts, read without running code, the configuration inside; and the sets of a training.

A file is what `torch.save(model.state_dict(), path)` would write, so every other loader reads it. The flags
that built the network travel in the metadata that torch attaches to a state dict and that loaders ignore.

A training leaves model000123.pt, ema_0.9999_000123.pt, opt000123.pt, as one set or not at all. A set is written in two
steps, so that a kill at any moment leaves the old set or the new one whole, even when both have the same number: first
every file lies on the disk under its temporary name, the optimizer's last; then all are renamed, the optimizer's last
again. While the optimizer's temporary file is there and whole, the set only has to be renamed, which `recover` does.
"""

import pickle
import re
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import blobfile as bf
import torch
from torch import Tensor, nn

from guided_diffusion import files

_PREFIX = "module."  # DistributedDataParallel and DataParallel put it before every name


def portable(state_dict: Mapping[str, Tensor], config: dict | None = None) -> OrderedDict[str, Tensor]:
    """Copies of a network's weights on the CPU, in float32 where they are floating point, under its own names.

    `config`: plain numbers, strings and booleans that describe the network; `stored_config` gives them back.
    """
    weights = _own_names(state_dict)
    for name, tensor in weights.items():  # copies: a view would drag its whole storage along
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        weights[name] = tensor.detach().to("cpu", dtype, copy=True)
    if config is not None:
        weights._metadata[""] = {**weights._metadata.get("", {}), "config": dict(config)}
    return weights


def load_state_dict(path: str | Path, map_location: str | torch.device = "cpu") -> OrderedDict[str, Tensor]:
    """Read a network's weights, without the `module.` that parallel wrappers put before names.

    Raises FileNotFoundError, or ValueError when the file is not a plain dictionary of names and tensors.
    """
    loaded = load(path, map_location)
    if not isinstance(loaded, dict):
        found = f"a {type(loaded).__name__}"
    elif loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        return _own_names(loaded)
    else:
        found = f"a dictionary with {', '.join(map(str, list(loaded)[:4])) or 'nothing in it'}"
    raise ValueError(f"{path}: expected a state dict (parameter names and tensors), found {found}")


def _own_names(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The same tensors and metadata under the network's own names (a wrapper's own entry gives way)."""
    weights = OrderedDict((name.removeprefix(_PREFIX), tensor) for name, tensor in state_dict.items())
    entries = getattr(state_dict, "_metadata", {}).items()
    weights._metadata = OrderedDict((f"{name}.".removeprefix(_PREFIX)[:-1], value) for name, value in entries)
    return weights


def mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps one table of weights from standing in for another, in a few words; '' when nothing does."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    pairs = [(name, expected[name].shape, getattr(found[name], "shape", None)) for name in expected if name in found]
    shapes = [(name, tuple(wanted), got and tuple(got)) for name, wanted, got in pairs if wanted != got]
    parts = [f"{len(missing)} entries are missing (the first is {missing[0]})"] if missing else []
    parts += [f"{len(unknown)} are unknown (the first is {unknown[0]})"] if unknown else []
    for name, wanted, got in shapes[:1]:
        parts.append(f"{len(shapes)} are of another shape ({name}: {got} instead of {wanted})")
    return ", ".join(parts)


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Put weights into a network. Raises ValueError, in one line, for those of another one and if one is no number."""
    if problem := mismatch(module.state_dict(), state_dict):
        raise ValueError(f"{source}: another network than the flags describe: {problem}")
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{source}: {name} holds numbers that are not finite; use an earlier file")
    module.load_state_dict(state_dict)


def load_optimizer(opt: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state. Raises ValueError for moments of other shapes, which torch would let pass."""
    parameters = [parameter for group in opt.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for moment in state["state"].get(number, {}).values():
            if isinstance(moment, Tensor) and moment.ndim and moment.shape != parameter.shape:
                raise ValueError("the optimizer's state is of a network with other shapes")
    opt.load_state_dict(state)


@contextmanager
def damage_named(source: str | Path) -> Iterator[None]:
    """Within it, what goes wrong in taking up the content of a file is a ValueError that names the file."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{source}: does not hold what this training saves ({reason})") from error


def stored_config(state_dict: Mapping[str, Any]) -> dict | None:
    """The configuration that `portable` put beside the weights; None in files that carry none."""
    config = getattr(state_dict, "_metadata", {}).get("", {}).get("config")
    return config if isinstance(config, dict) else None


def save(path: str | Path, content: Any) -> None:
    """`torch.save`, here or in an object store, as `files.write_atomically`: whole or not at all, or OSError."""
    files.write_atomically(path, lambda file: torch.save(content, file))


def plain(value: Any) -> Any:
    """The same value on the CPU, made so that equal values pickle to equal bytes: pickle marks repeated *objects*."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {sys.intern(key) if isinstance(key, str) else key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return sys.intern(value) if isinstance(value, str) else value


def load(path: str | Path, map_location: str | torch.device = "cpu", mmap: bool = False) -> Any:
    """`torch.load` of tensors and plain values only. `mmap`: a local file's tensors are read when they are used.

    Raises FileNotFoundError, or ValueError for a file that holds anything else.
    """
    try:
        file = files.open_file(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such checkpoint") from None
    with file:
        try:
            return torch.load(path if mmap else file, map_location=map_location, weights_only=True, mmap=mmap)
        except Exception as error:  # torch's readers fail in many ways, IndexError among them
            reason = "damaged or not a torch checkpoint; give a file that torch.save wrote"
            if isinstance(error, pickle.UnpicklingError):
                reason = "not a checkpoint of tensors and plain values, so it is not loaded"
            raise ValueError(f"{path}: {reason}") from error


# The sets of a training

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


def set_paths(folder: str | Path, number: int, names: Iterable[str]) -> dict[str, str]:
    """Where the files of a set are, by the first part of their names; the folder may be remote."""
    return {name: f"{folder}/{name}{number:06d}.pt" for name in names}


class CheckpointFolder:
    """The sets in a local folder: the newest one, a new one, the old ones that may go.

    `names`: the first parts of a set's files, the optimizer's last. `keep`: how many sets stay (0: all).
    `own`: the numbers of the sets that this training wrote; no other file is ever removed.
    """

    def __init__(self, folder: str | Path, names: list[str], keep: int = 1) -> None:
        self.folder = Path(folder)
        self.names = names
        self.keep = keep
        self.own: list[int] = []

    def recover(self) -> None:
        """Finish or undo what a killed process left half done."""
        for path in self.folder.glob(f".{self.names[-1]}*.pt.partial"):
            if _is_whole(path):
                self._publish(int(re.search(r"(\d+)\.pt\.partial$", path.name).group(1)))
        for name in self.names:
            for path in self.folder.glob(f".{name}*.pt.partial"):
                path.unlink(missing_ok=True)

    def complete_sets(self) -> dict[int, dict[str, str]]:
        """The sets with all their files, the newest first: their numbers and `set_paths`."""
        found = (re.fullmatch(rf"{MODEL}(\d{{6,}})\.pt", path.name) for path in self.folder.glob(f"{MODEL}*.pt"))
        numbers = sorted({int(name.group(1)) for name in found if name}, reverse=True)
        sets = {number: set_paths(self.folder, number, self.names) for number in numbers}
        return {number: paths for number, paths in sets.items() if all(map(bf.exists, paths.values()))}

    def find_start(self, resume_checkpoint: str, continue_folder: bool) -> tuple[str, int, dict[str, str]] | None:
        """A network's file, its number and siblings: the newest set here, or `resume_checkpoint`; None: a fresh start.

        With both, the folder's sets count if they came of this very `resume_checkpoint`: then the same command is
        being run again. Readies the folder: makes it, tidies it up, and learns which sets are this training's own.
        Raises OSError for a folder that cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OSError(f"{self.folder}: checkpoints cannot be written there ({error.strerror})") from error
        self.recover()
        sets = self.complete_sets() if continue_folder else {}
        came_of = {number: _read_notes(paths[OPTIMIZER]).get("resume_checkpoint") for number, paths in sets.items()}
        self.own = sorted(number for number in sets if came_of[number] == resume_checkpoint)
        if candidates := self.own if resume_checkpoint else sets:
            newest = max(candidates)
            return sets[newest][MODEL], newest, sets[newest]
        if not resume_checkpoint:
            return None
        folder, number = resume_checkpoint.rpartition("/")[0], parse_resume_step_from_filename(resume_checkpoint)
        return resume_checkpoint, number, set_paths(folder or ".", number, self.names)

    def write(self, number: int, contents: Iterable[tuple[str, Any]]) -> None:
        """Write a set, given as (name, content) in the order of `names`; then remove own sets beyond `keep`.

        Raises OSError when it cannot be written; the sets that were there are then still whole.
        """
        paths = set_paths(self.folder, number, self.names)
        try:
            for name, content in contents:
                path = Path(paths[name])
                files.write_to_disk(_waiting(path), partial(torch.save, content), path)
        except BaseException:
            for path in paths.values():
                _waiting(Path(path)).unlink(missing_ok=True)
            raise
        self._publish(number)
        self.own = sorted({*self.own, number})
        for old in self.own[: -self.keep] if self.keep else []:
            for path in set_paths(self.folder, old, self.names).values():
                Path(path).unlink(missing_ok=True)
        self.own = self.own[-self.keep :]

    def _publish(self, number: int) -> None:
        for path in map(Path, set_paths(self.folder, number, self.names).values()):
            if _waiting(path).exists():
                files.publish(_waiting(path), path)


def _waiting(path: Path) -> Path:
    """Where a file of a set lies until the whole set is written; a killed process may leave it."""
    return path.with_name(f".{path.name}.partial")


def _read_notes(path: str) -> dict[str, Any]:
    """The notes in opt*.pt on this machine, without reading its tensors; empty in files of other programs."""
    saved = load(path, mmap=True)
    notes = saved.get(NOTES) if isinstance(saved, dict) else None
    return notes if isinstance(notes, dict) else {}


def _is_whole(path: Path) -> bool:
    """Whether a file that torch.save wrote is complete; its checksums say so."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
