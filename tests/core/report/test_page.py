"""The page itself: what it holds, what it says about its limits, and that nothing in a file becomes markup."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from dime.core.errors import InputError
from dime.core.report.data import read_experiment
from dime.core.report.page import Limits, render
from dime.core.results import ResultTree
from tests.report_world import STEPS, make_experiment

SCRIPT_TAG = "</script><script>document.title='owned'</script>"
IMAGE_TAG = "<img src=x onerror=document.title='owned'>"


def data_of(page: str) -> dict:
    """What the page's script starts from."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def page_of(*trees: ResultTree, **limits: int) -> str:
    return render([read_experiment(tree) for tree in trees], Limits(**limits))


def test_every_image_has_its_pictures_and_figures(tmp_path):
    page = page_of(make_experiment(tmp_path, "smile/dime", range(6), [1, 4]))
    data = data_of(page)
    assert [image["id"] for image in data["images"]] == list(range(6))
    assert data["experiments"] == [{"name": "smile/dime", "attribute": "Smiling", "classes": None}]
    for image in data["images"]:
        (run,) = image["runs"]
        assert all(picture.startswith("UklGR") for picture in (image["input"], run["cf"], run["difference"]))  # RIFF
        assert set(run["info"]) >= {"orig_conf", "cf_conf", "scale", "l_1", "bkl", "target"}
        assert run["flipped"] == (image["id"] % 4 != 3) and run["changes"] is None
        strips = {kind: (strip["shown"], strip["of"]) for kind, strip in run["strips"].items()}
        assert strips == ({"x_t": (STEPS, STEPS), "z_t": (STEPS, STEPS)} if image["id"] in (1, 4) else {})
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # asks for nothing, lets no other script run
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe", markup)
    assert "http" not in re.sub(r'(?s)<script type="application/json".*?</script>', "", page).replace("http-equiv", "")
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-\S+'; script-src 'sha256-\S+'\"", page)


def test_experiments_stand_side_by_side_by_id_with_what_each_explains(tmp_path):
    trees = [make_experiment(tmp_path, name, ids) for name, ids in (("a", [1, 2]), ("b", [2, 5]), ("c", [2]))]
    trees[1].report("config.yaml").write_text("query_label: 39\n")
    trees[2].report("config.yaml").unlink()
    page = page_of(*trees)
    data = data_of(page)
    present = {image["id"]: [run is not None for run in image["runs"]] for image in data["images"]}
    assert present == {1: [True, False, False], 2: [True, True, True], 5: [False, True, False]}
    assert [(e["name"], e["attribute"]) for e in data["experiments"]] == [("a", "Smiling"), ("b", "Young"), ("c", None)]
    assert "of Smiling, Young</span>" in page


def test_classes_have_their_names(tmp_path):
    tree = make_experiment(tmp_path, "exp", range(6))
    tree.report("config.yaml").write_text("decision: multiclass\nquery_label: -1\nclasses: [tabby_cat, 7, <b>]\n")
    page = page_of(tree)
    (experiment,) = data_of(page)["experiments"]
    assert experiment["classes"] == ["tabby cat", "7", "<b>"] and experiment["attribute"] is None
    assert "<b>" not in page.replace("\\u003cb\\u003e", "") and ">of " not in page


def test_grey_images_and_figures_that_are_not_finite(tmp_path):
    tree = make_experiment(tmp_path, "exp", [0])
    for path in tmp_path.rglob("*.jpg"):
        Image.open(path).convert("L").save(path)
    info = next(tree.results.rglob("0000000.txt"))
    info.write_text(info.read_text().replace("BKL: 0.25", "BKL: nan"))
    (image,) = data_of(page_of(tree))["images"]
    assert image["input"] and image["runs"][0]["difference"] and "bkl" not in image["runs"][0]["info"]


