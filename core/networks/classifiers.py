"""The classifier that is explained, from whatever it is kept in (the table in models/README.md).

A new kind is one function and one entry in KINDS: from what follows the kind in a spec to the network as its library
has it. What all of them need in front and behind is `load_classifier`'s.
"""

import importlib
import importlib.util
import itertools
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from dime.core.cli import say
from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.networks import files
from dime.core.networks.checks import first_line, logits_of, mode_matters
from dime.core.presets import PRESETS
from dime.models.classifiers import DenseNetClassifier, SmallCNN

CPU = torch.device("cpu")


class Loaded(NamedTuple):
    """A network whose output is, or has as `.logits`, the logits (N, K); its outputs' names; its input.

    wanted: arguments of Classifier; {}: images as they come, None: the caller has to describe them.
    """

    network: nn.Module
    names: Sequence[str] | None = None
    wanted: Mapping[str, Any] | None = {}


class Classifier(nn.Module):
    """A network behind differentiable resizing and normalising: x (N, C, H, W) in [-1, 1] -> logits (N, K).

    Bilinear and antialiased: without that, a smaller network would see some of the pixels only, and the others would
    never change; enlarging is the same with and without. The whole image is shown, nothing is cropped.

    Args: what the network wants to see; None: images as they come, of their own size and in [-1, 1].
        size: height and width in pixels, or one number for both.
        mean, std: a number, or one per channel, in the units of value_range.
        value_range: of black and white, before normalising; (0, 1) where there is a mean or std.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int | Sequence[int] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        value_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.size = (size, size) if isinstance(size, int) else size and tuple(size)
        low, high = value_range or ((-1, 1) if mean is None and std is None else (0, 1))
        shift = torch.tensor(0 if mean is None else mean, dtype=torch.float32).view(-1, 1, 1)
        scale = torch.tensor(1 if std is None else std, dtype=torch.float32).view(-1, 1, 1)
        if not high > low or not (scale > 0).all():
            raise InputError(f"a classifier's range must rise and its std be above 0, not {low},{high} and {std}")
        self.register_buffer("scale", (high - low) / 2 / scale, persistent=False)
        self.register_buffer("shift", ((high + low) / 2 - shift) / scale, persistent=False)
        self.training = False

    def train(self, mode: bool = True) -> "Classifier":
        """Do nothing: a network that was loaded stays in eval mode (an exported program has no modes at all)."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, K)."""
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        output = self.network(x * self.scale + self.shift)
        return getattr(output, "logits", output)


