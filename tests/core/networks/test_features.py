"""The networks beside the classifier: published figures from published files, small ones in their places, inputs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.errors import InputError
from dime.core.networks import features, files
from dime.core.networks.classifiers import load_classifier
from dime.core.training.classifier import to_file
from dime.models.classifiers import SmallCNN
from dime.models.perceptual import IMAGENET_MEAN, IMAGENET_STD, PerceptualFeatures
from dime.models.resnet import BGR_MEAN, vggface2_input
from guided_diffusion.checkpoint_util import save
from tests.helpers import CPU, KEYS, fill_, filled, golden, relative_error, rnd
from tests.worlds import VGG19_FILE

TOLERANCE = 2e-5  # float32 on another machine, other kernels


def faces_file(path: Path, without: str = "") -> Path:
    arrays = {k: v.numpy() for k, v in filled(KEYS["vggface2_resnet50"]).items() if not k.startswith("fc.")}
    arrays |= {"fc.bias": np.zeros(8631, np.float32), "odd": np.zeros(1)}
    path.write_bytes(pickle.dumps({name: array for name, array in arrays.items() if name != without}))
    return path


def test_oracle_gives_the_published_figures(tmp_path):
    torch.save({part: filled(shapes) for part, shapes in KEYS["oracle"].items()}, tmp_path / "oracle.pth")
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
    network = features.load_perceptual(18)
    assert torch.equal(network.features[0].weight, state["features.0.weight"])
    assert not any(p.requires_grad for p in network.parameters())

    (tmp_path / "models").mkdir()
    first = {name: value + 1 for name, value in state.items()}
    torch.save(first, tmp_path / "models" / VGG19_FILE)
    assert torch.equal(features.load_perceptual(3).features[2].bias, first["features.2.bias"])
    with pytest.raises(InputError, match="entries are missing"):
        features.load_perceptual(20)
    with pytest.raises(InputError, match="layers 1 to 37"):
        features.load_perceptual(38)
    for path in tmp_path.rglob(VGG19_FILE):
        path.unlink()
    with pytest.raises(InputError) as caught:  # it cannot be had
        files.pretrained_weights(f"http://127.0.0.1:9/{VGG19_FILE}")
    for part in (tmp_path / "models" / VGG19_FILE, tmp_path / "hub" / "checkpoints" / VGG19_FILE, "network"):
        assert str(part) in str(caught.value)


def test_a_small_cnn_stands_in_for_the_oracle_and_vgg19(tmp_path):
    save(small := tmp_path / "small.pth", to_file(fill_(SmallCNN(2, (8, 16))), ["Smiling", "Young"]))
    oracle, classifier, x = features.load_oracle(small, CPU), load_classifier(small, CPU), 2 * rnd(1, 3, 3, 32, 32)
    found, logits = oracle(x)
    assert found.shape == (3, 16) and torch.equal(logits, classifier(x))
    assert not oracle.training and not any(p.requires_grad for p in oracle.parameters())
    assert torch.equal(features.load_perceptual(1, small)(x), classifier.feat_extract[0](x.clamp(-1, 1)))
    assert features.load_perceptual(2, small)(x[:, :1]).shape == (3, 16, 8, 8)  # grey as three equal channels
    with pytest.raises(InputError, match=r"--l_perc_layer 3: .* levels 1 to 2"):
        features.load_perceptual(3, small)
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="expected a small CNN"):
        features.load_perceptual(1, tmp_path / "x.pth")
    with pytest.raises(InputError, match="expected an oracle"):
        features.load_oracle(tmp_path / "x.pth", CPU)


# What they see, in closed form


def test_vggface2_sees_bgr_minus_its_mean_resized_as_pillow_does():
    expected = torch.tensor([50, 100, 200]) - torch.tensor(BGR_MEAN)
    x = vggface2_input(Image.new("RGB", (64, 64), (200, 100, 50)))
    # a constant image stays constant under resizing
    assert torch.equal(x, expected.view(3, 1, 1).expand(3, 224, 224))
    # Pillow rounds to grey levels, resizing tensors would not; 1e-4: adding the mean back in float32
    x = vggface2_input(Image.effect_noise((100, 100), 64).convert("RGB")) + torch.tensor(BGR_MEAN).view(3, 1, 1)
    assert (x - x.round()).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [3, 1])
def test_one_perceptual_layer_is_a_convolution_of_the_normalised_image(channels):
    network = fill_(PerceptualFeatures(1)).requires_grad_(False)
    x = (2 * rnd(1, 2, channels, 32, 32)).requires_grad_()  # beyond [-1, 1] too
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    seen = ((x.expand(-1, 3, -1, -1).clamp(-1, 1) + 1) / 2 - mean) / std
    expected = torch.conv2d(seen, network.features[0].weight, network.features[0].bias, padding=1)
    # 1e-5: the same float32 operations
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
    network(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
