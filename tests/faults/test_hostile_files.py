"""Hostile files: nothing in them runs, one line of their reader's names them, and nothing takes long."""

import ast
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from dime.core.networks.files import read_checkpoint, read_numpy_pickle
from tests.faults.hostile import JSON, WEIGHTS, YAML
from tests.helpers import input_error
from tests.metric_world import MetricWorld
from tests.training.small import SMALL_UNET
from tests.worlds import ROOT, SMALL_FLAGS, VGG19_FILE, Run, World, refusal, run_main, run_script, succeeded

# torch reads a TorchScript archive's header to refuse it, and warns
pytestmark = pytest.mark.filterwarnings("ignore:.*(torch.jit|TorchScript|pickle protocol)")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def hostile(tmp_path: Path, marker: Path) -> Path:
    """A payload among the good tensors of a good checkpoint."""
    path = tmp_path / "dressed-up.pt"
    path.write_bytes(WEIGHTS[path.name](marker))
    return path


def assert_refused(run: Run, path: Path, marker: Path) -> None:
    """By who has opened the file: argparse's own refusals begin with the flag."""
    assert not marker.exists(), "its code has run"
    assert run.code == 2, (run.code, run.out, run.err)
    last = run.err.splitlines()[-1]
    assert f"error: {path}: " in last and "no such file" not in last, run.err
    assert "Traceback" not in run.err


def test_the_payloads_do_work(tmp_path):
    """Loaded carelessly they make their folder: else these tests could not fail."""
    for name in ("pickle0.pt", "pickle5.pkl", "eval.pkl"):
        marker = tmp_path / name
        pickle.loads(WEIGHTS[name](marker))
        assert marker.exists()
    (tmp_path / "dressed-up.pt").write_bytes(WEIGHTS["dressed-up.pt"](tmp_path / "in-zip"))
    torch.load(tmp_path / "dressed-up.pt", weights_only=False)
    assert (tmp_path / "in-zip").exists()


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_file_of_weights(tmp_path, marker, name):
    path = tmp_path / name
    path.write_bytes(WEIGHTS[name](marker))
    for read in (read_checkpoint, read_numpy_pickle):
        assert input_error(read, path).startswith(str(path))
        assert not marker.exists(), "its code has run"


@pytest.mark.parametrize("flag", ["model_path", "classifier_path", "perceptual_path", None])
def test_networks_of_the_main_job(world: World, tmp_path, hostile, marker, monkeypatch, flag):
    flags = SMALL_FLAGS | {"l_perc": 30, "l_perc_layer": 4}
    if flag is None:  # what lies in the cache of downloads
        (tmp_path / "hub/checkpoints").mkdir(parents=True)
        hostile = hostile.rename(tmp_path / "hub/checkpoints" / VGG19_FILE)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    else:
        flags[flag] = hostile
    assert_refused(run_main(*world.command(tmp_path / "out", flags)), hostile, marker)
    assert not (tmp_path / "out").exists()


METRICS = {
    "compute_MNAC": "--oracle-path",
    "compute_FVA": "--weights-path",
    "compute_COUT": "--classifier-path",
    "compute_FID": "--inception-weights",
    "make-report": "--oracle-path",
}


@pytest.mark.parametrize("script", METRICS)
def test_metrics_and_report(metric_world: MetricWorld, hostile, marker, script):
    tree = metric_world.output_path
    where = [tree, "expA"] if script == "make-report" else ["--output-path", tree, "--exp-name", "expA"]
    more = ["--query-label", 31] if script == "compute_COUT" else []
    arguments = [*where, "--gpu", "cpu", *more, METRICS[script], hostile]
    assert_refused(run_script(script, *arguments), hostile, marker)


CLASSIFIER = {"arch": "small", "image_size": 16, "batch_size": 10, "max_steps": 1, "num_workers": 0}
TRAINING = {
    ("celeba-train-diffusion", "resume_checkpoint"): SMALL_UNET,
    ("sample-diffusion", "model_path"): SMALL_UNET,
    ("image-nll", "model_path"): SMALL_UNET,
    ("celeba-train-classifier", "weights-path"): CLASSIFIER | {"arch": "oracle"},
    ("celeba-train-classifier", None): CLASSIFIER,  # what a training is resumed from
}


@pytest.mark.parametrize(("script", "flag"), TRAINING)
def test_training(world: World, tmp_path, hostile, marker, script, flag):
    flags = {**TRAINING[script, flag], "output_path": tmp_path / "out"}
    if script != "sample-diffusion":
        flags["data_dir"] = world.data
    if flag is None:
        (tmp_path / "out").mkdir()
        hostile = Path(shutil.copy(hostile, tmp_path / "out/training.pt"))
    else:
        hostile = hostile.rename(hostile.with_name("model000001.pt"))  # as those of a training are called
        flags[flag] = hostile
    assert_refused(run_script(script, **flags), hostile, marker)


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier")
    succeeded(run_script("celeba-train-classifier", **CLASSIFIER, data_dir=world.data, output_path=out))
    return out


