"""Hostile files at every entry point: nothing in them runs, one line names them, and nothing takes long."""

from __future__ import annotations

import importlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dime.core.summary import write_stats
from tests.faults.hostile import JSON, WEIGHTS, YAML
from tests.faults.images import BAD
from tests.metric_world import MetricWorld, run_script
from tests.training.scripts import SMALL_UNET
from tests.training.scripts import run_script as run_training
from tests.worlds import SMALL_FLAGS, VGG19_FILE, Run, World, run_main


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


# torch reads a TorchScript archive's header to refuse it, and warns
pytestmark = pytest.mark.filterwarnings("ignore:.*(torch.jit|TorchScript|pickle protocol)")


@pytest.fixture(params=WEIGHTS)
def hostile(request: pytest.FixtureRequest, tmp_path: Path, marker: Path) -> Path:
    path = tmp_path / request.param
    path.write_bytes(WEIGHTS[request.param](marker))
    return path


def assert_refused(run, path: Path, marker: Path) -> None:
    assert not marker.exists(), "its code has run"
    assert run.code == 2, (run.code, run.out, run.err)
    assert run.err.count("\n") == 1 and path.name in run.err and "Traceback" not in run.err, run.err


def test_the_payloads_do_work(tmp_path):
    """Loaded carelessly they make their folder: else these tests could not fail."""
    for name in ("pickle0.pt", "pickle2.pth", "pickle5.pkl", "eval.pkl"):
        marker = tmp_path / name
        pickle.loads(WEIGHTS[name](marker))
        assert marker.exists()


@pytest.mark.parametrize("flag", ["model_path", "classifier_path"])
def test_main(world, tmp_path, hostile, marker, flag):
    run = run_main(*world.command(tmp_path / "out", SMALL_FLAGS | {flag: hostile}))
    assert_refused(run, hostile, marker)
    assert not (tmp_path / "out").exists()


def test_perceptual_network(world, tmp_path, hostile, marker, monkeypatch):
    cache = tmp_path / "hub/checkpoints"
    cache.mkdir(parents=True)
    shutil.copy(hostile, cache / VGG19_FILE)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    run = run_main(*world.command(tmp_path / "out", SMALL_FLAGS | {"l_perc": 30, "l_perc_layer": 4}))
    assert_refused(run, cache / VGG19_FILE, marker)


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        ("compute_MNAC", "--oracle-path"),
        ("compute_FVA", "--weights-path"),
        ("compute_COUT", "--classifier-path"),
        ("compute_FID", "--inception-path"),
    ],
)
def test_metrics(metric_world: MetricWorld, hostile, marker, script, flag):
    more = ["--query-label", 31] if script == "compute_COUT" else []
    command = ["--gpu", "cpu", "--output-path", metric_world.output_path, "--exp-name", "expA", *more, flag, hostile]
    assert_refused(run_script(importlib.import_module(script), *command), hostile, marker)


TRAINING = {
    "celeba-train-diffusion.py": "resume_checkpoint",
    "sample-diffusion.py": "model_path",
    "image-nll.py": "model_path",
}


@pytest.mark.parametrize("script", TRAINING)
def test_training(world: World, tmp_path, hostile, marker, capsys, script):
    if script == "celeba-train-diffusion.py":  # its files have this name
        hostile = hostile.rename(hostile.with_name("model000001.pt"))
    flags = {**SMALL_UNET, "output_path": tmp_path / "out", TRAINING[script]: hostile}
    if script != "sample-diffusion.py":
        flags["data_dir"] = world.data
    code = run_training(script, **flags)
    said = capsys.readouterr().err
    assert not marker.exists(), "its code has run"
    assert code not in (0, None), said
    assert "Traceback" not in said and hostile.name in said


CLASSIFIER = {"arch": "small", "image_size": 16, "batch_size": 10, "max_steps": 1, "num_workers": 0}


