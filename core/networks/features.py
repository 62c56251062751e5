"""The networks beside the classifier and the diffusion model: those of the metrics and of the perceptual loss.

Every loader gives a network in eval mode, in float32, with frozen parameters, on the device asked for, and raises
InputError. Networks are built on the meta device first, so that no random weights are drawn; torchvision takes seconds
to import, so only those wait who need a network of its.
"""

import re
from pathlib import Path

import torch
from torch import nn

from dime.core.cli import say
from dime.core.errors import InputError
from dime.core.networks import files
from dime.core.presets import PRESETS
from dime.models.classifiers import SmallCNN, SmallOracle, SmallPerceptual

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
VGGFACE2_FILES = ("resnet50_vggface2_model.pkl", "resnet50_ft_weight.pkl")
"""The VGGFace2 weights, under the name the metric scripts use and the one they are downloaded as."""


def load_oracle(path: str | Path, device: torch.device) -> nn.Module:
    """The attribute oracle: x (N, 3, H, W) in [-1, 1] -> features (N, D), logits (N, K).

    The published one has D = 128; a small CNN, which may stand in for it on small images, has that of its last level.
    """
    content, state = files.read_tables(path)
    if small := SmallCNN.shaped_like(state):
        return SmallOracle(takes_grey(files.install(small, state, path, device))).eval()
    if not {"feat_extract.conv1_7x7_s2.weight", "classifier.weight"} <= state.keys():
        expected = "an oracle (a dict with feat_extract, a Caffe-style ResNet-50 or a small CNN, and classifier)"
        raise InputError(f"{path}: holds {files.describe(content)}, expected {expected}")
    from dime.models.resnet import Oracle, oracle_layers

    with torch.device("meta"):
        network = Oracle(len(state["classifier.weight"]))
    layers, own = oracle_layers(), {}
    for name, value in state.items():
        layer, _, entry = name.removeprefix("feat_extract.").rpartition(".")
        own[f"{layers.get(layer, layer)}.{entry}"] = value
    return files.install(network, own, path, device)


def load_vggface2(path: str | Path, device: torch.device) -> nn.Module:
    """The VGGFace2 face network: models.resnet.vggface2_input (N, 3, 224, 224) -> features (N, 2048).

    Looks in the folder of `path` for the other usual name of the file too (VGGFACE2_FILES). Names in the file
    that the network does not have are skipped; all but the last layer's are reported.
    """
    found = vggface2_file(Path(path))
    state = {name: torch.from_numpy(array) for name, array in files.read_numpy_pickle(found).items()}
    from dime.models.resnet import caffe_resnet50

    with torch.device("meta"):
        network = caffe_resnet50()
    known = {name: state[name] for name in network.state_dict() if name in state}
    if unknown := [name for name in state if name not in known and name not in ("fc.weight", "fc.bias")]:
        say(f"{found}: {len(unknown)} unknown entries are skipped ({', '.join(unknown[:3])})")
    return files.install(network, known, found, device)


def vggface2_file(path: Path) -> Path:
    """The file of weights, under this or another usual name. Raises InputError where there is none."""
    names = dict.fromkeys((path.name, *VGGFACE2_FILES))
    found = next((path.with_name(name) for name in names if path.with_name(name).exists()), None)
    if found is None:
        listed = " or ".join(names)
        raise InputError(f"{path}: no such file; put VGGFace2's ResNet-50 weights into {path.parent} as {listed}")
    return found


def load_small_cnn(path: str | Path, device: torch.device) -> SmallCNN:
    """A network that celeba-train-classifier.py --arch small has trained."""
    content, state = files.read_tables(path)
    if not (network := SmallCNN.shaped_like(state)):
        raise InputError(f"{path}: holds {files.describe(content)}, expected a small CNN (celeba-train-classifier.py)")
    return takes_grey(files.install(network, state, path, device))


def takes_grey(network: SmallCNN) -> SmallCNN:
    """The network, which now takes grey images with one channel or three equal ones, whichever it has itself."""

    def fitted(_: nn.Module, images: tuple[torch.Tensor]) -> torch.Tensor:
        x, channels = images[0], network.channels
        if x.shape[1] > channels and not (x == x[:, :1]).all():
            raise InputError("the images are in colour, but the network was trained on grey ones")
        return x[:, :channels].expand(-1, channels, -1, -1)

    network.feat_extract.register_forward_pre_hook(fitted)
    return network


def load_perceptual(
    layer: int | None = None, path: str | Path = "", *, device: torch.device | str = "cpu"
) -> nn.Module:
    """The first layers of a feature network: x (N, 3 or 1, H, W) in [-1, 1] -> features (N, C, h, w).

    layer: how many; None: the preset's, or 18. path: a small CNN, whose layers are its levels, or a preset that names
    one ("demo"); '' is torchvision's VGG19, from models/, the torch hub cache, or downloaded.
    """
    known = PRESETS.get(str(path), {})
    layer, path = layer or known.get("l_perc_layer", 18), known.get("perceptual_path", path)
    if path:
        network = load_small_cnn(path, device)
        if not 1 <= layer <= network.levels:
            raise InputError(f"--l_perc_layer {layer}: {path}: this small CNN has levels 1 to {network.levels}")
        return SmallPerceptual(network, layer).eval()
    from dime.models.perceptual import VGG19_LAYERS, PerceptualFeatures

    if not 1 <= layer <= VGG19_LAYERS:
        raise InputError(f"--l_perc_layer {layer}: VGG19 has layers 1 to {VGG19_LAYERS}")
    path = files.pretrained_weights(VGG19_URL)
    with torch.device("meta"):
        network = PerceptualFeatures(layer)
    published = files.read_state_dict(path)
    return files.install(network, {k: published[k] for k in network.state_dict() if k in published}, path, device)


def load_lpips(device: torch.device) -> nn.Module:
    """LPIPS on VGG16: torchvision's weights (as in load_perceptual) and the lpips package's linear heads."""
    import lpips

    from dime.models.perceptual import LPIPSDistance

    path = files.pretrained_weights(VGG16_URL)
    with torch.device("meta"):
        network = LPIPSDistance()
    scaling = {f"scaling_layer.{name}": value for name, value in lpips.ScalingLayer().state_dict().items()}
    heads = files.read_state_dict(Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth")  # of the package
    published = {**files.read_state_dict(path), **heads, **scaling}
    state = {}
    for name in network.state_dict():  # net.slice3.12.bias is published as features.12.bias, lins.0.… as lin0.…
        theirs = re.sub(r"^lins\.", "lin", re.sub(r"^net\.slice\d\.", "features.", name))
        state |= {name: published[theirs]} if theirs in published else {}
    return files.install(network, state, path, device)


def load_inception(path: str | Path, device: torch.device) -> nn.Module:
    """The FID's Inception-V3 (pytorch-fid's weights): x (N, 3, H, W) in [-1, 1] -> features (N, 2048)."""
    from dime.models.perceptual import InceptionFeatures

    with torch.device("meta"):
        network = InceptionFeatures()
    state = files.read_state_dict(path)
    return files.install(network, {k: v for k, v in state.items() if k not in ("fc.weight", "fc.bias")}, path, device)
