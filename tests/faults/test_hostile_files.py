"""Hostile files at every entry point: nothing in them runs, one line names them, and nothing takes long."""

from __future__ import annotations

import importlib
import pickle
import shutil
from pathlib import Path

import pytest

from core.summary import write_stats
from tests.faults.hostile import WEIGHTS, YAML
from tests.metric_world import MetricWorld, run_script
from tests.training.scripts import SMALL_UNET
from tests.training.scripts import run_script as run_training
from tests.worlds import SMALL_FLAGS, VGG19_FILE, World, run_main


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


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("name", ["config.yaml", "summary.yaml"])
def test_report(metric_world: MetricWorld, tmp_path, marker, kind, name):
    tree = metric_world.small_tree(tmp_path / "tree")
    path = tree / "Results/expA" / name
    path.write_bytes(YAML[kind](marker))
    run_script(importlib.import_module("make-report"), tree, "expA", "--file", tmp_path / "page.html")
    assert not marker.exists(), "its code has run"
