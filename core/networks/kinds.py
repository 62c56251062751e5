"""What a classifier may be kept in (the table in models/README.md): one function for each kind, listed in KINDS.

A new kind is one function and one entry: from what follows the kind in a spec to the network as its library has it.
What all of them need in front and behind is `load_classifier`'s.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torchvision import models

from dime.core.cli import say
from dime.core.errors import InputError
from dime.core.networks.checks import first_line, mode_matters
from dime.core.networks.features import build_small_cnn, joined, trunk_and_head
from dime.core.networks.files import (
    SAFETENSORS,
    describe,
    install,
    network_entry,
    pretrained_weights,
    read_checkpoint,
    read_state_dict,
)
from dime.models.classifiers import DENSENET_FEATURES, DenseNetClassifier
from dime.models.small_cnn import SmallCNN

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Input:
    """What a network wants to see; None: images as they come, of their own size and in [-1, 1].

    size: height and width in pixels, or one number for both. value_range: of black and white, before normalising.
    mean, std: a number, or one per channel, in the units of value_range, which is then (0, 1) unless it is given.
    """

    size: int | Sequence[int] | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    value_range: Sequence[float] | None = None


@dataclass(frozen=True)
class Loaded:
    """A network whose output is, or has as `.logits`, the logits (N, K); its input; its outputs' names.

    input: None where the caller has to describe it.
    """

    network: nn.Module
    input: Input | None = Input()
    names: Sequence[str] | None = None


def load(spec: str, trust: bool) -> Loaded:
    """The network of a spec, by the function that KINDS has for its beginning or ending. Raises InputError."""
    key, rest = _split(spec)
    return KINDS[key](rest) if key in KINDS else _from_file(rest, trust)


def files_of(spec: str) -> list[Path]:
    """The files whose content decides what a spec loads; none where it is a library's own weights or code alone."""
    key, rest = _split(spec)
    places = re.split(r"@|:(?=\w+(?:@|$))", rest) if key.endswith(":") else [rest]
    found = [[place] if place.is_file() else place.rglob("*") for place in map(Path, places) if place.exists()]
    return sorted(path for paths in found for path in paths if path.is_file())


def _split(spec: str) -> tuple[str, str]:
    """How a spec begins, with a colon, or ends; what follows the colon, or all of it."""
    key = next((key for key in KINDS if key.endswith(":") and spec.startswith(key)), Path(spec).suffix)
    return key, spec.removeprefix(key) if key.endswith(":") else spec


