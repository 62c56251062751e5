"""Result trees and weights for metrics and report: golden ones, flat grey images, and small ones of known figures."""

import pickle
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import vgg16

from dime.core.images import difference_map
from dime.core.results import CELLS, ResultTree
from dime.core.summary import ImageRecord, summarise, write_summary
from dime.models.perceptual import InceptionFeatures
from tests.helpers import GOLDEN, KEYS, filled, filled_tensor, golden
from tests.worlds import World

EXPERIMENTS = ("expA", "expB", "expC")
SMALL_IDS = 12
"""The images of the small tree."""


class MetricWorld:
    def __init__(self, root: Path, world: World) -> None:
        self.celeba, self.classifier = world.data, world.classifier
        self.output_path = root / "tree"
        """80 inputs of 64x64, three experiments; to be read only."""
        self.oracle = root / "oracle.pth"
        self.faces = root / "resnet50_ft_weight.pkl"  # VGGFace2, under the name it is downloaded as
        self.inception = root / "inception.pth"
        """With weights that keep its features near one."""

    def tree(self, exp_name: str) -> ResultTree:
        return ResultTree(self.output_path, exp_name)

    def small_tree(self, folder: Path) -> Path:
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
    made = MetricWorld(root, world)
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


Greys = list[tuple[str, int, int]]
"""Folder, grey of the input and of the counterfactual, of each image."""
BOTH_WAYS: Greys = [
    ("CC/CCF", 20 + 9 * i, 220 - 7 * i) if i % 2 else ("CC/CCF", 220 - 9 * i, 20 + 7 * i) for i in range(12)
]
"""Dark images become bright and bright ones dark: everything has a value."""
POISON = 255
"""The grey for which the networks say NaN."""


def make_tree(folder: Path, images: Greys, config: str = "", seeds: bool = False) -> list[ResultTree]:
    """Two experiments, with the same counterfactuals or, as those of two seeds, others."""
    for exp in ("a", "b"):
        for id, (place, grey, cf_grey) in enumerate(images):
            cf_grey -= 3 * id * (seeds and exp == "b")
            original = "Original/Correct" if place.startswith("CC") else "Original/Incorrect"
            for path, level in ((original, grey), (f"Results/{exp}/{place}/CF", cf_grey)):
                (folder / path).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (level,) * 3).save(folder / path / f"{id:07d}.png")
            info = folder / f"Results/{exp}/{place}/Info"
            info.mkdir(exist_ok=True)
            (info / f"{id:07d}.txt").write_text("label: 0\npred: 0\ntarget: 1")
        (folder / "Results" / exp / "config.yaml").write_text(config)
    return [ResultTree(folder, exp) for exp in ("a", "b")]


def grey_of(x: torch.Tensor) -> torch.Tensor:
    """The grey (N, 1), 0 to 255, of flat images; NaN for the poisoned one."""
    grey = (x.mean(dim=(1, 2, 3))[:, None] + 1) * 127.5
    return torch.where(grey > POISON - 0.5, torch.nan, grey)


def face(x: torch.Tensor) -> torch.Tensor:
    """Stands for VGGFace2, which sees blue as 0 … 255 less 91.4953."""
    blue = x[:, :1].mean(dim=(2, 3)) + 91.4953
    angle = torch.where(blue > POISON - 0.5, torch.nan, blue) / 100
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Forty(torch.nn.Module):
    """Logits (N, 40): positive for images brighter than 128; attribute 0 is always there, attribute 1 never."""

    num_outputs, names = 40, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = (grey_of(x) - 128).expand(-1, 40) / (20 + torch.arange(40))
        return torch.cat([0 * logits[:, :1] + 1, 0 * logits[:, :1] - 1, logits[:, 2:]], dim=1)


class Squares:
    """Stands for LPIPS."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return grey_of(x)

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square()[:, 0]


def stand_ins(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, object]:
    """What every loader of networks and labels gives from now on; a test may put others in their place."""
    used = {
        "faces.load_vggface2": face,
        "mnac.load_oracle": lambda x: (grey_of(x), Forty()(x)),
        "fid.load_inception": lambda x: torch.cat([grey_of(x), grey_of(x).square()], dim=1),
        "metric.load_classifier": Forty(),
    }
    (folder / "models").mkdir()
    for name in ("oracle.pth", "resnet50_vggface2_model.pkl"):  # what features are kept under the name of
        (folder / "models" / name).touch()
    monkeypatch.chdir(folder)
    for name in used:
        monkeypatch.setattr(f"dime.core.metrics.{name}", lambda *_, name=name, **__: used[name])
    monkeypatch.setattr("dime.core.metrics.sigma_l.load_lpips", lambda device: Squares())
    used["labels"] = np.random.default_rng(0).integers(0, 2, (50, 40))
    monkeypatch.setattr("dime.core.metrics.cd.train_labels", lambda path: used["labels"])
    return used


SIZE = 32
STEPS = 5


def record(id: int) -> ImageRecord:
    """Deterministic figures: ids 3, 7, … missed their target, every fifth input is misclassified."""
    pred, flipped = id % 2, id % 4 != 3
    before, after = (0.9, 0.25) if pred else (0.125, 0.75)
    target, after = 1 - pred, after if flipped else before
    figures = {"bkl": 1 - after if target else after, "l_1": ((id * 7) % 10 + 1) / 100}
    figures |= {"orig_conf": before, "cf_conf": after, "scale": (8.0, 10.0, 15.0)[id % 3]}
    label, cf_pred = (pred if id % 5 != 4 else target), (target if flipped else pred)
    return ImageRecord(id, label, pred, target, cf_pred, **figures)


def picture(id: int, kind: int = 0) -> Image.Image:
    values = np.random.default_rng((id, kind)).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(values)


def make_experiment(root: Path, name: str, ids: Sequence[int], with_frames: Sequence[int] = ()) -> ResultTree:
    tree = ResultTree(root, name)
    tree.create()
    for id in ids:
        made = record(id)
        x, cf = picture(id), picture(id, 1)
        x.save(tree.original(id, made.correct))
        cf.save(tree.image("CF", id, made.correct, made.flipped))
        difference = difference_map(np.asarray(x), np.asarray(cf))
        Image.fromarray(difference).save(tree.image("SM", id, made.correct, made.flipped))
        tree.info(id, made.correct, made.flipped).write_text(made.text())
    for id in with_frames:
        for kind in ("x_t", "z_t"):
            tree.frame_folder(kind, id).mkdir(parents=True)
            for step in range(STEPS):
                picture(id, 10 + step).save(tree.frame(kind, id, step))
    write_summary(tree.report("summary.yaml"), summarise([record(id) for id in ids]))
    tree.report("config.yaml").write_text("query_label: 31\n")
    return tree