@pytest.mark.parametrize("place", ["--weights-path", "training.pt"])
def test_classifier_training(world: World, tmp_path, hostile, marker, capsys, monkeypatch, place):
    """The face network that an oracle starts from, and what a training is resumed from."""
    flags = {**CLASSIFIER, "data_dir": world.data, "output_path": tmp_path / "out"}
    if place == "training.pt":
        (tmp_path / "out").mkdir()
        hostile = Path(shutil.copy(hostile, tmp_path / "out/training.pt"))
    else:
        flags |= {"arch": "oracle", "weights-path": hostile}
    code = run_training("celeba-train-classifier.py", **flags)
    said = capsys.readouterr()
    assert_refused(Run(code, said.out, said.err), hostile, marker)


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a classifier was trained for one update."""
    out = tmp_path_factory.mktemp("classifier")
    assert run_training("celeba-train-classifier.py", **CLASSIFIER, data_dir=world.data, output_path=out) == 0
    return out


def _set(*keys: str | int, value: object) -> Callable[[dict], object]:
    """Replaces what lies under these keys."""

    def change(content: dict) -> dict:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return content

    return change


SPOILT = {
    "a list": lambda content: [content],
    "nothing": lambda content: {},
    "no network": _set("network", value=[]),
    "words for weights": lambda content: {**content, "network": dict.fromkeys(content["network"], "weights")},
    "NaN weights": lambda content: {
        **content,
        "network": {name: weight * float("nan") for name, weight in content["network"].items()},
    },
    "other attributes": _set("attributes", value={"Smiling": 1}),
    "no optimizer": _set("optimizer", value=None),
    "other moments": _set("optimizer", "state", 0, "exp_avg", value=torch.zeros(2, 2)),
    "an optimizer of less": _set("optimizer", "param_groups", value=[]),
    "words for updates": _set("updates", value="many"),
    "no processes": _set("ranks", value=1),
    "other random numbers": _set("ranks", 0, "random", "torch", value=torch.zeros(3)),
    "another position": _set("ranks", 0, "data", value=[]),
}
"""What a training.pt of plain values could hold instead."""


@pytest.mark.parametrize("kind", SPOILT)
def test_a_classifier_training_of_other_content(world: World, trained, tmp_path, capsys, kind):
    path = tmp_path / "training.pt"
    torch.save(SPOILT[kind](torch.load(trained / path.name, weights_only=True)), path)
    before = path.read_bytes()
    flags = CLASSIFIER | {"max_steps": 2, "data_dir": world.data, "output_path": tmp_path}
    assert run_training("celeba-train-classifier.py", **flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said, said
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("name", ["config.yaml", "chunk-1_num-chunks-2_config.yaml"])
def test_configurations(world, tmp_path, marker, kind, name):
    path = tmp_path / "out/Results/exp" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(YAML[kind](marker))
    assert_refused(run_main(*world.command(tmp_path / "out", SMALL_FLAGS)), path, marker)


@pytest.mark.parametrize("kind", YAML)
def test_summaries(world, tmp_path, marker, kind):
    path = tmp_path / "out/Results/exp/chunk-1_num-chunks-2_summary.yaml"
    path.parent.mkdir(parents=True)
    path.with_name(path.name.replace("chunk-1", "chunk-0")).write_text("n: 1\n")
    path.write_bytes(YAML[kind](marker))
    flags = SMALL_FLAGS | {"merge_and_eval": True, "num_chunks": 2}
    assert_refused(run_main(*world.command(tmp_path / "out", flags)), path, marker)


@pytest.fixture(scope="module")
def begun(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose run saves no images and draws a stream of noise: both its files are read on resuming."""
    out = tmp_path_factory.mktemp("begun") / "out"
    world.explain(out, save_images=False, noise="stream", num_batches=1)
    return out


@pytest.mark.parametrize("name", ["stats.pth", "noise.pth"])
def test_what_a_run_is_resumed_from(world, begun, tmp_path, hostile, marker, name):
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    path = out / "Results/exp" / name
    write_stats(out / "Results/exp/stats.pth", [])
    shutil.copy(hostile, path)
    flags = SMALL_FLAGS | {"save_images": False, "noise": "stream", "num_batches": 1}
    run = run_main(*world.command(out, flags))
    assert not marker.exists(), "its code has run"
    assert run.code == 2 and path.name in run.err.splitlines()[-1] and "Traceback" not in run.err, run.err


# The report


@pytest.fixture
def tree(metric_world: MetricWorld, tmp_path) -> Path:
    return metric_world.small_tree(tmp_path / "tree")


def report(tree: Path, *more: object) -> Run:
    page = tree / "page.html"
    run = run_script(importlib.import_module("make-report"), tree, "expA", "--file", page, *more)
    assert page.exists() == (run.code == 0)
    return run


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("name", ["config.yaml", "summary.yaml"])
def test_report_tables(tree, marker, kind, name):
    path = tree / "Results/expA" / name
    path.write_bytes(YAML[kind](marker))
    assert_refused(report(tree), path, marker)


@pytest.mark.parametrize("kind", JSON)
def test_report_evaluations(tree, marker, kind):
    path = tree / "Results/expA/evaluation.json"
    path.write_bytes(JSON[kind])
    assert_refused(report(tree), path, marker)


def test_report_oracle(tree, marker, hostile):
    assert_refused(report(tree, "--oracle-path", hostile, "--gpu", "cpu"), hostile, marker)


@pytest.mark.parametrize("content", [b"label: \xff\xfe", b"BKL: __import__('os')", b"l_1: " + b"9" * 10**6 + b"x"])
def test_report_texts(tree, marker, content):
    path = beside(first(tree), "Info").with_suffix(".txt")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert_refused(report(tree), path, marker)


@pytest.mark.parametrize("kind", ["truncated", "empty", "not an image", "bomb"])
@pytest.mark.parametrize("folder", ["CF", "SM", "Original", "x_t"])
def test_report_images(tree, marker, kind, folder):
    good = first(tree)
    path = {
        "Original": next((tree / "Original").rglob(good.name)),
        "x_t": tree / f"x_t/expA/{int(good.stem):06d}/0000.jpg",
    }.get(folder, beside(good, folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(good.read_bytes())
    BAD[kind](path)
    assert_refused(report(tree), path, marker)


def first(tree: Path) -> Path:
    """The counterfactual with the lowest id."""
    return min((tree / "Results/expA").rglob("CF/*.jpg"), key=lambda path: path.name)


def beside(counterfactual: Path, folder: str) -> Path:
    """What belongs to it in another folder."""
    return counterfactual.parent.with_name(folder) / counterfactual.name