def test_what_is_cut_is_said(tmp_path):
    tree = make_experiment(tmp_path, "exp", range(6), [1, 4])
    assert 'class="note"' not in page_of(tree).replace('<noscript><p class="note">', "")
    cut = page_of(tree, images=5, strips=2)
    assert [image["id"] for image in data_of(cut)["images"]] == [0, 1, 2, 3, 4]
    assert "shows the 5 images with the lowest ids of 6 (--max-images)" in cut
    assert "for the first 2 images only: 1 of the 2 that have saved steps (--film-strips)" in cut
    runs = [image["runs"][0] for image in data_of(cut)["images"]]
    assert runs[1]["strips"] and not runs[4]["strips"] and runs[4]["saved"] == ["x_t", "z_t"]


def test_large_images_are_reduced(tmp_path):
    tree = make_experiment(tmp_path, "exp", [0])
    small = page_of(tree, pixels=64)
    for path in [*tmp_path.rglob("CF/*.jpg"), *tmp_path.rglob("SM/*.jpg"), *tmp_path.rglob("Correct/*.jpg")]:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(path)
    # three pictures of 64x64 noise at about a byte per pixel
    assert len(page_of(tree, pixels=64)) - len(small) < 3 * 64 * 64


def test_tables_hold_the_files_figures(tmp_path):
    tree = make_experiment(tmp_path, "exp", range(6))
    measured = {"name": "FVA", "value": 0.98765, "n": 5, "interval": [0.9, 1.0]}
    undefined = {"value": None, "n": 3, "interval": None, "reason": "all flips go one way"}
    evaluation = {
        "measurements": {"exp": {"FVA": measured, "new": {"value": 1.5, "n": 3, "interval": None}, "CD": undefined}},
        "missing": {"exp": ["COUT: no weights"]},
        "caveats": {"exp": ["few images"]},
    }
    tree.report("evaluation.json").write_text(json.dumps(evaluation))
    Image.new("RGB", (40, 40), "white").save(tree.report("CD.png"))
    page = page_of(tree)
    assert re.findall(r">([^<]+)</td>", re.search(r"all images</th>(.*?)</tr>", page)[1])[0] == "6"
    assert "0.9877 [0.9, 1] (5)" in page and "1.5 (3)" in page and ">undefined (3)<" in page
    assert page.count("CD of exp: undefined: all flips go one way") == 1
    assert "Not computed: COUT: no weights" in page and "few images" in page
    assert page.count("data:image/webp;base64,UklGR") == 1


def test_text_from_files_is_escaped(tmp_path):
    tree = make_experiment(tmp_path, IMAGE_TAG, range(3))
    tree.report("summary.yaml").write_text(f"n: {SCRIPT_TAG!r}\nFVA: {IMAGE_TAG!r}\n{IMAGE_TAG!r}: 1\n")
    evaluation = {
        "measurements": {IMAGE_TAG: {SCRIPT_TAG: {"value": IMAGE_TAG, "n": SCRIPT_TAG, "interval": [IMAGE_TAG, 1]}}},
        "missing": {IMAGE_TAG: [SCRIPT_TAG]},
        "caveats": {IMAGE_TAG: [IMAGE_TAG]},
    }
    tree.report("evaluation.json").write_text(json.dumps(evaluation))
    page = page_of(tree)
    assert "owned" in page and IMAGE_TAG not in page and SCRIPT_TAG not in page and "<img src=x" not in page
    assert page.count("<script") == 2 and page.count("</script") == 2
    assert data_of(page)["experiments"][0]["name"] == IMAGE_TAG


@pytest.mark.parametrize(
    "place", ["CF/0000000.jpg", "SM/0000000.jpg", "Correct/0000000.jpg", "z_t/exp/000000/0002.jpg"]
)
def test_a_damaged_image_is_named(tmp_path, place):
    tree = make_experiment(tmp_path, "exp", [0], [0])
    (damaged,) = [path for path in tmp_path.rglob("*.jpg") if str(path).endswith(place)]
    damaged.write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(InputError, match=re.escape(place) + ": not a readable image"):
        page_of(tree)
