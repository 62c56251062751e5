"""The networks beside the classifier: published figures from published files, small ones in their places."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dime.core.errors import InputError
from dime.core.networks import features, files
from dime.core.networks.classifiers import load_classifier
from dime.core.training.classifier_files import to_file
from dime.models.perceptual import PerceptualFeatures
from dime.models.small_cnn import SmallCNN
from guided_diffusion.checkpoint_util import save
from tests.helpers import GOLDEN, fill_, filled, golden, relative_error, rnd

CPU = torch.device("cpu")
KEYS = json.loads((GOLDEN / "state_dict_keys.json").read_text())
VGG19_FILE = "vgg19-dcbb9e9d.pth"
TOLERANCE = 2e-5  # float32 on another machine, other kernels


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A small CNN that decides on Smiling and Young."""
    path = tmp_path_factory.mktemp("small") / "classifier.pth"
    save(path, to_file(fill_(SmallCNN(2, (8, 16))).eval(), ["Smiling", "Young"]))
    return path


def faces_file(path: Path, without: str = "") -> Path:
    arrays = {k: v.numpy() for k, v in filled(KEYS["vggface2_resnet50"]).items() if not k.startswith("fc.")}
    arrays |= {"fc.bias": np.zeros(8631, np.float32), "odd": np.zeros(1)}
    path.write_bytes(pickle.dumps({name: array for name, array in arrays.items() if name != without}))
    return path


def test_oracle_gives_the_published_figures(tmp_path):
    torch.save({part: filled(KEYS["oracle"][part]) for part in ("feat_extract", "classifier")}, tmp_path / "oracle.pth")
    found, logits = features.load_oracle(tmp_path / "oracle.pth", CPU)(rnd(4, 2, 3, 128, 128).clamp(-1, 1))
    assert relative_error(found, golden("networks")["oracle_features"]) < TOLERANCE
    assert relative_error(logits, golden("networks")["oracle_logits"]) < TOLERANCE
    with pytest.raises(InputError, match="no known classifier"):
        load_classifier(tmp_path / "oracle.pth", CPU)


@pytest.mark.parametrize("name", features.VGGFACE2_FILES)
def test_vggface2_under_both_names(tmp_path, name, capsys):
    faces_file(tmp_path / name)
    network = features.load_vggface2(tmp_path / features.VGGFACE2_FILES[0], CPU)
    with torch.no_grad():
        found = network(60 * rnd(5, 2, 3, 224, 224))
    assert relative_error(found[:, ::16], golden("networks")["vggface2_features"]) < TOLERANCE
    assert "1 unknown entries are skipped (odd)" in capsys.readouterr().out


def test_vggface2_that_is_missing_or_incomplete(tmp_path):
    with pytest.raises(InputError) as caught:
        features.load_vggface2(tmp_path / features.VGGFACE2_FILES[0], CPU)
    assert all(name in str(caught.value) for name in features.VGGFACE2_FILES)
    with pytest.raises(InputError, match=r"the first is layer3\.4\.conv2\.weight"):
        features.load_vggface2(faces_file(tmp_path / "w.pkl", without="layer3.4.conv2.weight"), CPU)


def test_perceptual_weights_from_models_or_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(files, "WEIGHTS_FOLDER", tmp_path / "models")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = filled({k: v.shape for k, v in PerceptualFeatures(18).state_dict().items()})
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "hub" / "checkpoints" / VGG19_FILE)
    network = features.load_perceptual(18, CPU)
    assert torch.equal(network.features[0].weight, state["features.0.weight"])
    assert not any(p.requires_grad for p in network.parameters())

    (tmp_path / "models").mkdir()
    first = {name: value + 1 for name, value in state.items()}
    torch.save(first, tmp_path / "models" / VGG19_FILE)
    assert torch.equal(features.load_perceptual(3, CPU).features[2].bias, first["features.2.bias"])
    with pytest.raises(InputError, match="entries are missing"):
        features.load_perceptual(20, CPU)
    with pytest.raises(InputError, match="layers 1 to 37"):
        features.load_perceptual(38, CPU)


def test_weights_that_cannot_be_had_say_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(files, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(InputError) as caught:
        files.pretrained_weights(f"http://127.0.0.1:9/{VGG19_FILE}")
    for part in (tmp_path / VGG19_FILE, tmp_path / "torch" / "hub" / "checkpoints" / VGG19_FILE, "network"):
        assert str(part) in str(caught.value)


def test_a_small_cnn_stands_in_for_the_oracle_and_vgg19(small, tmp_path):
    oracle, classifier, x = features.load_oracle(small, CPU), load_classifier(small, CPU), 2 * rnd(1, 3, 3, 32, 32)
    found, logits = oracle(x)
    assert found.shape == (3, 16) and torch.equal(logits, classifier(x))
    assert not oracle.training and not any(p.requires_grad for p in oracle.parameters())
    assert torch.equal(features.load_perceptual(1, CPU, small)(x), classifier.feat_extract[0](x.clamp(-1, 1)))
    assert features.load_perceptual(2, CPU, small)(x).shape == (3, 16, 8, 8)
    with pytest.raises(InputError, match=r"--l_perc_layer 3: .* levels 1 to 2"):
        features.load_perceptual(3, CPU, small)


def test_a_network_of_another_kind_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="expected a small CNN"):
        features.load_perceptual(1, CPU, tmp_path / "x.pth")
    with pytest.raises(InputError, match="expected an oracle"):
        features.load_oracle(tmp_path / "x.pth", CPU)
