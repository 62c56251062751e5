"""A small complete world for the main job: drawn images like CelebA, the weights behind the golden figures, runs."""

import contextlib
import csv
import importlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
import yaml
from torch import nn

from dime.core.cli import run
from dime.core.job import setup
from dime.core.networks import files
from guided_diffusion import dist_util, logger
from tests.helpers import BASE, GOLDEN, KEYS, filled, golden

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "main.py"
PERCEPTUAL_LAYERS = 18
VGG19_FILE = "vgg19-dcbb9e9d.pth"
"""What torchvision calls it."""

GOLDEN_FLAGS = {
    **BASE,
    **{"batch_size": 4, "query_label": 31, "start_step": 6, "dataset": "CelebA", "exp_name": "demo", "gpu": "cpu"},
    **{"classifier_scales": "8,10,15", "seed": 4, "l1_loss": 0.05, "use_logits": True, "l_perc": 30},
    **{"l_perc_layer": PERCEPTUAL_LAYERS, "save_x_t": True, "save_z_t": True, "use_sampling_on_x_t": True},
}
"""The run behind tests/golden/e2e_tree.tar.gz, but for its noise."""

SMALL_FLAGS = {
    **BASE,
    "image_size": 32,  # attention at 8 of 32 stands where the weights have it: at 16 of 64
    **{"attention_resolutions": "8", "timestep_respacing": "10", "start_step": 3, "query_label": 31},
    **{"batch_size": 4, "classifier_scales": "8", "use_logits": True, "exp_name": "exp", "gpu": "cpu"},
}
"""A run with every part of the method in it, as short as possible."""


class Run(NamedTuple):
    code: int
    out: str
    err: str


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        """60 drawn images, annotations as csv: 30 train, 15 val, 15 test."""
        self.classifier = root / "classifier.pth"
        """With the head of the golden figures."""

    def unet(self, variant: str = "base") -> Path:
        """A U-Net of state_dict_keys.json, for example labels_multi."""
        path = self.root / f"unet_{variant}.pt"
        if not path.exists():
            torch.save(filled(KEYS[f"unet_{variant}"]), path)
        return path

    def labels(self, partition: int) -> list[list[bool]]:
        """Of a partition's images, read without the project."""
        with (self.data / "list_eval_partition.csv").open() as file:
            names = {row["image_id"] for row in csv.DictReader(file) if row["partition"] == str(partition)}
        with (self.data / "list_attr_celeba.csv").open() as file:
            return [[value == "1" for value in row[1:]] for row in csv.reader(file) if row[0] in names]

    def explain(self, output_path: Path, **flags: Any) -> Run:
        return succeeded(run_main(*self.command(output_path, SMALL_FLAGS | flags)))

    def command(self, output_path: Path, flags: Mapping[str, Any]) -> list[str]:
        """The command line of a run on this world; flags may give other places for its parts."""
        places = {"output_path": output_path, "data_dir": self.data, "oracle_path": self.root / "no-oracle.pth"}
        places |= {"model_path": self.unet(), "classifier_path": self.classifier}
        return as_arguments(places | dict(flags))


def as_arguments(flags: Mapping[str, Any]) -> list[str]:
    """{'seed': 4} -> ['--seed', '4']"""
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def unpack_celeba(folder: Path) -> Path:
    with tarfile.open(GOLDEN / "celeba_tiny.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def make_world(root: Path) -> World:
    unpack_celeba(root / "data")
    heads = golden("heads")
    head = {name: torch.from_numpy(heads[f"classifier_{name}"]) for name in ("weight", "bias")}
    trunk = filled(KEYS["classifier"]["feat_extract"])
    torch.save({"feat_extract": trunk, "classifier": head}, root / "classifier.pth")
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None, init_weights=False).features[:PERCEPTUAL_LAYERS]
    shapes = {f"features.{name}": value.shape for name, value in features.state_dict().items()}
    hub = root / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(filled(shapes), hub / VGG19_FILE)
    return World(root)


@contextlib.contextmanager
def torchvision_weights_of(world: World) -> Iterator[None]:
    """Within it, torchvision's weights are the world's, whatever lies in models/ or in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(world.root))
        patch.setattr(files, "WEIGHTS_FOLDER", world.root / "no-models")
        yield


def run_script(name: str, *arguments: object, **flags: object) -> Run:
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"{name}.py", *map(str, arguments), *as_arguments(flags)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run(importlib.import_module(name).main)
    except SystemExit as exit:
        code = exit.code
    finally:
        sys.argv = argv
        dist_util.close()
        logger.reset()
    return Run(code, out.getvalue(), err.getvalue())


def run_main(*arguments: object) -> Run:
    return run_script("main", *arguments)


def succeeded(run: Run) -> Run:
    assert run.code == 0, run.err
    return run


def refusal(run: Run) -> str:
    """The one line on stderr of a command that cannot be carried out."""
    assert run.code == 2, (run.code, run.out, run.err)
    assert run.err.endswith("\n") and run.err.count("\n") == 1 and "\r" not in run.err, run.err
    return run.err


def watched(patch: pytest.MonkeyPatch, loader: str, install: Callable[[nn.Module], object]) -> None:
    """Let main.py's loader (load_diffusion, load_classifier) pass its network to `install` first."""
    load = getattr(setup, loader)

    def load_and_install(*args: Any, **options: Any) -> Any:
        loaded = load(*args, **options)
        install(getattr(loaded, "network", loaded))
        return loaded

    patch.setattr(setup, loader, load_and_install)


def run_command(command: Sequence[str], **options: Any) -> Run:
    """A command in a process of its own, as users start it; importing torch takes seconds."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    return Run(done.returncode, done.stdout, done.stderr)


def refused(world: World, output_path: Path, **flags: Any) -> str:
    """The one line on stderr of a command that must be refused before it writes anything."""
    before = tree_of(output_path) if output_path.is_dir() else None
    line = refusal(run_main(*world.command(output_path, SMALL_FLAGS | {"num_batches": 1} | flags)))
    if before is None:
        assert not output_path.exists() or output_path.is_file()
    else:
        assert tree_of(output_path) == before
    return line


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def comparable(out: Path) -> dict[str, bytes]:
    """Every file of a run; the configuration names the output folder, which is taken out."""
    return {
        name: content.replace(str(out).encode(), b"OUT") if name.endswith("config.yaml") else content
        for name, content in tree_of(out).items()
    }


def summary_of(out: Path, name: str = "summary.yaml") -> dict[str, Any]:
    return yaml.safe_load((out / "Results/exp" / name).read_text())


def images(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree_of(out).items() if name.endswith((".jpg", ".png", ".txt"))}