def _from_file(path: str, trust: bool) -> Loaded:
    """A published file, or what celeba-train-classifier.py writes, .pth or .safetensors; trust: a program, too."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = {name.rpartition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in parts:
            return _program(path, trust, "a TorchScript archive", torch.jit.load)
        if "archive_format" in parts or "serialized_exported_program.json" in parts:
            return _program(path, trust, "a torch.export archive", lambda path: torch.export.load(path).module())
    content = network_entry(read_checkpoint(path), path)
    trunk, head = trunk_and_head(content) or ({}, {})
    names = content.get("attributes") if isinstance(content, dict) else None
    names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    if SmallCNN.recognises(trunk):
        return Loaded(build_small_cnn(trunk, head, path, CPU), names=names)
    if "feat_extract.features.conv0.weight" in trunk and head["weight"].shape[1] == DENSENET_FEATURES:
        with torch.device("meta"):
            network = DenseNetClassifier(len(head["weight"]))
        return Loaded(install(network, joined(trunk, head), path, CPU), names=names)
    raise InputError(
        f"{path}: holds {describe(content)}, which is no known classifier; known: a DenseNet-121 classifier and the "
        "small CNN of celeba-train-classifier.py (tables feat_extract and classifier); weights of another network need "
        "its name: timm:NAME@FILE, torchvision:NAME@FILE or python:FILE.py:FACTORY@FILE"
    )


def _program(path: str, trust: bool, what: str, load: Callable[[str], nn.Module]) -> Loaded:
    if not trust:
        raise InputError(
            f"{path}: is {what}, a program that would run here with your rights; if you trust who made it, say "
            "--trust_classifier True; else give its weights: save its state_dict, then timm:, torchvision: or python:"
        )
    say(f"{path}: runs the program of {what}")
    with _one_line(path):
        return Loaded(load(path))


def _timm(spec: str) -> Loaded:
    timm = _library("timm", extra="timm")
    name, _, weights = spec.partition("@")
    with _one_line(spec), torch.random.fork_rng(devices=[]):
        if weights:
            network = _with_outputs_of(lambda **count: timm.create_model(name, **count), weights)
        else:
            say(f"{name}: timm's own pretrained weights, from its cache or downloaded")
            network = timm.create_model(name, pretrained=True)
        config = timm.data.resolve_model_data_config(network)
    subset = None if weights else timm.data.infer_imagenet_subset(network)
    names = timm.data.ImageNetInfo(subset).label_descriptions() if subset else None
    return Loaded(network, Input(config["input_size"][1:], config["mean"], config["std"]), names)


def _torchvision(spec: str) -> Loaded:
    name, _, weights = spec.partition("@")
    with _one_line(spec), torch.random.fork_rng(devices=[]):
        published = models.get_model_weights(name).DEFAULT
        path = weights or pretrained_weights(published.url)
        # what torchvision's builders do beside loading the weights
        own = {} if weights or name not in ("googlenet", "inception_v3") else {"transform_input": True}
        network = _with_outputs_of(lambda **count: models.get_model(name, weights=None, **own, **count), path)
        transform = published.transforms()
    if not weights:
        say(f"{name}: torchvision's own pretrained weights, {path}")
    wanted = Input(transform.crop_size[0], tuple(transform.mean), tuple(transform.std))
    return Loaded(network, wanted, None if weights else published.meta["categories"])


def _hugging_face(name: str) -> Loaded:
    folder = Path(name)
    if _json(folder / "config.json").get("auto_map"):
        raise InputError(f"{folder}/config.json: asks for code of its own (auto_map), which is not run; use python:")
    if not list(folder.glob(f"*{SAFETENSORS}")):
        raise InputError(f"{folder}: holds no {SAFETENSORS}; where you trust it, load it and save_pretrained it again")
    transformers = _library("transformers", extra="hf")
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of weights that do not fit becomes one line below
    with _one_line(name), torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack:
        stack.callback(logging.set_verbosity, verbosity)
        network, report = transformers.AutoModelForImageClassification.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",  # a configuration may name a kernel from the hub, which is code
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    lacking = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    if lacking:
        raise InputError(f"{folder}: {len(lacking)} weights are missing or misshapen (the first is {lacking[0]})")
    names = [network.config.id2label.get(i, "") for i in range(network.config.num_labels)]
    generic = all(name in ("", f"LABEL_{i}") for i, name in enumerate(names))
    return Loaded(network, _hugging_face_input(folder), None if generic else names)


def _hugging_face_input(folder: Path) -> Input | None:
    """What preprocessor_config.json says; the centre crop that some have gives way to showing the whole image."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return None
    config = _json(path)
    size = config.get("crop_size" if config.get("do_center_crop") else "size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (size["height"], size["width"])
    white = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
    low = -1.0 if config.get("rescale_offset") else 0.0
    mean, std = (config["image_mean"], config["image_std"]) if config.get("do_normalize", True) else (None, None)
    return Input(size, mean, std, (low, low + white))


def _onnx(path: str) -> Loaded:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    onnx, onnx2torch = (_library(name, extra="onnx") for name in ("onnx", "onnx2torch"))
    try:
        model = onnx.load(path)
        network = onnx2torch.convert(model)
    except NotImplementedError as error:
        advice = "export it with torch.onnx.export(..., dynamo=False, opset_version=13)"
        raise InputError(f"{path}: onnx2torch: {first_line(error)}; {advice}") from None
    except Exception as error:  # a damaged file fails in any way
        raise InputError(f"{path}: damaged or not an ONNX model ({first_line(error)})") from None
    sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    return Loaded(network, Input(tuple(sides) if len(sides) == 2 and all(sides) else None))


def _python(spec: str) -> Loaded:
    parts = re.fullmatch(r"(.+):(\w+)(?:@(.+))?", spec)
    if not parts:
        raise InputError(f"python:{spec}: expected python:FILE.py:FACTORY or python:MODULE:FACTORY, perhaps @WEIGHTS")
    place, factory, weights = parts.groups()
    say(f"python:{spec}: runs your own code")
    with _one_line(spec):
        network = getattr(_module(place), factory)()
    if not isinstance(network, nn.Module):
        raise InputError(f"python:{spec}: {factory}() gives {type(network).__name__}, expected a torch.nn.Module")
    if mode_matters(network):
        say(f"python:{spec}: was in training mode; it is set to eval mode, with batch norms and dropouts at rest")
    return Loaded(install(network, read_state_dict(weights), weights, CPU) if weights else network)


KINDS: dict[str, Callable[[str], Loaded]] = {
    "timm:": _timm,
    "torchvision:": _torchvision,
    "hf:": _hugging_face,
    "python:": _python,
    ".onnx": _onnx,
}
"""How a spec begins (with a colon) or ends -> its kind; anything else is a file of weights (`_from_file`)."""


def _with_outputs_of(build: Callable[..., nn.Module], path: str | Path) -> nn.Module:
    """A library's network with these weights, built with as many outputs as they have."""
    state = read_state_dict(path)
    network = build()
    for name, own in network.state_dict().items():
        found = state.get(name)
        if found is not None and found.ndim == own.ndim > 0 and len(found) != len(own):
            network = build(num_classes=len(found))
            break
    return install(network, state, path, CPU)


def _library(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        install = f'pip install "dime-counterfactuals[{extra}]"'
        raise InputError(f"this classifier needs {name}: {install} ({first_line(error)})") from None


def _module(place: str) -> ModuleType:
    """A module by name, or a file of Python, that can import what lies in the working directory or beside the file."""
    is_file = place.endswith(".py")
    beside = str(Path(place).resolve().parent if is_file else Path.cwd())
    sys.path.insert(0, beside)
    try:
        if not is_file:
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, module)  # where dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(beside)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None


@contextlib.contextmanager
def _one_line(spec: str) -> Iterator[None]:
    """Within it, whatever a library or the user's own code raises is an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{spec}: {type(error).__name__}: {first_line(error)}") from error
