"""Drawn faces: determinism, correlations, true counterfactuals and their regions, the folder, the script."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dime.core.datasets import ATTRIBUTES
from dime.core.drawn_faces import DRAWN, Correlation, Face, counterfactual, draw, folder, labels_of, region, sample_face
from dime.core.drawn_faces.drawing import counterfactual_sheet
from dime.core.drawn_faces.face import EXCLUSIVE, HAIR_COLOURS, natural_probability
from dime.core.drawn_faces.folder import Plan, load_faces, write_folder
from dime.core.errors import InputError
from dime.core.photos import fitted
from dime.core.training.script import open_part
from tests.helpers import golden
from tests.worlds import refusal, run_script, succeeded

FACES = [sample_face(0, index) for index in range(16)]
MANY = [sample_face(3, index) for index in range(3000)]
FEW = [FACES[index] for index in (2, 3, 9, 15)]  # bald and old; a man; a smiling woman in a hat; lipstick, bangs

drawing = lru_cache(maxsize=200)(draw)


def pixels(face: Face) -> np.ndarray:
    return np.asarray(drawing(face), np.int16)


def small(face: Face) -> np.ndarray:
    return np.asarray(fitted(drawing(face), 64), np.float32)


def assert_share(found: list[bool], p: float) -> None:
    assert abs(np.mean(found) - p) < 4 * np.sqrt(p * (1 - p) / len(found))  # four standard errors


def test_a_face_is_determined_by_seed_and_index():
    assert sample_face(0, 5) == FACES[5] != sample_face(1, 5)
    assert np.array_equal(np.asarray(draw(sample_face(0, 5)), np.int16), pixels(FACES[5]))
    assert len({(f.yaw, f.skin_tone, f.hair_tint) for f in MANY}) == len(MANY)
    for face in FACES:
        assert Face.from_dict(json.loads(json.dumps(face.to_dict()))) == face
    other_version = {name: value for name, value in FACES[0].to_dict().items() if name != "yaw"}
    with pytest.raises(InputError, match="yaw"):
        Face.from_dict(other_version)
    # Small differences in rounding between machines are fine, another drawing is not: raise DRAWING_VERSION then.
    tiny = np.stack([np.asarray(fitted(drawing(face), 32), np.int16) for face in FACES[:8]])
    assert np.abs(tiny - golden("drawn_faces")["thumbnails"]).max() <= 2
    large = draw(FACES[0], (356, 436)).resize((178, 218), Image.Resampling.BOX)
    assert np.abs(np.asarray(large, np.int16) - pixels(FACES[0])).mean() < 4  # grain and edges differ


def test_natural_habits():
    for face in MANY:
        assert len(face.has & set(HAIR_COLOURS)) <= 1
        assert not any(len(group & face.has) > 1 and "Bald" in face.has for group in EXCLUSIVE)
        assert "Male" in face.has or ("No_Beard" in face.has and "Mustache" not in face.has)
    for name, given in (("Smiling", "Male"), ("Eyeglasses", "Young"), ("Wearing_Earrings", "Male")):
        for having in (True, False):
            group = [name in face.has for face in MANY if (given in face.has) == having]
            assert_share(group, natural_probability(name, {given} if having else set()))
    for name in DRAWN:
        assert 0.04 < np.mean([name in face.has for face in MANY]) < 0.96, name


@pytest.mark.parametrize(
    "text", ["Smiling:Eyeglasses=0.9", "Male:Smiling=0.8", "Young:Blond_Hair=0.75", "Eyeglasses:Bald=0.1"]
)
def test_a_planted_correlation_holds(text):
    planted = Correlation.parse(text)
    assert str(planted) == text
    faces = [sample_face(3, index, [planted]) for index in range(len(MANY))]
    for having in (True, False):
        group = [(planted.follower in f.has) == having for f in faces if (planted.leader in f.has) == having]
        assert_share(group, planted.agreement)
    if text == "Smiling:Eyeglasses=0.9":  # the follower changes and nothing else, for nothing depends on it
        for face, other in zip(MANY, faces, strict=True):
            assert other.has ^ face.has <= {"Eyeglasses"} and replace(other, has=face.has) == face
        assert sum(other != face for face, other in zip(MANY, faces, strict=True)) > 500


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["Smiling:Eyeglasses"], "expected LEADER"),
        (["Smiling:Eyeglasses=1.5"], "0..1"),
        (["Smile:Eyeglasses=0.9"], "no attribute of CelebA"),
        (["Smiling:Attractive=0.9"], "is not drawn"),
        (["Smiling:Smiling=0.9"], "freely"),
        (["Smiling:Male=0.9"], "circle .*Male -> .*Smiling"),
        (["Smiling:Eyeglasses=0.9", "Young:Eyeglasses=0.9"], "cannot both"),
        (["Smiling:Blond_Hair=0.9", "Young:Black_Hair=0.9"], "cannot both"),
    ],
)
def test_bad_and_contradicting_correlations(texts, message):
    with pytest.raises(InputError, match=message):
        sample_face(0, 0, [Correlation.parse(text) for text in texts])


UPPER = ("Narrow_Eyes", "Bushy_Eyebrows", "Bangs", "Wearing_Hat")
LOWER = ("Smiling", "Mouth_Slightly_Open", "Wearing_Lipstick", "Mustache", "Rosy_Cheeks", "No_Beard")
LOWER += ("Wearing_Earrings",)
"""What leaves the lower, or the upper part of the picture as it is, whatever the pose."""


@pytest.mark.parametrize("name", DRAWN)
def test_counterfactual_changes_one_attribute_visibly_and_in_its_place(name):
    for face in FEW:
        other = counterfactual(face, name)
        assert (name in other.has) != (name in face.has)
        if name not in (*HAIR_COLOURS, "Bald", "Bangs"):
            assert replace(other, has=face.has) == face and other.has ^ face.has == {name}
        changed, mask = (pixels(face) != pixels(other)).any(2), region(face, name)
        assert mask.shape == (218, 178) and mask.dtype == bool
        assert not (changed & ~mask).any() and 0.001 < mask.mean() < 0.5
        if not (name == "Bangs" and "Bald" in face.has):
            assert not (name in UPPER and mask[135:].any()) and not (name in LOWER and mask[:90].any())
        difference = np.abs(small(face) - small(other)).mean(2)
        assert np.sort(difference.ravel())[-10:].mean() > 12  # ten pixels of 64x64 that differ plainly
        hidden = "Bald" in face.has and name in (*HAIR_COLOURS, "Bangs")
        if not hidden and not (name == "Bald" and "Bangs" in face.has):  # twice gives the first face again
            again = counterfactual(other, name)
            assert again.has == face.has and np.array_equal(pixels(again), pixels(face))


def test_hair_colours_and_baldness_give_way_to_each_other():
    face = next(f for f in MANY if "Black_Hair" in f.has)
    assert counterfactual(face, "Blond_Hair").has == face.has - {"Black_Hair"} | {"Blond_Hair"}
    without = counterfactual(face, "Black_Hair")
    assert without.hair == face.other_hair and "Black_Hair" not in without.has
    bald = next(f for f in MANY if "Bald" in f.has and f.hair in HAIR_COLOURS)
    assert counterfactual(bald, "Bald").has == bald.has - {"Bald"} | {bald.hair}
    assert counterfactual(bald, "Bangs").has == bald.has - {"Bald"} | {bald.hair, "Bangs"}
    assert counterfactual(bald, "Gray_Hair").has == bald.has - {"Bald"} | {"Gray_Hair"}
    fringe = next(f for f in MANY if "Bangs" in f.has and f.hair in HAIR_COLOURS)
    assert counterfactual(fringe, "Bald").has == fringe.has - {"Bangs", fringe.hair} | {"Bald"}
    with pytest.raises(InputError, match="is not drawn"):
        counterfactual(face, "Attractive")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, Plan]:
    path = tmp_path_factory.mktemp("faces") / "set"
    plan = Plan(seed=2, num_train=40, num_val=3, num_test=2, correlations=(Correlation("Smiling", "Young", 0.8),))
    assert write_folder(path, plan, num_workers=2)
    return path, plan


def test_folder_is_read_like_celeba_and_knows_its_faces(drawn, tmp_path):
    path, plan = drawn
    faces = load_faces(path)
    assert faces == [plan.face(index) for index in range(45)]
    for partition, count, first in (("train", 40, 0), ("val", 3, 40), ("test", 2, 43)):
        data = open_part("CelebA", str(path), partition, 64)
        assert len(data) == count and data.load(0).shape == (3, 64, 64)
        labels = labels_of(faces[first])
        assert tuple(labels) == ATTRIBUTES and {name for name in labels if labels[name]} == faces[first].has
        assert data.conditions(0).bool().tolist() == list(labels.values())
    table = pd.read_csv(path / "list_attr_celeba.csv")
    assert list(table.columns) == ["image_id", *ATTRIBUTES] and table.image_id[0] == "000001.jpg"
    assert set(np.unique(table.iloc[:, 1:])) == {-1, 1}
    assert (table[[name for name in ATTRIBUTES if name not in DRAWN]] == -1).all(axis=None)
    with Image.open(path / "img_align_celeba" / "000045.jpg") as picture:
        assert picture.size == (178, 218) and picture.mode == "RGB"
        assert np.abs(np.asarray(picture, np.int16) - pixels(faces[44])).mean() < 4  # JPEG
    write_folder(tmp_path / "few", replace(plan, num_train=5, num_val=0, num_test=0), num_workers=1)
    for few in (tmp_path / "few" / "img_align_celeba").iterdir():  # workers and counts do not matter
        assert few.read_bytes() == (path / "img_align_celeba" / few.name).read_bytes()


def test_the_same_again_does_nothing_and_anything_else_is_refused(drawn, tmp_path, monkeypatch):
    path, plan = drawn
    monkeypatch.setattr(folder, "draw", None)  # drawing anything would fail
    assert write_folder(path, plan) is False
    with pytest.raises(InputError, match="seed = 2, not 3"):
        write_folder(path, replace(plan, seed=3))
    (tmp_path / "notes.txt").write_text("mine")
    for other in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="something else"):
            write_folder(other, Plan(num_val=1))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="no faces"):
        write_folder(tmp_path / "none", Plan())
    with pytest.raises(InputError, match="not found"):
        load_faces(tmp_path)
    (tmp_path / "faces.jsonl").write_text("{half a li")
    with pytest.raises(InputError, match="damaged"):
        load_faces(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(TypeError, match="not callable"):  # a failure leaves nothing
        write_folder(empty, Plan(num_val=1))
    assert not any(empty.iterdir()) and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    assert write_folder(empty, Plan(num_val=1)) and len(load_faces(empty)) == 1


def test_script(tmp_path):
    flags = ["--output_path", tmp_path / "set", "--num_train", 2, "--num-val", 1, "--num_workers", 1]
    flags += ["--correlate", "Smiling:Eyeglasses=1", "--correlate", "Young:Bangs=0"]
    assert "3 faces" in succeeded(run_script("make-drawn-faces", *flags, "--contact_sheet", tmp_path / "sheet.png")).out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.size == (3 * 132 + 4, 132 + 4)
    assert counterfactual_sheet(FACES[:1], ["Smiling", "Bald"]).size == (150 + 3 * 132 + 4, 2 * 132 + 4)
    for face in load_faces(tmp_path / "set"):
        assert ("Smiling" in face.has) == ("Eyeglasses" in face.has)
        assert ("Young" in face.has) != ("Bangs" in face.has)
    assert "already there" in run_script("make-drawn-faces", *flags).out
    line = refusal(run_script("make-drawn-faces", "--output_path", tmp_path / "none", "--correlate", "Smiling=0.9"))
    assert line.startswith("make-drawn-faces.py: error: ") and "expected LEADER" in line