def load_classifier(
    spec: str | Path, device: torch.device | str = "cpu", *, trust: bool = False, **wanted: Any
) -> nn.Module:
    """The classifier to explain: x (N, C, H, W) in [-1, 1] -> logits (N, K); in eval mode, frozen, in float32.

    Args:
        spec: a file, KIND:NAME[@WEIGHTS] (models/README.md has the table), or a preset that names one ("demo").
        device: where it computes.
        trust: run the program in a TorchScript or torch.export archive.
        wanted: size, mean, std and value_range, as Classifier has them; each overrides what its kind says.

    Its attribute `num_outputs` is K, `names` what the outputs are called, or None where nothing says so. Raises
    InputError for a file that is missing, unsafe or of another network, and for a library that is not installed.
    """
    spec = str(PRESETS.get(str(spec), {}).get("classifier_path", spec))
    given = {name: value for name, value in wanted.items() if value is not None}
    key = next((key for key in KINDS if key.endswith(":") and spec.startswith(key)), Path(spec).suffix)
    try:
        with torch.random.fork_rng(devices=[]):
            loaded = KINDS[key](spec.removeprefix(key)) if key in KINDS else _from_file(spec, trust)
    except InputError:
        raise
    except Exception as error:  # a library, a damaged file or the user's own code fails in any way
        raise InputError(f"{spec}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
    if loaded.wanted is None and not given:
        raise InputError(f"{spec}: does not say what it wants to see; give --classifier_size, _mean, _std or _range")
    network, wanted = files.ready(loaded.network, spec, device), {**(loaded.wanted or {}), **given}
    if wanted or not isinstance(network, (DenseNetClassifier, SmallCNN)):
        network = Classifier(network, **wanted).to(device)
        network.num_outputs = _count_outputs(network, spec, device)
    named = loaded.names is not None and len(loaded.names) == network.num_outputs
    network.names = list(loaded.names) if named else None
    return network


def output_column(
    classifier: nn.Module, query: int, path: str | Path, attribute: str = "", names: Sequence[str] | None = None
) -> int:
    """Which output of a loaded classifier decides on a query: its own index, or that of an attribute, found by name.

    attribute: the query's; where it is not given, CelebA's, if outputs are named after those. names: the outputs',
    instead of the classifier's own. Raises InputError where none decides.
    """
    names = names or classifier.names or ()
    if not attribute and query < len(ATTRIBUTES) and not set(ATTRIBUTES).isdisjoint(names):
        attribute = ATTRIBUTES[query]
    if attribute and names:
        if attribute not in names:
            raise InputError(f"--query_label {query} ({attribute}): {path} decides on {', '.join(names)} only")
        return names.index(attribute)
    if query >= classifier.num_outputs:
        raise InputError(f"--query_label {query}: {path} has {classifier.num_outputs} outputs, counted from 0")
    return query


@torch.no_grad()
def _count_outputs(classifier: Classifier, spec: str, device: torch.device) -> int:
    """K, by asking for the logits of one grey image of its size, or of usual ones, of three channels or of one."""
    errors = []
    sizes = [classifier.size] if classifier.size else [(side, side) for side in (256, 224, 299, 128, 64, 32, 28)]
    for channels, size in itertools.product((3, 1), sizes):
        try:
            return logits_of(classifier, torch.zeros(1, channels, *size, device=device), spec).shape[1]
        except InputError as error:
            errors.append(error)
    raise errors[0]


# Kinds


def _from_file(path: str, trust: bool) -> Loaded:
    """A published file, or what celeba-train-classifier.py writes, .pth or .safetensors; trust: a program, too."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = {name.rpartition("/")[2] for name in archive.namelist()}
        is_script = "constants.pkl" in parts
        if is_script or parts & {"archive_format", "serialized_exported_program.json"}:
            what = f"a {'TorchScript' if is_script else 'torch.export'} archive"
            if not trust:
                raise InputError(
                    f"{path}: is {what}, a program that would run here with your rights; if you trust who made it, say "
                    "--trust_classifier True; else give its weights: save its state_dict, then timm:, torchvision: or "
                    "python:"
                )
            say(f"{path}: runs the program of {what}")
            return Loaded(torch.jit.load(path) if is_script else torch.export.load(path).module())
    content, state = files.read_tables(path)
    notes = getattr(content, "_metadata", {}).get("", content)
    names = notes.get("attributes") if isinstance(notes, Mapping) else None
    names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    network = SmallCNN.shaped_like(state)
    if {"feat_extract.feat_extract.features.conv0.weight", "classifier.weight"} <= state.keys():
        with torch.device("meta"):
            network = DenseNetClassifier(len(state["classifier.weight"]))
    if network:
        return Loaded(files.install(network, state, path, CPU), names)
    raise InputError(
        f"{path}: holds {files.describe(content)}, which is no known classifier; known: a DenseNet-121 classifier and "
        "the small CNN of celeba-train-classifier.py (tables feat_extract and classifier); weights of another network "
        "need its name: timm:NAME@FILE, torchvision:NAME@FILE or python:FILE.py:FACTORY@FILE"
    )


def _timm(spec: str) -> Loaded:
    timm = _library("timm", extra="timm")
    name, _, weights = spec.partition("@")
    if weights:
        network, names = _with_outputs_of(lambda **count: timm.create_model(name, **count), weights), None
    else:
        say(f"{name}: timm's own pretrained weights, from its cache or downloaded")
        network = timm.create_model(name, pretrained=True)
        subset = timm.data.infer_imagenet_subset(network)
        names = timm.data.ImageNetInfo(subset).label_descriptions() if subset else None
    config = timm.data.resolve_model_data_config(network)
    return Loaded(network, names, {"size": config["input_size"][1:], "mean": config["mean"], "std": config["std"]})


def _torchvision(spec: str) -> Loaded:
    from torchvision import models

    name, _, weights = spec.partition("@")
    published = models.get_model_weights(name).DEFAULT
    path = weights or files.pretrained_weights(published.url)
    # what torchvision's builders do beside loading the weights
    own = {} if weights or name not in ("googlenet", "inception_v3") else {"transform_input": True}
    network = _with_outputs_of(lambda **count: models.get_model(name, weights=None, **own, **count), path)
    if not weights:
        say(f"{name}: torchvision's own pretrained weights, {path}")
    transform, names = published.transforms(), None if weights else published.meta["categories"]
    return Loaded(network, names, {"size": transform.crop_size[0], "mean": transform.mean, "std": transform.std})


def _hugging_face(name: str) -> Loaded:
    folder = Path(name)
    if files.read_json(folder / "config.json").get("auto_map"):
        raise InputError(f"{folder}/config.json: asks for code of its own (auto_map), which is not run; use python:")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds no .safetensors; where you trust it, load it and save_pretrained it again")
    transformers = _library("transformers", extra="hf")
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of weights that do not fit becomes one line below
    try:
        network, report = transformers.AutoModelForImageClassification.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",  # a configuration may name a kernel from the hub, which is code
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    lacking = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    if lacking:
        raise InputError(f"{folder}: {len(lacking)} weights are missing or misshapen (the first is {lacking[0]})")
    names = [network.config.id2label.get(i, "") for i in range(network.config.num_labels)]
    generic = all(name in ("", f"LABEL_{i}") for i, name in enumerate(names))
    wanted, path = None, folder / "preprocessor_config.json"
    if path.exists():  # the centre crop that some have gives way to showing the whole image
        config = files.read_json(path)
        size = config.get("crop_size" if config.get("do_center_crop") else "size")
        if isinstance(size, dict):
            size = size.get("shortest_edge") or (size["height"], size["width"])
        white = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
        low = -1.0 if config.get("rescale_offset") else 0.0
        wanted = {"size": size, "value_range": (low, low + white)}
        if config.get("do_normalize", True):
            wanted |= {"mean": config["image_mean"], "std": config["image_std"]}
    return Loaded(network, None if generic else names, wanted)


def _onnx(path: str) -> Loaded:
    files.require_file(Path(path))
    onnx, onnx2torch = (_library(name, extra="onnx") for name in ("onnx", "onnx2torch"))
    try:
        model = onnx.load(path)
        network = onnx2torch.convert(model)
    except NotImplementedError as error:
        advice = "export it with torch.onnx.export(..., dynamo=False, opset_version=13)"
        raise InputError(f"{path}: onnx2torch: {first_line(error)}; {advice}") from None
    sides = tuple(side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[2:])
    return Loaded(network, wanted={"size": sides} if len(sides) == 2 and all(sides) else {})


def _python(spec: str) -> Loaded:
    if not (parts := re.fullmatch(r"(.+):(\w+)(?:@(.+))?", spec)):
        raise InputError(f"python:{spec}: expected python:FILE.py:FACTORY or python:MODULE:FACTORY, perhaps @WEIGHTS")
    place, factory, weights = parts.groups()
    say(f"python:{spec}: runs your own code")
    network = getattr(_module(place), factory)()
    if not isinstance(network, nn.Module):
        raise InputError(f"python:{spec}: {factory}() gives {type(network).__name__}, expected a torch.nn.Module")
    if mode_matters(network):
        say(f"python:{spec}: was in training mode; it is set to eval mode, with batch norms and dropouts at rest")
    return Loaded(files.install(network, files.read_state_dict(weights), weights, CPU) if weights else network)


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
    state, network = files.read_state_dict(path), build()
    for name, own in network.state_dict().items():
        found = state.get(name)
        if found is not None and found.ndim == own.ndim > 0 and len(found) != len(own):
            network = build(num_classes=len(found))
            break
    return files.install(network, state, path, CPU)


def _library(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        install = f'pip install "dime-counterfactuals[{extra}]"'
        raise InputError(f"this classifier needs {name}: {install} ({first_line(error)})") from None


def _module(place: str) -> ModuleType:
    """A module by name, or a file of Python, that can import what lies in the working directory or beside the file."""
    is_file = place.endswith(".py")
    sys.path.insert(0, beside := str(Path(place).resolve().parent if is_file else Path.cwd()))
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
