"""The metrics on numbers whose answer is known, and features of files: each once, remembered while nothing changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from dime.core.errors import InputError, UndefinedError
from dime.core.guidance import MultiClass
from dime.core.metrics.attribute_scores import area_under_curve, attribute_scores, criterion
from dime.core.metrics.cd import correlation_difference
from dime.core.metrics.cout import transition
from dime.core.metrics.faces import face_similarity, same_face
from dime.core.metrics.features import ImageFeatures, Machine, batches
from dime.core.metrics.fid import frechet_distance, gaussian, split_frechet_distance
from dime.core.metrics.metric import Measurement, bootstrap_interval, mean
from dime.core.metrics.mnac import decide
from tests.helpers import CPU, rnd


def test_face_similarity_is_the_cosine_and_the_same_face_is_above_one_half():
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[2.0, 0.0], [4.0, 3.0], [-1.0, -1.0], [0.0, 5.0], [1.0, 0.0]])
    # 1e-12: float64; a vector without direction has no face
    assert face_similarity(a, b) == pytest.approx([1, 24 / 25, -1, 0, np.nan], abs=1e-12, nan_ok=True)
    assert same_face(np.array([0.49, 0.5, 0.51, np.nan])) == pytest.approx([0, 0, 1, np.nan], nan_ok=True)
    assert decide(torch.tensor([[-3.0, 0.0, 2.0]])).tolist() == [[0, 0, 1]]  # of the oracle, likewise
    with pytest.raises(UndefinedError, match="NaN"):
        decide(torch.tensor([[-3.0, torch.nan]]))


def test_a_query_that_never_varies_leaves_cd_undefined():
    varied, constant = np.eye(3), np.array([[-1, 0, 1], [-1, 1, 0]])
    by_flips = correlation_difference(varied, constant, query=0)
    assert by_flips.value is None and "counterfactuals change it alike" in by_flips.reason
    by_labels = correlation_difference(np.array([[1, 0, 1], [1, 1, 0]]), varied, query=0)
    assert by_labels.value is None and "labels of the data set agree" in by_labels.reason
    assert by_flips.notes == by_labels.notes == ()
    assert not correlation_difference(varied, np.repeat(np.eye(3), 20, axis=0), query=0).notes  # 20 images and more


def test_transition_between_three_classes():
    """The logits are 0, 20·mean and -20·mean: a dark image is of class 2. Of one output: test_protocol.py."""

    def classify(x: torch.Tensor) -> torch.Tensor:
        return 20 * x.mean(dim=(1, 2, 3))[:, None] * torch.tensor([0, 1, -1])

    curve = transition(classify, -torch.ones(1, 3, 10, 10), torch.ones(1, 3, 10, 10), MultiClass())[0]
    logits = np.outer(20 * np.linspace(-1, 1, 51), [0, 1, -1])  # 100 pixels, 2 at a time
    # 1e-6: float32
    assert curve == pytest.approx(np.exp(logits[:, 2]) / np.exp(logits).sum(axis=1), abs=1e-6)


def test_a_mean_and_its_interval():
    values = rnd(3, 400).numpy().astype(float)
    low, high = bootstrap_interval(lambda rows: values[rows].mean(), 400)
    error = values.std() / 20
    # a tenth of the width: the noise of 1000 resamples
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.4 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.4 * error)
    assert (low, high) == bootstrap_interval(lambda rows: values[rows].mean(), 400)
    assert mean("FVA", np.array([0.25])) == Measurement("FVA", 0.25, 1, None)
    for values in ([], [0.5, np.nan], [np.inf, 1.0]):
        found = mean("FVA", np.array(values))
        assert found.value is None and found.interval is None and "have no value" in found.reason
        assert found.as_dict()["value"] is None and found.as_dict()["reason"]
    cd = {"name": "CD", "value": None, "n": 3, "interval": None}
    reason = "no finite number comes out of its 3 images"
    assert Measurement("CD", float("nan"), 3, (0.0, 1.0)).as_dict() == cd | {"reason": reason}
    assert Measurement("CD", 1.0, 3, (0.0, float("nan"))).as_dict() == cd | {"value": 1.0}


def some_features(seed: int, n: int, dimensions: int) -> np.ndarray:
    mixing = rnd(seed + 1000, dimensions, dimensions).numpy().astype(float)
    return rnd(seed, n, dimensions).numpy().astype(float) @ mixing + seed


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(gaussian(a), gaussian(b))


@pytest.mark.parametrize(("n_a", "n_b"), [(200, 150), (9, 12)])
def test_statistics_are_mean_and_covariance_and_the_distance_is_the_textbooks(n_a, n_b):
    a, b = some_features(1, n_a, 10), some_features(2, n_b, 10)
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    for x, covariance in zip((a, b), covariances, strict=True):
        statistics = gaussian(x)
        assert statistics.root.shape[0] == min(len(x), 10)
        assert np.allclose(statistics.mean, x.mean(0)) and np.allclose(statistics.root.T @ statistics.root, covariance)
    root = np.trace(sqrtm(covariances[0] @ covariances[1]).real)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * root
    # 1e-5: the square root of a product loses half of float64's digits
    assert distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_split_distance_compares_opposite_halves_by_ids():
    """Every counterfactual is its input: the split distance is still not 0, and the mean of both ways."""
    ids, a = np.arange(40), some_features(15, 40, 4)
    value = split_frechet_distance(ids, a, ids, a, seed=3)
    half = np.isin(ids, np.random.default_rng(3).permutation(ids)[:20])
    assert value == pytest.approx(distance(a[half], a[~half])) and value > 1e-3
    ids, a, b = np.arange(30), some_features(16, 30, 4), some_features(17, 30, 4)
    order = np.random.default_rng(1).permutation(30)
    expected = split_frechet_distance(ids, a, ids, b)
    assert split_frechet_distance(ids, a, ids[order], b[order]) == pytest.approx(expected, rel=1e-9)
    assert split_frechet_distance(ids, a, ids[5:], a[5:]) > 0


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 3.5 / 4),  # one tie in four pairs
    ],
)
def test_area_under_the_curve_counts_ordered_pairs(scores, positive, expected):
    assert area_under_curve(np.array(scores, float), np.array(positive, bool)) == pytest.approx(expected)


def test_an_attribute_that_all_images_share_has_no_curve():
    assert np.isnan(area_under_curve(np.arange(3.0), np.ones(3, bool)))
    labels = np.array([[1, 0], [1, 1]])
    scores = attribute_scores(("Young", "Male"), np.array([[1.0, -1.0], [-1.0, 2.0]]), labels)
    assert scores["attribute"].tolist() == ["Young", "Male"]
    assert scores["accuracy"].tolist() == [0.5, 1.0]
    assert np.isnan(scores["auc"][0]) and scores["auc"][1] == criterion(scores) == 1.0
    alone = attribute_scores(("Young",), np.array([[1.0], [-1.0], [2.0]]), np.ones((3, 1)))
    assert np.isnan(alone["auc"]).all() and criterion(alone) == pytest.approx(2 / 3)  # the accuracy decides


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
def test_batches_change_nothing_and_are_read_two_ahead(files, batch_size, num_workers):
    features = ImageFeatures(Counting(), Machine(CPU, batch_size, num_workers))(files)
    expected = [[int(path.stem) / 127.5 - 1, -1, 1] for path in files]
    # 1e-6: float32
    assert np.allclose(features.numpy(), expected, atol=1e-6)
    read = []
    next(batches(files, lambda path: read.append(path) or path, Machine(CPU, batch_size, num_workers)))
    assert len(read) <= 2 * batch_size  # at most two ahead


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
    def __init__(self, folder: Path) -> None:
        self.file, self.weights = folder / "features.npz", folder / "weights.pt"
        self.weights.write_bytes(b"weights")

    def ask(self, paths: list[Path]) -> tuple[torch.Tensor, int]:
        network = Counting()
        features = ImageFeatures(network, Machine(CPU), file=self.file, weights=self.weights)
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
