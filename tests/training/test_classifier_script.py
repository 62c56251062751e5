"""celeba-train-classifier.py: what it learns, writes, resumes and refuses."""

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
from tests.helpers import CPU, fill_, rnd
from tests.training.small import make_folders_of_classes
from tests.worlds import Run, refusal, run_script, succeeded


@pytest.fixture(scope="module")
def data(world):
    return world.data


def train(data, out, **flags) -> Run:
    common = {"arch": "small", "image_size": 16, "batch_size": 10, "epochs": 2, "num_workers": 0, "log_interval": 1}
    return run_script("celeba-train-classifier", **{"data_dir": data, "output_path": out, **common, **flags})


def table(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_training_leaves(data, tmp_path):
    succeeded(train(data, tmp_path, attributes="Young,Smiling", pos_weight=True))
    assert checkpoint_util.load(tmp_path / "classifier.pth")["attributes"] == ["Young", "Smiling"]
    network = load_classifier(tmp_path / "classifier.pth", CPU)
    assert network(rnd(0, 1, 3, 16, 16)).shape == (1, 2)
    assert [row["attribute"] for row in table(tmp_path / "validation.csv")] == ["Young", "Smiling"]
    aucs = [row["auc"] for row in table(tmp_path / "progress.csv") if row["auc"]]
    assert [float(auc) >= 0 for auc in aucs] == [True, True]  # one for each pass


def test_it_learns(data, tmp_path):
    flags = {"epochs": 30, "lr": 3e-3, "attributes": "Smiling", "eval_interval": 90, "log_interval": 5}
    succeeded(train(data, tmp_path, **flags))
    losses = [float(row["loss"]) for row in table(tmp_path / "progress.csv") if row["loss"]]
    assert np.mean(losses[-3:]) < 0.75 * np.mean(losses[:3])


def test_resuming_ends_in_the_same_bytes(data, tmp_path):
    common = {"lr": 1e-3, "attributes": "Smiling,Male", "eval_interval": 2}
    for folder, steps in (("straight", 5), ("halves", 3), ("halves", 5)):
        succeeded(train(data, tmp_path / folder, **common, max_steps=steps))
    straight, halves = (checkpoint_util.load(tmp_path / name / "training.pt") for name in ("straight", "halves"))
    assert straight["updates"] == halves["updates"] == 5
    for name, value in straight["network"].items():
        assert torch.equal(value, halves["network"][name]), name


def test_classes_of_a_folder_of_grey_images(tmp_path):
    folder, out = make_folders_of_classes(tmp_path / "data"), tmp_path / "out"
    flags = {"dataset": "folder", "image_channels": 1, "batch_size": 8}
    learning = flags | {"decision": "multiclass", "epochs": 10, "lr": 1e-2}
    # brightness is easily told
    assert "accuracy 1.0000, AUC 1.0000" in succeeded(train(folder, out, **learning)).out
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
        assert message in refusal(train(**{"data": folder, "out": tmp_path / "none", **learning, **wrong}))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(data, tmp_path, precision):
    succeeded(train(data, tmp_path, precision=precision, max_steps=2, grad_clip=1.0))
    assert checkpoint_util.load(tmp_path / "training.pt")["network"]["classifier.weight"].dtype == torch.float32


def test_files_load_as_the_networks_that_they_are_of(tmp_path):
    for network, load in ((DenseNetClassifier(3), load_classifier), (Oracle(), load_oracle)):
        checkpoint_util.save(tmp_path / "c.pth", to_file(fill_(network), ["any"] * network.num_outputs))
        loaded, own = load(tmp_path / "c.pth", CPU).state_dict(), network.state_dict()
        assert list(loaded) == list(own) and all(torch.equal(value, own[name]) for name, value in loaded.items())
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert positive_weights(labels).tolist() == pytest.approx([3.0, 4.0, 1 / 3])


def test_the_oracle_starts_from_vggface2(data, tmp_path):
    weights = {name: value.numpy() for name, value in fill_(caffe_resnet50()).state_dict().items()}
    (tmp_path / "resnet50_ft_weight.pkl").write_bytes(pickle.dumps(weights))
    flags = {"arch": "oracle", "weights-path": tmp_path / "resnet50_ft_weight.pkl", "lr": 1e-12, "max_steps": 1}
    succeeded(train(data, tmp_path / "out", **flags, batch_size=2, attributes="Smiling"))
    first = checkpoint_util.load(tmp_path / "out" / "oracle.pth")["feat_extract"]["conv1_7x7_s2.weight"]
    torch.testing.assert_close(first, torch.from_numpy(weights["conv1.weight"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"attributes": "Smiling,Happy"}, "no attribute is called 'Happy'"),
        ({"attributes": "Smiling,Smiling"}, "an attribute is named twice"),
        ({"batch_size": 31}, "batch_size 31: the data set has only 30 image"),
        ({"arch": "oracle", "weights-path": "/nowhere/face.pkl"}, "/nowhere/face.pkl: no such file"),
    ],
)
def test_bad_flags(data, tmp_path, flags, message):
    assert message in refusal(train(data, tmp_path, **flags))


def test_another_network_or_other_attributes_are_refused_and_a_loss_that_is_no_number_stops(data, tmp_path):
    succeeded(train(data, tmp_path, max_steps=1, attributes="Smiling"))
    for flags, message in (
        ({"attributes": "Young"}, "trained on other attributes"),
        ({"attributes": "Smiling", "arch": "densenet", "image_size": 32}, "another network than the flags describe"),
        ({"attributes": "Smiling", "lr": 1e37}, "not finite|is not a finite number"),
    ):
        line = refusal(train(data, tmp_path, max_steps=9, **flags))
        assert any(words in line for words in message.split("|"))
    state = checkpoint_util.load(tmp_path / "training.pt")["network"]
    assert all(value.isfinite().all() for value in state.values())