SPOILT = {
    "a list": lambda content: [content],
    "nothing": lambda content: {},
    "no network": lambda content: content | {"network": []},
    "NaN weights": lambda content: content | {"network": {k: v * torch.nan for k, v in content["network"].items()}},
    "other attributes": lambda content: content | {"attributes": {"Smiling": 1}},
    "no optimizer": lambda content: content | {"optimizer": None},
    "other moments": lambda content: content["optimizer"]["state"][0].update(exp_avg=torch.zeros(2, 2)) or content,
    "words for updates": lambda content: content | {"updates": "many"},
    "no processes": lambda content: content | {"ranks": 1},
    "other random numbers": lambda content: content["ranks"][0]["random"].update(torch=torch.zeros(3)) or content,
    "another position": lambda content: content["ranks"][0].update(data=[]) or content,
}
"""What a training.pt of plain values could hold instead."""


@pytest.mark.parametrize("kind", SPOILT)
def test_a_classifier_training_of_other_content(world: World, trained, tmp_path, kind):
    path = tmp_path / "training.pt"
    torch.save(SPOILT[kind](torch.load(trained / path.name, weights_only=True)), path)
    before = path.read_bytes()
    flags = CLASSIFIER | {"max_steps": 2, "data_dir": world.data, "output_path": tmp_path}
    assert f"error: {path}: " in refusal(run_script("celeba-train-classifier", **flags))
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", YAML)
def test_every_configuration(world: World, tmp_path, marker, kind):
    chunk, merging = "chunk-1_num-chunks-2_", {"merge_and_eval": True, "num_chunks": 2}
    for name, flags in {"config.yaml": {}, f"{chunk}config.yaml": {}, f"{chunk}summary.yaml": merging}.items():
        path = tmp_path / name / "Results/exp" / name
        path.parent.mkdir(parents=True)
        path.with_name("chunk-0_num-chunks-2_summary.yaml").write_text("n: 1\n")
        path.write_bytes(YAML[kind](marker))
        assert path.name in refusal(run_main(*world.command(tmp_path / name, SMALL_FLAGS | flags)))
        assert not marker.exists()


def test_statistics_that_a_run_is_resumed_from(world: World, tmp_path, hostile, marker):
    out, flags = tmp_path / "out", {"save_images": False, "num_batches": 1}
    world.explain(out, **flags)
    path = Path(shutil.copy(hostile, out / "Results/exp/stats.pth"))
    assert_refused(run_main(*world.command(out, SMALL_FLAGS | flags)), path, marker)


@pytest.mark.parametrize("kind", JSON)
def test_every_evaluation(metric_world: MetricWorld, tmp_path, marker, kind):
    tree = metric_world.small_tree(tmp_path / "tree")
    path = tree / "Results/expA/evaluation.json"
    path.write_bytes(JSON[kind])
    page = tmp_path / "page.html"
    assert_refused(run_script("make-report", tree, "expA", "--file", page), path, marker)
    assert not page.exists()


PROGRAMS = r"\b(torch\.jit\.load|torch\.export\.load)\b"
CARELESS = re.compile(
    r"\b(th|torch)\.load\((?!.*weights_only=True)|allow_pickle=(?!False)|(?<![\w.])(eval|exec)\(|\bpd\.read_pickle\b"
    r"|\bpickle\.(loads?\b|Unpickler\b(?!\):))|\bfrom _?(pickle|dill|joblib|shelve) import|\bimport (pickle|yaml) as"
    r"|\byaml\.(unsafe_|full_)?load(_all)?\b|" + PROGRAMS
)
"""What runs code that a file holds. A class that inherits Unpickler must choose: see choosing."""
TRUSTED = ROOT / "core" / "networks" / "classifiers.py"
"""Where programs are loaded, once their user has said that he trusts them."""


def offences(source: str, programs: bool = False) -> list[str]:
    """The lines that would run code that a file holds; programs: what loads those may stand there."""
    text = ast.unparse(ast.parse(source))
    careless = [line for line in text.splitlines() if CARELESS.search(line)]
    choosing = text.count("(pickle.Unpickler):") == text.count("def find_class(")
    return [line for line in careless if not (programs and re.search(PROGRAMS, line))] + ["Unpickler"] * (not choosing)


def test_nothing_is_loaded_carelessly():
    found, places = {}, set()
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in ("tests", "build") and not any(p[0] == "." or p == "site-packages" for p in parts):
            places.add(parts[0])
            found[str(path)] = offences(path.read_text(), programs=path == TRUSTED)
    assert {"main.py", "dime", "core", "models", "guided_diffusion", "tools", "slurm", "bench"} <= places
    assert not {path: offending for path, offending in found.items() if offending}


@pytest.mark.parametrize(
    "source",
    [
        *("torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=safe)", "th.load(\n p)"),
        *("pickle.load(f)", "pickle.loads(b)", "pickle.Unpickler(f).load()", "from pickle import load"),
        *("import pickle as p", "yaml.load(t, Loader=yaml.Loader)", "yaml.unsafe_load(t)", "run(torch.jit.load)"),
        *("np.load(p, allow_pickle=True)", "eval(text)", "class U(pickle.Unpickler):\n    pass"),
    ],
)
def test_the_test_sees_it(source):
    assert offences(source)
    # one that chooses is allowed
    assert offences("class U(pickle.Unpickler):\n    def find_class(self, m, n): ...") == []
