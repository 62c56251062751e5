"""Reading files of weights: nothing in them is ever executed; one line says what is wrong with a file."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dime.core.errors import InputError
from dime.core.files import write_atomically
from guided_diffusion import checkpoint_util
from guided_diffusion.files import is_remote, open_file

SAFETENSORS = ".safetensors"
WEIGHTS_FOLDER = Path(__file__).resolve().parent.parent / "models"
"""Where users put weights (models/README.md)."""
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)


def read_checkpoint(path: str | Path) -> Any:
    """What a checkpoint holds, on the CPU: a .safetensors file or one that torch.save wrote.

    Only tensors, containers and plain values are read. Raises InputError for a missing, empty, damaged or unsafe file.
    """
    if str(path).endswith(SAFETENSORS):
        tensors, notes = _read_safetensors(path)
        return _nested(tensors, notes)
    return _read(path, checkpoint_util.load)


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """A network's weights, without the `module.` of parallel wrappers; InputError as in read_checkpoint."""
    if str(path).endswith(SAFETENSORS):
        tensors, notes = _read_safetensors(path)
        return checkpoint_util.portable(tensors, notes.get("config"))
    return _read(path, checkpoint_util.load_state_dict)


def write_safetensors(path: str | Path, content: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write what `read_checkpoint` or `read_state_dict` gave, its weights in `dtype`, for either to give back.

    Tables inside become prefixes; what is no tensor, and a state dict's configuration, goes into the file's metadata.
    Raises InputError for tables of anything but tensors, and when the file cannot be written.
    """
    from safetensors.torch import save

    tables = {name: table for name, table in content.items() if isinstance(table, Mapping)}
    notes = {name: value for name, value in content.items() if not isinstance(value, (Mapping, torch.Tensor))}
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    for name, table in tables.items():
        if not all(isinstance(value, torch.Tensor) for value in table.values()):
            raise InputError(
                f"{path}: {name!r} holds more than tensors; give a network's weights, not a training's state"
            )
    tensors |= {f"{table}.{name}": value for table, part in tables.items() for name, value in part.items()}
    config = checkpoint_util.stored_config(content)
    notes |= ({"tables": list(tables)} if tables else {}) | ({"config": config} if config else {})
    halved = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    halved = {k: v.contiguous() for k, v in halved.items()}
    write_atomically(Path(path), save(halved, {name: json.dumps(value) for name, value in notes.items()}))


def read_numpy_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """A pickled dict of names and numpy arrays, as the VGGFace2 weights are published (Python 2, latin1).

    Anything but numpy's own way of rebuilding arrays is refused. Raises InputError.
    """
    path = Path(path)
    _require_file(path)
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except _ForbiddenError as error:
        raise InputError(f"{path}: asks for {error}, which is no numpy array, so it is not loaded") from None
    except Exception:  # a damaged pickle fails in nearly any way
        raise InputError(f"{path}: damaged, or not a pickle of numpy arrays; get the file again") from None
    arrays = content if isinstance(content, dict) else {}
    if not arrays or not all(isinstance(k, str) and _is_numeric(v) for k, v in arrays.items()):
        raise InputError(f"{path}: expected a pickled dict of names and numpy arrays, found {describe(content)}")
    return arrays


def pretrained_weights(url: str) -> Path:
    """Where published weights lie: in models/ or the torch hub cache, under the last part of their URL.

    They are downloaded into the cache when neither has them. The name ends in the beginning of the content's
    SHA-256 (vgg19-dcbb9e9d.pth), by which a download is checked. Raises InputError when it fails.
    """
    name = url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    for path in (WEIGHTS_FOLDER / name, cached):
        if path.is_file():
            return path
    checksum = name.rpartition("-")[2].removesuffix(".pth")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=checksum)
    except (OSError, RuntimeError) as error:  # no network, no room, or another content than the checksum's
        raise InputError(
            f"{WEIGHTS_FOLDER / name}: no such file, and it could not be downloaded ({error}); get {url} on a machine "
            f"with a network and put it there or at {cached}"
        ) from None
    return cached


def describe(content: Any) -> str:
    """What a loaded file holds, in a few words for an error."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if content and all(isinstance(value, (torch.Tensor, np.ndarray)) for value in content.values()):
        return f"a table of {len(content)} tensors ({_first_names(content)})"
    nested = [f"{name} ({_first_names(table)})" for name, table in content.items() if isinstance(table, dict) and table]
    if nested:
        return f"a dict with {', '.join(nested[:3])}"
    return f"a dict with {_first_names(content)}" if content else "an empty dict"


def _first_names(content: dict) -> str:
    names = ", ".join(str(name) for name in list(content)[:3])
    return f"{names}, …" if len(content) > 3 else names


def _read(path: str | Path, load: Callable[[str | Path], Any]) -> Any:
    if "://" not in str(path):
        _require_file(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it refuses a moment later
            return load(path)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from None


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file of weights")
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty, expected a file of weights; get or write it again")


def _read_safetensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a file, and the notes in its metadata that are JSON."""
    from safetensors import SafetensorError, safe_open

    try:
        with _local(path) as local, safe_open(local, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, _notes(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None


@contextmanager
def _local(path: str | Path) -> Iterator[Path]:
    """The file itself, or a copy of a remote one."""
    if not is_remote(path):
        _require_file(Path(path))
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder, open_file(path, "rb") as remote:
        copy = Path(folder) / "weights"
        with copy.open("wb") as file:
            shutil.copyfileobj(remote, file)
        yield copy


def _notes(metadata: Mapping[str, str]) -> dict[str, Any]:
    notes = {}
    for name, text in metadata.items():  # other programs write other things there
        with suppress(ValueError, RecursionError):
            notes[name] = json.loads(text)
    return notes


def _nested(tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> dict[str, Any]:
    """What `write_safetensors` was given: its notes, and tables where it noted some; the other tensors as they are."""
    tables = notes.pop("tables", None)
    if not isinstance(tables, list) or not all(isinstance(table, str) for table in tables):
        return tensors
    parts: dict[str, Any] = {table: {} for table in tables}
    for name, tensor in tensors.items():
        table = next((table for table in tables if name.startswith(f"{table}.")), None)
        if table is None:
            parts[name] = tensor
        else:
            parts[table][name.removeprefix(f"{table}.")] = tensor
    return {**notes, **parts}


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


class _ForbiddenError(Exception):
    """A pickle wants something that may not be loaded."""


def _array_builders() -> dict[tuple[str, str], Any]:
    """What a pickle of arrays may name: numpy moved these functions from numpy.core to numpy._core in version 2."""
    sample = np.empty(1)
    builders = {
        ("multiarray", "_reconstruct"): sample.__reduce__()[0],
        ("multiarray", "scalar"): np.float32(0).__reduce__()[0],
        ("numeric", "_frombuffer"): sample.__reduce_ex__(5)[0],
    }
    moved = {(f"numpy.{core}.{part}", name): f for core in ("core", "_core") for (part, name), f in builders.items()}
    return {
        **moved,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # Python 3 writes bytes so in its old protocols
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        ("collections", "OrderedDict"): OrderedDict,
    }


class _ArrayUnpickler(pickle.Unpickler):
    _allowed = _array_builders()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise _ForbiddenError(f"{module}.{name}")
        return self._allowed[module, name]
