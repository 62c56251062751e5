"""Files of weights: nothing in them is ever executed, and one line says what is wrong with a file.

People save networks in wrappers: compiled, parallel, of a training framework, beside a step or an optimizer's state.
Names lose what such a wrapper puts before them (`bare_names`), and the entry that holds the network is looked up.
"""

import json
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import nn

from dime.core.cli import say
from dime.core.errors import InputError
from dime.core.files import ROOT, located, write_atomically
from guided_diffusion import checkpoint_util
from guided_diffusion.files import is_remote, open_file

SAFETENSORS = ".safetensors"
WEIGHTS_FOLDER = ROOT / "models"
"""Where users put weights (models/README.md)."""

WRAPPERS = ("module.", "model.", "net.", "network.")
"""What DataParallel, Lightning modules and the like put before every name; torch.compile's `_orig_mod.` goes anyway."""
NETWORK_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network")
"""Under which of these a training's file holds its network; the first that is there."""

Network = TypeVar("Network", bound=nn.Module)
State = Mapping[str, torch.Tensor]


def read_checkpoint(path: str | Path) -> Any:
    """What a checkpoint holds, on the CPU: a .safetensors file or one that torch.save wrote.

    Only tensors, containers and plain values are read. Of a .safetensors file it is a state dict with the notes of
    `write_safetensors` in its metadata. Raises InputError for a missing, empty, damaged or unsafe file.
    """
    path = located(path)
    if not is_remote(path):
        require_file(Path(path))
    try:
        if str(path).endswith(SAFETENSORS):
            with open_file(path, "rb") as file:
                content = file.read()
            tensors, notes = OrderedDict(safetensors.load(content)), {}
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            for name, text in (header.get("__metadata__") or {}).items():  # other programs write other things there
                with suppress(ValueError, RecursionError):
                    notes[name] = json.loads(text)
            tensors._metadata = OrderedDict({"": notes})
            return tensors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it refuses a moment later
            return checkpoint_util.load(path)
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None
    except (ValueError, OSError) as error:
        whole = "; of a whole network save its state_dict instead: torch.save(network.state_dict(), FILE)"
        raise InputError(f"{error}{whole if isinstance(error.__cause__, pickle.UnpicklingError) else ''}") from None


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """A network's weights under their bare names, with the configuration that `stored_config` finds.

    Raises InputError as read_checkpoint, and for a file that holds no state dict.
    """
    content = read_checkpoint(path)
    found = network_entry(content, path)
    if is_state_dict(found):
        return bare(found)
    hint, entries = "", found.items() if isinstance(found, dict) else ()
    if any(isinstance(value, torch.Tensor) for _, value in entries):  # what keeps the rest from being a state dict
        name, value = next((name, value) for name, value in entries if not isinstance(value, torch.Tensor))
        hint = f"; its entry {name!r} is a {type(value).__name__}: save the network's state_dict alone"
    raise InputError(f"{path}: expected a state dict (names and tensors), found {describe(content)}{hint}")


def read_tables(path: str | Path) -> tuple[Any, State]:
    """What a file of a published classifier or oracle holds, and its weights as one state dict.

    Its tables feat_extract and classifier become prefixes, as they are in a .safetensors file. The state dict of
    anything that has no tables of that name, and is none itself, is empty.
    """
    content, tables = network_entry(read_checkpoint(path), path), ("feat_extract", "classifier")
    if is_state_dict(content):
        return content, bare(content)
    if not isinstance(content, dict) or not all(is_state_dict(content.get(table)) for table in tables):
        return content, {}
    return content, {f"{table}.{k}": value for table in tables for k, value in bare(content[table]).items()}


def network_entry(content: Any, path: str | Path) -> Any:
    """What a training's file holds as its network (NETWORK_ENTRIES), which is said; any other content as it is."""
    if isinstance(content, dict) and not is_state_dict(content):
        for name in NETWORK_ENTRIES:
            if is_state_dict(content.get(name)):
                beside = ", ".join(str(key) for key in content if key != name)
                say(f"{path}: the network is its entry {name!r}{f' (beside {beside})' if beside else ''}")
                return content[name]
    return content


def bare_names(names: Iterable[str]) -> list[str]:
    """The names without what wrappers put before all of them; as they are where two would become one."""
    names = list(names)
    bare = [name.replace("_orig_mod.", "") for name in names]
    # densenets as torch wrote them before 0.4, torchvision's own weights among them
    bare = [re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name) for name in bare]
    while prefix := next((p for p in WRAPPERS if bare and all(name.startswith(p) for name in bare)), None):
        bare = [name.removeprefix(prefix) for name in bare]
    return bare if len(set(bare)) == len(names) else names


def bare(state: State) -> OrderedDict[str, torch.Tensor]:
    """A state dict under its bare names."""
    renamed = OrderedDict(zip(bare_names(state), state.values(), strict=True))
    renamed._metadata = getattr(state, "_metadata", OrderedDict())
    return renamed


def is_state_dict(content: Any) -> bool:
    """Whether this is a table of names and tensors, not an empty one."""
    entries = content.items() if isinstance(content, dict) else ()
    return bool(entries) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in entries)


