"""State dicts on disk: written whole or not at all, read without running code, the configuration inside.

A file is what `torch.save(model.state_dict(), path)` would write, so every other loader reads it. The flags
that built the network travel in the metadata that torch attaches to a state dict and that loaders ignore.
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guided_diffusion import files
from guided_diffusion.files import open_file

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


def require_same_names(module: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise ValueError, in one line, unless these weights have the names and shapes of the network's own."""
    if problem := mismatch(module.state_dict(), state_dict):
        raise ValueError(f"{source}: another network than the flags describe: {problem}")


def require_finite(state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise ValueError, naming the first, if a weight is infinite or no number."""
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{source}: {name} holds numbers that are not finite; use an earlier file")


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


def write_partial(path: str | Path, content: Any) -> None:
    """The first half of `save`: the content is on the disk, under `partial_path(path)`. Raises OSError."""
    files.write_to_disk(partial_path(path), lambda file: torch.save(content, file), Path(path))


def publish(path: str | Path) -> None:
    """The second half: what was written takes its name."""
    files.publish(partial_path(path), Path(path))


def partial_path(path: str | Path) -> Path:
    """Where `path` lies between the two halves: beside it, as `.NAME.partial`. A killed process may leave it."""
    path = Path(path)
    return path.with_name(f".{path.name}.partial")


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
        file = open_file(path, "rb")
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
