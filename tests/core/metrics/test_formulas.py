"""The metrics on numbers whose answer is known, and features of files: each once, remembered while nothing changed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from dime.core.errors import InputError, UndefinedError
from dime.core.guidance import Binary, MultiClass
from dime.core.metrics.attribute_scores import area_under_curve, attribute_scores, criterion
from dime.core.metrics.cd import correlation_difference, correlations
from dime.core.metrics.cout import cout, transition
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


def test_correlation_difference_in_closed_form():
    values = rnd(1, 50, 6).numpy().astype(float)
    # 1e-12: float64
    assert np.allclose(correlations(values, 2), np.corrcoef(values.T)[2], atol=1e-12)
    query = np.array([1, -1, 0, 1, 0])
    changes = np.stack([query, -query, np.zeros(5), np.array([0, 0, 1, 0, -1]), np.ones(5)], axis=1)
    labels = np.array([[1, 1, 0, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [0, 0, 1, 0, 1]])
    result = correlation_difference(labels, changes, query=0)
    of_labels, of_changes, _ = result.detail
    assert of_labels == pytest.approx([1, 1, -1, 0, np.nan], nan_ok=True)
    assert of_changes == pytest.approx([1, -1, np.nan, 0, np.nan], nan_ok=True)
    assert result.value == pytest.approx(0 + 2 + 1 + 0 + 0)
    notes = "; ".join(result.notes)
    assert "1 attributes never change" in notes and "1 attributes change alike" in notes and "3 informative" in notes


def test_a_query_that_never_varies_leaves_cd_undefined():
    """All flips go one way, or the data set knows one side only: every correlation with the query is undefined."""
    varied, constant = np.eye(3), np.array([[-1, 0, 1], [-1, 1, 0]])
    by_flips = correlation_difference(varied, constant, query=0)
    assert by_flips.value is None and "counterfactuals change it alike" in by_flips.reason
    by_labels = correlation_difference(np.array([[1, 0, 1], [1, 1, 0]]), varied, query=0)
    assert by_labels.value is None and "labels of the data set agree" in by_labels.reason
    assert by_flips.notes == by_labels.notes == ()
    assert not correlation_difference(varied, np.repeat(np.eye(3), 20, axis=0), query=0).notes  # 20 images and more


def brightness(x: torch.Tensor) -> torch.Tensor:
    """A classifier that looks at the mean grey level: logit 20·mean."""
    return 20 * x.mean(dim=(1, 2, 3))[:, None]


def test_transition_of_a_linear_classifier_follows_the_class_of_the_input():
    x, x_cf = -torch.ones(2, 3, 10, 10), torch.ones(2, 3, 10, 10)
    curves = transition(brightness, x, x_cf, Binary(0))
    mean_level = np.linspace(-1, 1, 51)  # 100 pixels, 2 at a time
    # 1e-6: float32; the own class is the dark one, then the bright one
    assert curves == pytest.approx(np.tile(1 / (1 + np.exp(20 * mean_level)), (2, 1)), abs=1e-6)
    assert transition(brightness, x_cf, x, Binary(0)) == pytest.approx(curves, abs=1e-6)
    # three classes with logits 0, 20·mean and -20·mean: a dark image is of class 2

    def classify(x: torch.Tensor) -> torch.Tensor:
        bright = brightness(x)
        return torch.cat([0 * bright, bright, -bright], dim=1)

    curve = transition(classify, -torch.ones(1, 3, 10, 10), torch.ones(1, 3, 10, 10), MultiClass())[0]
    logits = np.outer(20 * np.linspace(-1, 1, 51), [0, 1, -1])
    # 1e-6: float32
    assert curve == pytest.approx(np.exp(logits[:, 2]) / np.exp(logits).sum(axis=1), abs=1e-6)


def test_most_changed_pixels_come_first_and_the_last_step_is_the_counterfactual():
    x = torch.zeros(1, 3, 2, 3)
    x_cf = torch.tensor([[0.0, 0.2, 0.4], [-0.8, 0.2, 0.0]]).expand(1, 3, 2, 3)
    seen = []

    def classify(images: torch.Tensor) -> torch.Tensor:
        seen.append(images[0, 0].clone())
        return torch.zeros(1, 1)

    transition(classify, x, x_cf, Binary(0))
    changed = [int((after - before).abs().argmax()) for before, after in pairwise(seen)]
    assert len(seen) == 7
    assert changed[:4] == [3, 2, 1, 4]
    assert torch.equal(seen[-1], x_cf[0, 0])
    x, x_cf = rnd(1, 2, 3, 64, 64), rnd(2, 2, 3, 64, 64)
    seen = []
    transition(lambda images: seen.append(images) or brightness(images), x, x_cf, Binary(0))
    assert len(seen) == 1 + 51  # 4096 pixels, 81 at a time
    assert torch.equal(seen[0], x) and torch.equal(seen[-1], x_cf)
    together = transition(brightness, x, x_cf, Binary(0))
    alone = [transition(brightness, x[i : i + 1], x_cf[i : i + 1], Binary(0))[0] for i in range(2)]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (np.ones(51), -1),
        (np.zeros(51), 1),
        (np.linspace(1, 0, 51), 0),
        # p_c is 1 up to step 9 and falls within step 10: an area of 9.5 steps of 2 %
        (np.where(np.arange(51) < 10, 1.0, 0.0), 1 - 2 * 9.5 * 0.02),
    ],
    ids=["never", "at once", "evenly", "early"],
)
def test_cout_of_curves(curve, expected):
    assert cout(curve[None], pixels=100) == pytest.approx([expected])


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
    """Correlated features, away from the origin."""
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


def test_small_cases_in_closed_form():
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [7.0]])  # standard deviations √2 and √18
    assert distance(a, b) == pytest.approx((1 - 4) ** 2 + (2**0.5 - 18**0.5) ** 2)
    for n in (5, 100):
        a = 100 * some_features(5, n, 30)
        # the terms are of the order of 1e8: float64 leaves 1e-6 of them
        assert abs(distance(a, a.copy())) < 1e-3
    with pytest.raises(InputError, match="at least 2 images"):
        gaussian(np.ones((1, 5)))


def test_what_a_distance_depends_on():
    """20 dimensions of which 3 are used: the distance is the one within those 3."""
    a, b = some_features(6, 50, 3), some_features(7, 60, 3)
    basis = np.linalg.qr(rnd(8, 20, 20).numpy().astype(float))[0][:3]
    assert distance(a @ basis, b @ basis) == pytest.approx(distance(a, b), rel=1e-9)
    a, b = some_features(11, 40, 8), some_features(12, 40, 8)
    assert distance(np.random.default_rng(0).permutation(b), a) == pytest.approx(distance(a, b), rel=1e-9)
    away = b + (a.mean(0) - b.mean(0))
    assert distance(a, away + 3) - distance(a, away) == pytest.approx(8 * 9)


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
