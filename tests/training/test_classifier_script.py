"""celeba-train-classifier.py: what it learns, writes, resumes and refuses."""

from __future__ import annotations

import csv
import pickle

import numpy as np
import pytest
import torch

from dime.core.networks.classifiers import load_classifier
from dime.core.networks.features import load_oracle
from dime.core.training.classifier import positive_weights, to_file
from dime.models.classifiers import DenseNetClassifier
from dime.models.resnet import Oracle, caffe_resnet50
from guided_diffusion import checkpoint_util
from tests.helpers import fill_, rnd
from tests.training.scripts import error_line, make_folders_of_classes, run_script, unpack_celeba

SCRIPT = "celeba-train-classifier.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return unpack_celeba(tmp_path_factory.mktemp("celeba"))


def train(data, out, **flags) -> int:
    common = {"arch": "small", "image_size": 16, "batch_size": 10, "epochs": 2, "num_workers": 0, "log_interval": 1}
    return run_script(SCRIPT, **{"data_dir": data, "output_path": out, **common, **flags})


def test_what_a_training_leaves(data, tmp_path):
    assert train(data, tmp_path, attributes="Young,Smiling", pos_weight=True) == 0
    content = checkpoint_util.load(tmp_path / "classifier.pth")
    assert content["attributes"] == ["Young", "Smiling"]
    network = load_classifier(tmp_path / "classifier.pth", torch.device("cpu"))
    assert network(rnd(0, 1, 3, 16, 16)).shape == (1, 2)
    with (tmp_path / "validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["attribute"] for row in rows] == ["Young", "Smiling"]
    with (tmp_path / "progress.csv").open(newline="") as file:
        progress = list(csv.DictReader(file))
    assert [float(row["auc"]) >= 0 for row in progress if row["auc"]] == [True, True]  # one for each pass


def test_it_learns(data, tmp_path):
    assert train(data, tmp_path, epochs=30, lr=3e-3, attributes="Smiling", eval_interval=90, log_interval=5) == 0
    with (tmp_path / "progress.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert np.mean(losses[-3:]) < 0.75 * np.mean(losses[:3])


def test_resuming_ends_in_the_same_bytes(data, tmp_path):
    common = {"lr": 1e-3, "attributes": "Smiling,Male", "eval_interval": 2}
    assert train(data, tmp_path / "straight", **common, max_steps=5) == 0
    assert train(data, tmp_path / "halves", **common, max_steps=3) == 0
    assert train(data, tmp_path / "halves", **common, max_steps=5) == 0
    straight, halves = (checkpoint_util.load(tmp_path / name / "training.pt") for name in ("straight", "halves"))
    assert straight["updates"] == halves["updates"] == 5
    for name, value in straight["network"].items():
        assert torch.equal(value, halves["network"][name]), name


def test_classes_of_a_folder_of_grey_images(tmp_path, capsys):
    folder, out = make_folders_of_classes(tmp_path / "data"), tmp_path / "out"
    flags = {"dataset": "folder", "image_channels": 1, "batch_size": 8}
    learning = flags | {"decision": "multiclass", "epochs": 10, "lr": 1e-2}
    assert train(folder, out, **learning) == 0
    assert "accuracy 1.0000, AUC 1.0000" in capsys.readouterr().out  # brightness is easily told
    network = load_classifier(out / "classifier.pth", CPU)
    assert network.names == ["bright", "dark"]
    with torch.no_grad():
        assert network(torch.tensor([0.6, -0.7]).view(2, 1, 1, 1).expand(2, 1, 16, 16)).argmax(1).tolist() == [0, 1]
    for wrong, message in (
        ({"decision": "binary"}, "the images have classes; give --decision multiclass"),
        ({"data_dir": folder / "train"}, "expected two folders in it, train and val"),
        ({"attributes": "dark"}, "not with --decision multiclass"),
        ({"arch": "densenet"}, "--arch densenet sees colour"),
    ):
        assert train(**{"data": folder, "out": tmp_path / "none", **learning, **wrong}) == 2
        assert message in error_line(capsys)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(data, tmp_path, precision):
    assert train(data, tmp_path, precision=precision, max_steps=2, grad_clip=1.0) == 0
    assert checkpoint_util.load(tmp_path / "training.pt")["network"]["classifier.weight"].dtype == torch.float32


def test_files_load_as_the_networks_that_they_are_of(tmp_path):
    for network, load in ((DenseNetClassifier(3), load_classifier), (Oracle(), load_oracle)):
        checkpoint_util.save(tmp_path / "c.pth", to_file(fill_(network), ["any"] * network.num_outputs))
        loaded, own = load(tmp_path / "c.pth", CPU).state_dict(), network.state_dict()
        assert list(loaded) == list(own) and all(torch.equal(value, own[name]) for name, value in loaded.items())


def test_the_oracle_starts_from_vggface2(data, tmp_path):
    weights = {name: value.numpy() for name, value in fill_(caffe_resnet50()).state_dict().items()}
    (tmp_path / "resnet50_ft_weight.pkl").write_bytes(pickle.dumps(weights))
    flags = {"arch": "oracle", "weights-path": tmp_path / "resnet50_ft_weight.pkl", "lr": 1e-12, "max_steps": 1}
    assert train(data, tmp_path / "out", **flags, batch_size=2, attributes="Smiling") == 0
    first = checkpoint_util.load(tmp_path / "out" / "oracle.pth")["feat_extract"]["conv1_7x7_s2.weight"]
    torch.testing.assert_close(first, torch.from_numpy(weights["conv1.weight"]), atol=1e-6, rtol=1e-5)


def test_positive_weights_closed_form():
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert positive_weights(labels).tolist() == pytest.approx([3.0, 4.0, 1 / 3])


# --- bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"attributes": "Smiling,Happy"}, "no attribute is called 'Happy'"),
        ({"attributes": "Smiling,Smiling"}, "an attribute is named twice"),
        ({"batch_size": 31}, "batch_size 31: the data set has only 30 image"),
        ({"arch": "oracle", "weights-path": "/nowhere/face.pkl"}, "/nowhere/face.pkl: no such file"),
        ({"arch": "vgg"}, "invalid choice: 'vgg'"),
    ],
)
def test_bad_flags(data, tmp_path, capsys, flags, message):
    assert train(data, tmp_path, **flags) == 2
    assert message in error_line(capsys)


def test_another_network_or_other_attributes_are_refused(data, tmp_path, capsys):
    train(data, tmp_path, max_steps=1, attributes="Smiling")
    capsys.readouterr()
    assert train(data, tmp_path, max_steps=2, attributes="Young") == 2
    assert "trained on other attributes" in error_line(capsys)
    assert train(data, tmp_path, max_steps=2, attributes="Smiling", arch="densenet", image_size=32) == 2
    assert "another network than the flags describe" in error_line(capsys)


def test_a_loss_that_is_no_number_stops_and_the_files_stay(data, tmp_path, capsys):
    assert train(data, tmp_path, max_steps=3) == 0
    capsys.readouterr()
    assert train(data, tmp_path, max_steps=9, lr=1e38) == 2
    assert "is not a finite number" in error_line(capsys) or "are not finite" in error_line(capsys)
    state = checkpoint_util.load(tmp_path / "training.pt")["network"]
    assert all(value.isfinite().all() for value in state.values())
