"""Features of image files: each file once, in any batches, remembered only while nothing changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.errors import InputError
from dime.core.metrics.features import ImageFeatures, Machine, StoredFeatures, batches
from tests.helpers import CPU


class Counting:
    """Mean per channel, and how many images went through, under which settings of torch."""

    def __init__(self) -> None:
        self.images, self.settings = 0, set()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.images += len(x)
        self.settings.add((torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()))
        return x.mean(dim=(2, 3))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{level}.png" for level in range(0, 210, 30)]
    for path in paths:
        Image.new("RGB", (8, 8), (int(path.stem), 0, 255)).save(path)
    return paths


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (2, 3), (6, 0), (7, 3), (50, 3)])
def test_batches_change_nothing(files, batch_size, num_workers):
    features = ImageFeatures(Counting(), Machine(CPU, batch_size, num_workers))(files)
    expected = [[int(path.stem) / 127.5 - 1, -1, 1] for path in files]
    # 1e-6: float32
    assert np.allclose(features.numpy(), expected, atol=1e-6)


def test_reading_runs_at_most_two_batches_ahead(files):
    read = []
    stream = batches(files, lambda path: read.append(path) or path, Machine(CPU, 2))
    assert next(stream) == files[:2]
    assert len(read) <= 4


@pytest.mark.parametrize("before", [True, False])
def test_networks_compute_without_tf32_and_gradients_and_leave_the_setting_as_it_was(files, monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    network = Counting()
    features = ImageFeatures(network, Machine(CPU, 2))
    first = features([*files[:3], files[0]])
    assert network.settings == {(False, False)} and torch.backends.cudnn.allow_tf32 == before
    assert network.images == 3 and torch.equal(first[0], first[3])  # a file is computed once
    assert torch.equal(features(files)[:3], first[:3]) and network.images == 7
    files[4].write_bytes(files[4].read_bytes()[:40])
    with pytest.raises(InputError, match=r"120\.png"):
        ImageFeatures(network, Machine(CPU, 2))(files)


class Stored:
    """A folder in which features are remembered, and the network that is asked for them."""

    def __init__(self, folder: Path) -> None:
        self.file, self.weights = folder / "features.npz", folder / "weights.pt"
        self.weights.write_bytes(b"weights")

    def ask(self, paths: list[Path]) -> tuple[torch.Tensor, int]:
        """What a fresh process gets, and how many images it had to compute."""
        network = Counting()
        features = StoredFeatures(ImageFeatures(network, Machine(CPU)), self.file, self.weights)
        return features(paths), network.images


def test_features_are_remembered_by_the_content_of_images_and_weights(tmp_path, files):
    stored = Stored(tmp_path)
    first, computed = stored.ask(files)
    assert computed == 7
    again, computed = stored.ask(files[::-1])
    assert computed == 0 and torch.equal(again, first.flip(0))
    files[0].write_bytes(files[1].read_bytes())  # an image under another's name is that other image
    features, computed = stored.ask(files)
    assert torch.equal(features[0], first[1]) and computed == 0
    Image.new("RGB", (8, 8), (77, 0, 255)).save(files[2])
    features, computed = stored.ask(files)
    assert computed == 1 and features[2, 0] == pytest.approx(77 / 127.5 - 1)
    stored.weights.write_bytes(b"other weights")
    assert stored.ask(files)[1] == 6  # two of the seven are the same image


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_memory_is_replaced(tmp_path, files, content):
    stored = Stored(tmp_path)
    stored.ask(files)
    stored.file.write_bytes(stored.file.read_bytes()[:-9] if content is None else content)
    assert stored.ask(files)[1] == 7
    assert stored.ask(files)[1] == 0
    stored.file = tmp_path / "absent" / "features.npz"  # a place that cannot be written is no error
    assert stored.ask(files)[1] == 7
