"""The figures of sets of samples: closed forms, what torch-fidelity and pytorch-fid say, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.metrics.features import Machine
from dime.core.samples import FeatureNetwork, distance, inception_score, kernel_distance, open_images, precision_recall
from dime.core.training.classifier import to_file
from dime.models.classifiers import SmallCNN
from tests.helpers import fill_, rnd
from tests.metric_world import inception_weights
from tests.worlds import Run, refusal, run_script, succeeded

CPU = Machine(torch.device("cpu"), batch_size=4, num_workers=1)


def features(seed: int, n: int) -> np.ndarray:
    return (rnd(seed, n, 16).abs() @ rnd(7, 16, 16) / 4 + 0.3 * seed).numpy()


def test_precision_recall_and_kernel_distance_in_closed_form():
    reference = np.array([[0.0], [1.0], [2.0], [10.0]])  # with k = 1 balls of 1, 1, 1 and 8
    samples = np.array([[0.5], [1.5], [18.5], [-1.5]])  # balls of 1, 1, 17 and 2
    assert precision_recall(samples, reference, k=1) == (2 / 4, 4 / 4)
    assert precision_recall(reference, reference, k=1) == (1, 1)
    assert precision_recall(reference + 100, reference, k=1) == (0, 0)
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    # k(a, b) = (ab + 1)³: k(1, 2) = 27, k(0, 3) = 1, and between the sets 1, 64, 1, 343
    assert kernel_distance(x, y, 3, 2) == (27 + 1 - 2 * (1 + 64 + 1 + 343) / 4, 0)


def test_as_torch_fidelity_has_it():
    """Version 0.4.0's figures of these features: isc_features_to_metric, kid_…, prc_…, fid_features_to_statistics."""
    a, b = features(1, 300), features(2, 250)
    assert inception_score(a) == pytest.approx((1.128670758532664, 0.015867720031943134), rel=1e-9)
    assert inception_score(a, 3, seed=5) == pytest.approx((1.134247119598938, 0.004504566390017737), rel=1e-9)
    # 1e-6: it multiplies in float32
    assert kernel_distance(a, b, 20, 100) == pytest.approx((0.6330033302307129, 0.0610697867853516), rel=1e-5)
    assert precision_recall(a, b) == pytest.approx((0.653333306312561, 0.47600001096725464), rel=1e-6)
    assert distance(a, b) == pytest.approx(1.583051762628589, rel=1e-6)


def test_inceptions_features_logits_and_spatial_features(sets, tmp_path):
    """Grey images are seen in three channels; logits are without bias, of the features; the map is mixed_6/conv's."""
    head = rnd(3, 1008, 2048) / 45
    torch.save(inception_weights() | {"fc.weight": head}, tmp_path / "weights.pth")
    found = FeatureNetwork("inception", CPU, tmp_path / "weights.pth")(open_images(str(sets / "three.npz")))
    assert found["pooled"].shape == (3, 2048) and found["spatial"].shape == (3, 7 * 17 * 17)
    assert np.allclose(found["logits"], found["pooled"] @ head.numpy().T, atol=1e-4)  # float32 sums over 2048


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A small grey classifier, and sets of 12 grey images: a folder and an npz that hold the same, one apart."""
    root = tmp_path_factory.mktemp("sets")
    torch.save(to_file(fill_(SmallCNN(4, (8, 8), channels=1)), list("abcd")), root / "classifier.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 1), dtype=np.uint8)
    np.savez(root / "same.npz", pixels)
    np.savez(root / "other.npz", np.sort(pixels, axis=1), np.arange(12))
    np.savez(root / "colour.npz", pixels.repeat(3, axis=3))
    np.savez(root / "large.npz", pixels.repeat(2, axis=1).repeat(2, axis=2))
    np.savez(root / "three.npz", pixels[:3])
    np.savez(root / "floats.npz", pixels / 255)
    np.savez(root / "statistics.npz", mu=np.zeros(2048))
    (root / "empty").mkdir()
    (root / "folder" / "deep").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(root / "folder" / "deep" / f"{number:02d}.png")
    return root


def evaluate(sets, *names: str, **flags) -> Run:
    settings = {"features": sets / "classifier.pth", "splits": 2, "kid_subset_size": 8, "gpu": "cpu", "num_workers": 1}
    return run_script("evaluate-samples", *(sets / name for name in names), **{**settings, **flags})


def test_folders_and_arrays_are_the_same_images(sets):
    network = FeatureNetwork(str(sets / "classifier.pth"), CPU)
    folder, array = (network(open_images(str(sets / name))) for name in ("folder", "same.npz"))
    assert np.array_equal(folder["pooled"], array["pooled"])
    assert {name: values.shape for name, values in folder.items()} == {"pooled": (12, 8), "logits": (12, 4)}


def test_the_table_says_whose_features_they_are(sets, tmp_path):
    run = evaluate(sets, "same.npz", "other.npz", reference=sets / "folder", json=tmp_path / "figures.json")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in succeeded(run).out.splitlines()]
    classifier = f" (classifier {sets / 'classifier.pth'})"
    names = [f"{name}{classifier}" for name in ("IS", "FID", "sFID", "precision", "recall", "KID")]
    assert [row[0] for row in rows[2:]] == [*names, "images"]
    assert rows[0][1:] == [str(sets / name) for name in ("same.npz", "other.npz")]
    values = {row[0].removesuffix(classifier): row[1:] for row in rows[2:]}
    assert abs(float(values["FID"][0])) < 1e-6 < float(values["FID"][1]) and values["precision"][0] == "1"
    assert values["sFID"] == ["undefined"] * 2 and values["images"] == ["12", "12"]


@pytest.mark.parametrize(
    ("names", "flags", "said"),
    [
        (["same.npz"], {"splits": 13}, "--splits 13: there are 12 images"),
        (["three.npz"], {"reference": "folder"}, "precision and recall need 4 images, there are 3"),
        (["same.npz"], {"reference": "folder", "kid_subset_size": 13}, "--kid_subset_size 13: a set has 12 images"),
        (["colour.npz"], {}, "colour.npz: images of (3, 16, 16)"),
        (["same.npz", "large.npz"], {}, "large.npz: images of (1, 32, 32)"),
        (["same.npz"], {"reference": "empty"}, "empty: no image in it or below it"),
        (["floats.npz"], {}, "float64 (12, 16, 16, 1), expected uint8"),
        (["statistics.npz"], {}, "statistics.npz: no images in it"),
        (["same.npz"], {"reference": "folder", "dataset": "mnist"}, "give one of them"),
    ],
)
def test_refusals_are_one_line(sets, names, flags, said):
    flags = {key: sets / value if key == "reference" else value for key, value in flags.items()}
    assert said in refusal(evaluate(sets, *names, **flags))


@pytest.mark.parametrize("flags", [{}, {"dataset": "folder"}])
def test_without_a_reference_and_with_a_data_set(sets, flags):
    flags = flags | {"data_dir": sets / "folder"} if flags else {}
    lines = succeeded(evaluate(sets, "same.npz", **flags)).out.splitlines()
    names = [line.split("|")[1].split()[0] for line in lines[2:]]
    assert names == (["IS", "FID", "sFID", "precision", "recall", "KID", "images"] if flags else ["IS", "images"])
    assert not flags or abs(float(lines[3].split("|")[2])) < 1e-6  # the same images
