"""What the metrics need: a result tree of three experiments, and every network's weights as files."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torchvision.models import vgg16

from dime.core.cli import run
from dime.core.results import CELLS, ResultTree
from dime.models.perceptual import InceptionFeatures
from tests.helpers import GOLDEN, filled, filled_tensor, golden
from tests.worlds import Run, World

KEYS = json.loads((GOLDEN / "state_dict_keys.json").read_text())
EXPERIMENTS = ("expA", "expB", "expC")
SMALL_IDS = 12
"""The images of the small tree."""


@dataclass(frozen=True)
class MetricWorld:
    """A folder with the trees and weights behind the golden figures of the metrics."""

    root: Path
    celeba: Path
    classifier: Path

    @property
    def output_path(self) -> Path:
        """80 inputs of 64x64, three experiments; to be read only."""
        return self.root / "tree"

    @property
    def oracle(self) -> Path:
        """The oracle with the golden head."""
        return self.root / "oracle.pth"

    @property
    def faces(self) -> Path:
        """VGGFace2, under the name it is downloaded as."""
        return self.root / "resnet50_ft_weight.pkl"

    @property
    def inception(self) -> Path:
        """Inception-V3 with weights that keep its features near one."""
        return self.root / "inception.pth"

    def tree(self, exp_name: str) -> ResultTree:
        """One of the experiments."""
        return ResultTree(self.output_path, exp_name)

    def small_tree(self, folder: Path) -> Path:
        """A copy with the first images only, to read, to write and to spoil."""
        keep = {f"{id:07d}.jpg" for id in range(SMALL_IDS)}
        for path in self.output_path.rglob("*.jpg"):
            target = folder / path.relative_to(self.output_path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name in keep:
                shutil.copy(path, target)
        for cell in (folder / "Results" / exp / cell / "CF" for exp in EXPERIMENTS for cell in CELLS):
            cell.mkdir(parents=True, exist_ok=True)
        return folder


def make_metric_world(root: Path, world: World) -> MetricWorld:
    """Unpack the tree and write the weights; VGG16 goes where torchvision's weights are looked for."""
    with tarfile.open(GOLDEN / "metrics_tree.tar.xz") as archive:
        archive.extractall(root / "tree", filter="data")
    made = MetricWorld(root, world.data, world.classifier)
    heads = golden("heads")
    head = {name: torch.from_numpy(heads[f"oracle_{name}"]) for name in ("weight", "bias")}
    torch.save({"feat_extract": filled(KEYS["oracle"]["feat_extract"]), "classifier": head}, made.oracle)
    faces = {k: v.numpy() for k, v in filled(KEYS["vggface2_resnet50"]).items() if not k.startswith("fc.")}
    made.faces.write_bytes(pickle.dumps(faces))
    with torch.device("meta"):
        convolutions = vgg16(weights=None, init_weights=False).features.state_dict()
    names = {f"features.{name}": value.shape for name, value in convolutions.items()}
    torch.save(filled(names), world.root / "hub" / "checkpoints" / "vgg16-397923af.pth")
    torch.save(inception_weights(), made.inception)
    return made


def inception_weights() -> dict[str, torch.Tensor]:
    """Deterministic weights under the names of pytorch-fid's file; √2 undoes what each ReLU takes away."""
    with torch.device("meta"):
        network = InceptionFeatures().network
    weights = {
        name: filled_tensor(name, value.shape) * (2**0.5 if name.endswith("conv.weight") else 1)
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    return weights | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def run_script(script: ModuleType, *arguments: object) -> Run:
    """A script's command line, in this process."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [str(script.__file__), *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run(script.main)
    except SystemExit as exit:
        return Run(exit.code, out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