def install(network: Network, state: State, path: str | Path, device: torch.device) -> Network:
    """Put weights into a network, which may be on the meta device: all of them, no others, all finite, in float32.

    Wrappers of either side do not count. The network comes back in eval mode, frozen, on the device. Raises InputError.
    """
    expected = network.state_dict()
    own_names = dict(zip(bare_names(expected), expected, strict=True))
    # old files lack the batch norms' counters, which have no effect on an evaluation
    found = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    found |= {own_names.get(name, name): value for name, value in bare(state).items()}
    if problem := checkpoint_util.mismatch(expected, found):
        raise InputError(f"{path}: is not a {type(network).__name__} checkpoint of the expected shape: {problem}")
    try:
        network.load_state_dict(found, assign=True)
    except RuntimeError as error:  # whole numbers where there should be weights, of a quantised network
        raise InputError(f"{path}: its tensors are no weights of a {type(network).__name__}: {error}") from None
    return ready(network, path, device)


def ready(network: Network, path: str | Path, device: torch.device) -> Network:
    """The network in eval mode, float32, frozen, on the device. Raises InputError for weights that are not finite."""
    weights = network.state_dict().items()
    if broken := [name for name, value in weights if isinstance(value, torch.Tensor) and not value.isfinite().all()]:
        raise InputError(f"{path}: {len(broken)} of its tensors hold NaN or infinity, the first is {broken[0]}")
    with suppress(NotImplementedError):  # an exported program has no modes
        network.eval()
    for parameter in network.parameters():  # of a TorchScript module one by one only
        parameter.requires_grad_(False)
    return network.float().to(device)


def write_safetensors(path: str | Path, content: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write what `read_checkpoint` gave, its weights in `dtype`.

    Tables inside become prefixes; what is no tensor, and a state dict's configuration, goes into the file's metadata.
    Raises InputError for tables of anything but tensors, and when the file cannot be written.
    """
    notes = {k: v for k, v in getattr(content, "_metadata", {}).get("", {}).items() if k != "version"}  # torch's own
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    for name, value in content.items():
        if isinstance(value, Mapping):
            if not all(isinstance(entry, torch.Tensor) for entry in value.values()):
                raise InputError(f"{path}: {name!r} holds more than tensors; give weights, not a training's state")
            tensors |= {f"{name}.{entry}": tensor for entry, tensor in value.items()}
        elif name not in tensors:
            notes[name] = value
    halved = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    texts = {name: json.dumps(value) for name, value in notes.items()}
    write_atomically(Path(path), safetensors.save(halved, texts))


def read_numpy_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """A pickled dict of names and numpy arrays, as the VGGFace2 weights are published (Python 2, latin1).

    Anything but numpy's own way of rebuilding arrays is refused. Raises InputError.
    """
    require_file(Path(path))
    try:
        with Path(path).open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception:  # a damaged pickle fails in nearly any way
        raise InputError(f"{path}: damaged, or not a pickle of numpy arrays; get the file again") from None
    for name, value in content.items() if isinstance(content, dict) and content else ((None, None),):
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise InputError(f"{path}: expected a pickled dict of names and numpy arrays, found {describe(content)}")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises InputError for one that is missing, damaged or of anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a table of settings")
    return content


def pretrained_weights(url: str) -> Path:
    """Where published weights lie: in models/ or the torch hub cache, under the last part of their URL.

    They are downloaded into the cache when neither has them. The name ends in the beginning of the content's
    SHA-256 (vgg19-dcbb9e9d.pth), by which torch.hub checks a download. Raises InputError when it fails.
    """
    name = url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    for path in (WEIGHTS_FOLDER / name, cached):
        if path.is_file():
            return path
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=Path(name).stem.rpartition("-")[2])
    except (OSError, RuntimeError) as error:  # no network, no room, or another content than the checksum's
        raise InputError(
            f"{WEIGHTS_FOLDER / name}: no such file, and it could not be downloaded ({error}); get {url} on a machine "
            f"with a network and put it there or at {cached}"
        ) from None
    return cached


def require_file(path: Path) -> None:
    """Raise InputError unless there is a file with something in it."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file of weights")
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty, expected a file of weights; get or write it again")


def describe(content: Any) -> str:
    """What a loaded file holds, in a few words for an error."""

    def names(table: dict) -> str:
        return ", ".join([*map(str, list(table)[:3]), *["…"] * (len(table) > 3)])

    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if content and all(isinstance(value, (torch.Tensor, np.ndarray)) for value in content.values()):
        return f"a table of {len(content)} tensors ({names(content)})"
    nested = [f"{name} ({names(table)})" for name, table in content.items() if isinstance(table, dict) and table]
    return f"a dict with {', '.join(nested[:3]) or names(content)}" if content else "an empty dict"


_OF_ARRAYS = re.compile(
    r"numpy\.(ndarray|dtype)|numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|collections\.OrderedDict|_codecs\.encode"
)
"""What a pickle of arrays may name."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not _OF_ARRAYS.fullmatch(f"{module}.{name}"):
            raise InputError(f"asks for {module}.{name}, which is no numpy array, so it is not loaded")
        if module == "_codecs":  # as Python 3 writes bytes in its old protocols; other codecs would import modules
            return lambda text, encoding: text.encode("latin1")
        own_core = np.empty(1).__reduce__()[0].__module__.rpartition(".")[0]  # numpy 2 renamed numpy.core
        return super().find_class(re.sub(r"^numpy\._?core\b", own_core, module), name)
