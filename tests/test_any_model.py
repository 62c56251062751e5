"""Every door at once: a classifier, images and a diffusion model that this project has never seen."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.core.networks.test_diffusers import write as write_diffusers
from tests.worlds import Run, as_arguments, refusal, run_main, run_script, succeeded, tree_of

NAMES = [f"class {letter}" for letter in "abcdefghij"]
FACTORY = '''
import torch
from torch import nn

class Net(nn.Module):
    """Ten classes of images of 24x24 in [0, 1], by the brightness of ten strips; another size is an error."""
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))
    def forward(self, x):
        assert x.shape[2:] == (24, 24) and 0 <= x.min() and x.max() <= 1.01, "not what this network was trained on"
        strips = torch.stack([strip.mean((1, 2, 3)) for strip in x.tensor_split(10, dim=3)], dim=1)
        return self.gain * strips

def build():
    return Net()
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes in nested folders with odd names, a classifier's code, a folder of diffusers."""
    root = tmp_path_factory.mktemp("anybody")
    for number, name in enumerate(("a, b/x y.png", "a, b/deep/é.jpg", "c/1.png", "c/2;3.png", "j/last'.png")):
        path = root / "images" / f"class {name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 31, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "images/class a, b").rename(root / "images/class b")
    (root / "net.py").write_text(FACTORY)
    (root / "names.txt").write_text("\n".join(NAMES))
    write_diffusers(root / "diffusion")
    return root


def flags(place: Path, out: Path, **more: Any) -> list[str]:
    known = {
        **{"dataset": "folder", "data_dir": place / "images", "model_path": place / "diffusion"},
        **{"classifier_path": f"python:{place / 'net.py'}:build", "classifier_size": 24, "classifier_range": "0,1"},
        **{"class_names": place / "names.txt", "decision": "multiclass", "timestep_respacing": "10", "start_step": 3},
        **{"preset": "fast", "use_logits": True, "classifier_scales": "5,200", "batch_size": 2, "gpu": "cpu"},
        **{"output_path": out, "exp_name": "exp", "image_format": "png"},
    }
    return as_arguments(known | more)


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    out = tmp_path_factory.mktemp("done")
    return out, succeeded(run_main(*flags(place, out)))


def test_the_tree_speaks_of_classes_and_the_same_command_changes_nothing(done, place):
    out, run = done
    results = out / "Results/exp"
    summary, config = (yaml.safe_load((results / name).read_text()) for name in ("summary.yaml", "config.yaml"))
    assert summary["n"] == 5 and set(summary["classes"]) == {"class b", "class c", "class j"}
    assert [summary["classes"][name]["n"] for name in ("class b", "class c", "class j")] == [2, 2, 1]
    assert config["classes"] == NAMES and config["decision"] == "multiclass"
    infos = {int(path.stem): path.read_text().splitlines() for path in results.rglob("Info/*.txt")}
    assert [infos[id][0] for id in range(5)] == ["label: 1", "label: 1", "label: 2", "label: 2", "label: 9"]
    assert all(lines[1].split()[1] != lines[2].split()[1] for lines in infos.values())  # prediction, target
    with (results / "index.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "file"] and ["1", "class b/deep/é.jpg"] not in rows[:2]
    assert {row[1] for row in rows[1:]} == {
        *("class b/x y.png", "class b/deep/é.jpg", "class c/1.png", "class c/2;3.png", "class j/last'.png")
    }
    assert "runs your own code" in run.out
    before = tree_of(done[0])
    succeeded(run_main(*flags(place, done[0])))
    assert tree_of(done[0]) == before


def test_named_targets_are_an_experiment_each(place, tmp_path):
    succeeded(run_main(*flags(place, tmp_path, target="class a,9", num_batches=1)))
    for target, number in (("class a", 0), ("9", 9)):
        infos = [path.read_text() for path in (tmp_path / "Results/exp" / target).rglob("Info/*.txt")]
        assert len(infos) == 2 and all(f"target: {number}\n" in text for text in infos)


def test_chunks_merge(place, done, tmp_path):
    for chunk in (0, 1):
        succeeded(run_main(*flags(place, tmp_path, num_chunks=2, chunk=chunk, pad_batches=True)))
    succeeded(run_main(*flags(place, tmp_path, num_chunks=2, merge_and_eval=True)))
    ours, whole = (yaml.safe_load((folder / "Results/exp/summary.yaml").read_text()) for folder in (tmp_path, done[0]))
    assert ours["classes"].keys() == whole["classes"].keys() and ours["n"] == 5
    assert ours["clean acc"] == pytest.approx(whole["clean acc"])


def test_metrics_and_report(place, done, tmp_path):
    """What needs no attributes is measured; what does says so. A classifier that is code runs only if it is named."""
    out, _ = done
    code = ("--classifier-path", f"python:{place / 'net.py'}:build")
    places = ("--output-path", out, "--exp-name", "exp", "--gpu", "cpu", "--report-path", tmp_path)
    run = succeeded(run_script("evaluate", *places, *code))
    measured = json.loads((tmp_path / "exp/evaluation.json").read_text())["measurements"]["exp"]
    assert {"flip rate", "MAD", "COUT"} <= measured.keys(), (run.out, run.err)
    assert "CD" in run.out and "attribute" in run.out
    page = tmp_path / "page.html"
    succeeded(run_script("make-report", out, "exp", "--file", page))
    assert "class b" in page.read_text()


def test_single_files_without_labels(place, tmp_path):
    images = [str(place / "images/class b/x y.png"), str(place / "images/class c/1.png")]
    run = succeeded(run_main(*flags(place, tmp_path, target="class a"), "--images", *images))
    assert "no labels: predictions stand for them" in run.out
    summary = yaml.safe_load((tmp_path / "Results/exp/summary.yaml").read_text())
    assert summary["unlabelled"] == summary["n"] == 2 and summary["clean acc"] == 100


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"classifier_size": 32}, "not what this network was trained on"),
        ({"decision": "binary", "query_label": "class k"}, "class"),
        ({"classifier_path": "python:net.py:nothing"}, "nothing"),
        ({"target": "class a", "decision": "binary", "query_label": 0}, "--target"),
    ],
)
def test_what_does_not_fit_is_one_line(place, tmp_path, monkeypatch, more, said):
    monkeypatch.chdir(place)
    assert said in refusal(run_main(*flags(place, tmp_path / "out", **more)))
    assert not (tmp_path / "out").exists()


def test_grey_images_from_end_to_end(tmp_path):
    for number in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    (tmp_path / "grey.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        return 9 * x.mean((1, 2, 3))[:, None]\n"
    )
    write_diffusers(tmp_path / "diffusion", "grey")
    out = tmp_path / "out"
    command = {
        **{"dataset": "folder", "data_dir": tmp_path / "images", "model_path": tmp_path / "diffusion"},
        **{"classifier_path": f"python:{tmp_path / 'grey.py'}:Net", "classifier_range": "-1,1", "gpu": "cpu"},
        **{"timestep_respacing": "10", "start_step": 2, "classifier_scales": "50", "save_x_t": True},
        **{"output_path": out, "exp_name": "exp", "image_format": "png"},
    }
    succeeded(run_main(*as_arguments(command)))
    pictures = [Image.open(path) for path in out.rglob("*.png") if "SM" not in path.parts]
    assert len(pictures) == 3 * (1 + 1 + 1 + 2) and {picture.mode for picture in pictures} == {"L"}
    assert torch.load(out / "Results/exp/stats.pth", weights_only=True)["n"] == 3 and "torch" in sys.modules
