"""Networks from files: strict, safe, and with one line that says what is wrong with a file.

Every loader gives a network in eval mode, in float32, with frozen parameters, on the device asked for, and
raises InputError. Networks are built on the meta device first, so that no random weights are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lpips
import torch
from torch import nn

from dime.core.cli import say
from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.unet_flags import differing_flags, infer_flags
from dime.core.weight_files import (
    VGG16_URL,
    VGG19_URL,
    describe,
    pretrained_weights,
    read_checkpoint,
    read_numpy_pickle,
    read_state_dict,
)
from dime.models.classifiers import DENSENET_FEATURES, DenseNetClassifier
from dime.models.inception import InceptionFeatures
from dime.models.lpips_vgg import LINEAR_HEADS, LPIPSDistance, lpips_parameter_name
from dime.models.perceptual import VGG19_LAYERS, PerceptualFeatures
from dime.models.resnet import Oracle, caffe_resnet50, oracle_parameter_name
from dime.models.small_cnn import SmallCNN, SmallOracle, SmallPerceptual
from guided_diffusion.checkpoint_util import stored_config
from guided_diffusion.script_util import create_model_and_diffusion
from guided_diffusion.unet import UNetModel

VGGFACE2_FILES = ("resnet50_vggface2_model.pkl", "resnet50_ft_weight.pkl")
"""The VGGFace2 weights, under the name the metric scripts use and the one they are downloaded as."""

Network = TypeVar("Network", bound=nn.Module)
State = Mapping[str, torch.Tensor]


def load_unet(path: str | Path, flags: Mapping[str, Any], device: torch.device) -> UNetModel:
    """The U-Net of a checkpoint that flags (keys of model_and_diffusion_defaults) describe.

    With class_cond the labels are vectors of CelebA's 40 attributes. The weights stay float32 whatever
    use_fp16 says: `convert_to` is the caller's. A configuration stored in the file must agree with the flags;
    a file that does not fit them is an error that says which flags would.
    """
    state = read_state_dict(path)
    config = stored_config(state)
    if config is not None:
        _require_same_flags(path, flags, config)
    try:
        with torch.device("meta"):
            network, _ = create_model_and_diffusion(**flags, num_classes=len(ATTRIBUTES), multiclass=True)
    except ValueError as error:
        raise InputError(str(error)) from None
    _require_fitting_flags(path, network, state, int(flags["image_size"]))
    return _finish(network, state, path, device)


def load_classifier(path: str | Path, device: torch.device) -> nn.Module:
    """The classifier to explain, recognised by what the file holds (CLASSIFIER_FORMATS).

    It maps x (N, 3, H, W) in [-1, 1] to logits (N, C) and says C in its attribute `num_outputs`. Its attribute
    `attributes` names the outputs, None where the file does not (`output_column`).
    """
    content = read_checkpoint(path)
    for recognise in CLASSIFIER_FORMATS.values():
        recognised = recognise(content)
        if recognised is not None:
            network = _finish(*recognised, path, device)
            network.attributes = _output_names(content.get("attributes"), network.num_outputs)
            return network
    known = "; ".join(CLASSIFIER_FORMATS)
    raise InputError(f"{path}: holds {describe(content)}, which is no known classifier; known: {known}")


def _output_names(stored: Any, count: int) -> list[str] | None:
    named = isinstance(stored, list) and len(stored) == count and all(isinstance(name, str) for name in stored)
    return stored if named else None


def output_column(classifier: nn.Module, attribute: int, path: str | Path) -> int:
    """Which output of a loaded classifier decides on an attribute of CelebA. Raises InputError where none does."""
    if classifier.attributes is not None:
        if ATTRIBUTES[attribute] in classifier.attributes:
            return classifier.attributes.index(ATTRIBUTES[attribute])
        names = ", ".join(map(str, classifier.attributes))
        raise InputError(f"--query_label {attribute} ({ATTRIBUTES[attribute]}): {path} decides on {names} only")
    if attribute >= classifier.num_outputs:
        raise InputError(f"--query_label {attribute}: {path} has {classifier.num_outputs} outputs, counted from 0")
    return attribute


def load_oracle(path: str | Path, device: torch.device) -> nn.Module:
    """The attribute oracle: x (N, 3, H, W) in [-1, 1] -> features (N, D), logits (N, 40).

    The published one has D = 128; a small CNN, which may stand in for it on small images, has that of its last level.
    """
    content = read_checkpoint(path)
    small = _recognise_small_cnn(content)
    if small is not None:
        return SmallOracle(_finish(*small, path, device)).eval()
    parts = _trunk_and_head(content)
    if parts is None or "conv1_7x7_s2.weight" not in parts[0]:
        expected = "an oracle (a dict with feat_extract, a Caffe-style ResNet-50 or a small CNN, and classifier)"
        raise InputError(f"{path}: holds {describe(content)}, expected {expected}")
    trunk, head = parts
    state = {oracle_parameter_name(name): value for name, value in trunk.items()}
    with torch.device("meta"):
        network = Oracle(_num_outputs(head))
    return _finish(network, state | _with_prefix("classifier.", head), path, device)


def load_vggface2(path: str | Path, device: torch.device) -> nn.Module:
    """The VGGFace2 face network: models.resnet.vggface2_input (N, 3, 224, 224) -> features (N, 2048).

    Looks in the folder of `path` for the other usual name of the file too (VGGFACE2_FILES). Names in the file
    that the network does not have are skipped; all but the last layer's are reported.
    """
    path = _either_name(Path(path))
    state = {name: torch.from_numpy(array) for name, array in read_numpy_pickle(path).items()}
    with torch.device("meta"):
        network = caffe_resnet50()
    wanted = network.state_dict()
    unknown = [name for name in state if name not in wanted and name not in ("fc.weight", "fc.bias")]
    if unknown:
        say(f"{path}: {len(unknown)} unknown entries are skipped ({', '.join(unknown[:3])})")
    return _finish(network, {name: state[name] for name in wanted if name in state}, path, device)


def load_small_cnn(path: str | Path, device: torch.device) -> SmallCNN:
    """A network that celeba-train-classifier.py --arch small has trained."""
    content = read_checkpoint(path)
    small = _recognise_small_cnn(content)
    if small is None:
        raise InputError(f"{path}: holds {describe(content)}, expected a small CNN (celeba-train-classifier.py)")
    return _finish(*small, path, device)


def load_perceptual(layer: int, device: torch.device, path: str | Path = "") -> nn.Module:
    """The first `layer` layers of a feature network: x (N, 3, H, W) in [-1, 1] -> features (N, C, h, w).

    path: a small CNN, whose layers are its levels; '' is torchvision's VGG19, from models/, the torch hub cache, or
    downloaded.
    """
    if path:
        try:
            return SmallPerceptual(load_small_cnn(path, device), layer).eval()
        except ValueError as error:
            raise InputError(f"--l_perc_layer {layer}: {path}: {error}") from None
    if not 1 <= layer <= VGG19_LAYERS:
        raise InputError(f"--l_perc_layer {layer}: VGG19 has layers 1 to {VGG19_LAYERS}")
    path = pretrained_weights(VGG19_URL)
    state = read_state_dict(path)
    with torch.device("meta"):
        network = PerceptualFeatures(layer)
    wanted = network.state_dict()
    return _finish(network, {name: state[name] for name in wanted if name in state}, path, device)


def load_lpips(device: torch.device) -> LPIPSDistance:
    """LPIPS on VGG16: torchvision's weights (as in load_perceptual) and the lpips package's linear heads."""
    path = pretrained_weights(VGG16_URL)
    convolutions = {k: v for k, v in read_state_dict(path).items() if k.startswith("features.")}
    state = _with_prefix("network.", read_state_dict(LINEAR_HEADS))
    # the package lists its heads twice, by name and in a row
    state |= {name.replace("lin", "lins.", 1): value for name, value in state.items()}
    state |= {lpips_parameter_name(name): value for name, value in convolutions.items()}
    state |= _with_prefix("network.scaling_layer.", lpips.ScalingLayer().state_dict())
    with torch.device("meta"):
        network = LPIPSDistance()
    return _finish(network, state, path, device)


def load_inception(path: str | Path, device: torch.device) -> InceptionFeatures:
    """The FID's Inception-V3 (pytorch-fid's weights): x (N, 3, H, W) in [-1, 1] -> features (N, 2048)."""
    state = {k: v for k, v in read_state_dict(path).items() if k not in ("fc.weight", "fc.bias")}
    with torch.device("meta"):
        network = InceptionFeatures()
    return _finish(network, _with_prefix("network.", state), path, device)


# --- what a file of a classifier may hold

Recogniser = Callable[[Any], tuple[nn.Module, State] | None]
"""Takes what a file holds; gives a network on the meta device and the weights under its names, or None."""


def _recognise_densenet(content: Any) -> tuple[nn.Module, State] | None:
    parts = _trunk_and_head(content)
    if parts is None or "feat_extract.features.conv0.weight" not in parts[0]:
        return None
    trunk, head = parts
    if head["weight"].shape[1] != DENSENET_FEATURES:
        return None
    with torch.device("meta"):
        network = DenseNetClassifier(_num_outputs(head))
    return network, _with_prefix("feat_extract.", trunk) | _with_prefix("classifier.", head)


def _recognise_small_cnn(content: Any) -> tuple[nn.Module, State] | None:
    parts = _trunk_and_head(content)
    if parts is None or not SmallCNN.recognises(parts[0]):
        return None
    trunk, head = parts
    with torch.device("meta"):
        network = SmallCNN.shaped_like({"feat_extract": trunk, "classifier": head})
    return network, _with_prefix("feat_extract.", trunk) | _with_prefix("classifier.", head)


CLASSIFIER_FORMATS: dict[str, Recogniser] = {
    "a DenseNet-121 classifier (tables feat_extract and classifier)": _recognise_densenet,
    "the small CNN of celeba-train-classifier.py (the same two tables)": _recognise_small_cnn,
}
"""What load_classifier knows: a format in words -> its recogniser."""


def _trunk_and_head(content: Any) -> tuple[State, State] | None:
    """The two state dicts of a published classifier or oracle; None for anything else.

    A .safetensors file cannot nest tables: there the two names are prefixes.
    """
    if not isinstance(content, dict):
        return None
    if _is_state_dict(content):
        content = {part: _below(f"{part}.", content) for part in ("feat_extract", "classifier")}
    trunk, head = content.get("feat_extract"), content.get("classifier")
    if not (_is_state_dict(trunk) and _is_state_dict(head)):
        return None
    trunk, head = ({name.removeprefix("module."): value for name, value in table.items()} for table in (trunk, head))
    return (trunk, head) if "weight" in head and head["weight"].ndim == 2 else None


def _num_outputs(head: State) -> int:
    return head["weight"].shape[0]


def _with_prefix(prefix: str, state: State) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _below(prefix: str, state: State) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _either_name(path: Path) -> Path:
    if path.exists():
        return path
    for name in VGGFACE2_FILES:
        if path.with_name(name).exists():
            return path.with_name(name)
    names = " or ".join(dict.fromkeys((path.name, *VGGFACE2_FILES)))
    raise InputError(f"{path}: no such file; put VGGFace2's ResNet-50 weights into {path.parent} as {names}")


# --- does the file fit


def _require_same_flags(path: str | Path, flags: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    differing = differing_flags(flags, config)
    if differing:
        listed = ", ".join(f"--{key} is {flags[key]!r}, the file was trained with {config[key]!r}" for key in differing)
        raise InputError(f"{path}: its stored configuration contradicts the flags: {listed}")


def _require_fitting_flags(path: str | Path, network: UNetModel, state: State, image_size: int) -> None:
    """Raise InputError, naming the flags that would fit, when the flags' network and the file's are not the same."""
    try:
        needed = infer_flags({name: tuple(value.shape) for name, value in state.items()}, image_size)
    except ValueError as error:
        raise InputError(f"{path}: holds {describe(dict(state))}: {error}") from None
    if needed["class_cond"] and (needed["num_classes"], needed["multiclass"]) != (len(ATTRIBUTES), True):
        kind = "0/1 vectors" if needed["multiclass"] else "a table indexed by class"
        raise InputError(
            f"{path}: is conditioned on {needed['num_classes']} classes through {kind}; supported are "
            f"unconditional networks and those conditioned on vectors of CelebA's {len(ATTRIBUTES)} attributes"
        )
    given = infer_flags({name: tuple(value.shape) for name, value in network.state_dict().items()}, image_size)
    wrong = [key for key in given if given[key] != needed[key] and key not in ("num_classes", "multiclass")]
    if wrong:
        none = "''"
        listed = ", ".join(f"--{key} {needed[key]!s} instead of {str(given[key]) or none}" for key in wrong)
        raise InputError(f"{path}: does not fit the flags; it needs {listed}")


def _finish(network: Network, state: State, path: str | Path, device: torch.device) -> Network:
    """Put weights into a network on the meta device: all of them, no others, all finite, in float32."""
    expected = network.state_dict()
    # old files lack the batch norms' counters, which have no effect on an evaluation
    counters = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    state = counters | dict(state)
    problem = _mismatch(expected, state)
    if problem:
        raise InputError(f"{path}: is not a {type(network).__name__} checkpoint of the expected shape: {problem}")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise InputError(f"{path}: {len(broken)} of its tensors hold NaN or infinity, the first is {broken[0]}")
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False).to(device)


def _mismatch(expected: State, found: State) -> str:
    """What keeps one table of weights from standing in for another, in a few words; '' when nothing does."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    shapes = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} entries are missing (the first is {missing[0]})")
    if unknown:
        parts.append(f"{len(unknown)} are unknown (the first is {unknown[0]})")
    if shapes:
        name = shapes[0]
        shape_found, shape_expected = tuple(found[name].shape), tuple(expected[name].shape)
        parts.append(f"{len(shapes)} have another shape ({name}: {shape_found} instead of {shape_expected})")
    return ", ".join(parts)
