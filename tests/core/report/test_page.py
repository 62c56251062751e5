"""The page itself: what it holds, what it says about its limits, and that nothing in a file becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dime.core.errors import InputError
from dime.core.report.data import read_experiment
from dime.core.report.page import Limits, render
from tests.report_world import STEPS, make_experiment

SCRIPT_TAG = "</script><script>document.title='owned'</script>"
IMAGE_TAG = "<img src=x onerror=document.title='owned'>"


def data_of(page: str) -> dict:
    """What the page's script starts from."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def page_of(root: Path, names: list[str], **limits: int) -> str:
    return render([read_experiment(make_experiment(root, name, range(6), [1, 4])) for name in names], Limits(**limits))


def test_every_image_has_its_pictures_and_figures(tmp_path):
    data = data_of(page_of(tmp_path, ["smile/dime"]))
    assert [image["id"] for image in data["images"]] == list(range(6))
    assert data["experiments"] == [{"name": "smile/dime", "attribute": "Smiling", "classes": None}]
    for image in data["images"]:
        (run,) = image["runs"]
        assert all(picture.startswith("UklGR") for picture in (image["input"], run["cf"], run["difference"]))  # RIFF
        assert set(run["info"]) >= {"orig_conf", "cf_conf", "scale", "l_1", "bkl", "target"}
        assert run["flipped"] == (image["id"] % 4 != 3) and run["changes"] is None
        strips = {kind: (strip["shown"], strip["of"]) for kind, strip in run["strips"].items()}
        assert strips == ({"x_t": (STEPS, STEPS), "z_t": (STEPS, STEPS)} if image["id"] in (1, 4) else {})


def test_the_page_asks_for_nothing_and_lets_no_other_script_run(tmp_path):
    page = page_of(tmp_path, ["exp"])
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(|<link|<iframe", re.sub(r"<script.*?</script>", "", page, flags=re.S)
    )
    assert "http" not in re.sub(r'(?s)<script type="application/json".*?</script>', "", page).replace("http-equiv", "")
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-\S+'; script-src 'sha256-\S+'\"", page)


def test_experiments_stand_side_by_side_by_id(tmp_path):
    experiments = [
        read_experiment(make_experiment(tmp_path, name, ids)) for name, ids in (("a", [1, 2]), ("b", [2, 5]))
    ]
    data = data_of(render(experiments, Limits()))
    present = {image["id"]: [run is not None for run in image["runs"]] for image in data["images"]}
    assert present == {1: [True, False], 2: [True, True], 5: [False, True]}
    assert [experiment["name"] for experiment in data["experiments"]] == ["a", "b"]


def test_each_experiment_keeps_the_attribute_that_it_explains(tmp_path):
    trees = [make_experiment(tmp_path, name, [1]) for name in ("smile", "young", "unknown")]
    trees[1].report("config.yaml").write_text("query_label: 39\n")
    trees[2].report("config.yaml").unlink()
    page = render([read_experiment(tree) for tree in trees], Limits())
    assert [experiment["attribute"] for experiment in data_of(page)["experiments"]] == ["Smiling", "Young", None]
    assert "of Smiling, Young</span>" in page


def test_classes_have_their_names(tmp_path):
    tree = make_experiment(tmp_path, "exp", range(6))
    tree.report("config.yaml").write_text("decision: multiclass\nquery_label: -1\nclasses: [tabby_cat, 7, <b>]\n")
    page = render([read_experiment(tree)], Limits())
    (experiment,) = data_of(page)["experiments"]
    assert experiment["classes"] == ["tabby cat", "7", "<b>"] and experiment["attribute"] is None
    assert "<b>" not in page.replace("\\u003cb\\u003e", "") and ">of " not in page


def test_grey_images_are_shown(tmp_path):
    tree = make_experiment(tmp_path, "exp", [0])
    for path in tmp_path.rglob("*.jpg"):
        Image.open(path).convert("L").save(path)
    (image,) = data_of(render([read_experiment(tree)], Limits()))["images"]
    assert image["input"] and image["runs"][0]["difference"]


def test_what_is_cut_is_said(tmp_path):
    whole = page_of(tmp_path / "whole", ["exp"])
    assert 'class="note"' not in whole.replace('<noscript><p class="note">', "")
    cut = page_of(tmp_path / "cut", ["exp"], images=5, strips=2)
    assert [image["id"] for image in data_of(cut)["images"]] == [0, 1, 2, 3, 4]
    assert "shows the 5 images with the lowest ids of 6 (--max-images)" in cut
    assert "for the first 2 images only: 1 of the 2 that have saved steps (--film-strips)" in cut
    runs = [image["runs"][0] for image in data_of(cut)["images"]]
    assert runs[1]["strips"] and not runs[4]["strips"] and runs[4]["saved"] == ["x_t", "z_t"]


def test_large_images_are_reduced(tmp_path):
    tree = make_experiment(tmp_path, "exp", [0])
    small = render([read_experiment(tree)], Limits(pixels=64))
    for path in [*tmp_path.rglob("CF/*.jpg"), *tmp_path.rglob("SM/*.jpg"), *tmp_path.rglob("Correct/*.jpg")]:
        noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    large = render([read_experiment(tree)], Limits(pixels=64))
    assert len(large) - len(small) < 3 * 64 * 64  # three pictures of 64x64 noise at about a byte per pixel


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
    page = render([read_experiment(tree)], Limits())
    row = re.search(r"all images</th>(.*?)</tr>", page)[1]
    assert re.findall(r">([^<]+)</td>", row)[0] == "6"
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
    page = render([read_experiment(tree)], Limits())
    assert "owned" in page and IMAGE_TAG not in page and SCRIPT_TAG not in page and "<img src=x" not in page
    assert page.count("<script") == 2 and page.count("</script") == 2
    assert data_of(page)["experiments"][0]["name"] == IMAGE_TAG


def test_figures_that_are_not_finite_are_left_out(tmp_path):
    tree = make_experiment(tmp_path, "exp", [0])
    info = next(tree.results.rglob("0000000.txt"))
    info.write_text(info.read_text().replace("BKL: 0.25", "BKL: nan"))
    assert "bkl" not in data_of(render([read_experiment(tree)], Limits()))["images"][0]["runs"][0]["info"]


@pytest.mark.parametrize("kind", ["CF", "SM", "Correct", "x_t"])
def test_a_damaged_image_is_named(tmp_path, kind):
    experiment = read_experiment(make_experiment(tmp_path, "exp", [0], [0]))
    place = {"x_t": "x_t/exp/000000/0002.jpg"}.get(kind, f"{kind}/0000000.jpg")
    (damaged,) = [path for path in tmp_path.rglob("*.jpg") if str(path).endswith(place)]
    damaged.write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(InputError, match=re.escape(place) + ": not a readable image"):
        render([experiment], Limits())
