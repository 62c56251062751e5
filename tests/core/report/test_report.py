"""The report: reading trees, its pictures, a page in which nothing in a file becomes markup, and the command."""

import base64
import io
import json
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from dime.core.errors import InputError
from dime.core.images import difference_map
from dime.core.report import images as pictures
from dime.core.report.data import read_experiment, with_changes
from dime.core.report.page import Limits, render
from dime.core.results import ResultTree
from tests.helpers import GOLDEN
from tests.metric_world import STEPS, make_experiment, record
from tests.worlds import Run, refusal, run_script, succeeded

SCRIPT_TAG = "</script><script>document.title='owned'</script>"
IMAGE_TAG = "<img src=x onerror=document.title='owned'>"


def data_of(page: str) -> dict:
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


def test_classes_have_their_names_and_grey_images_figures_that_are_not_finite(tmp_path):
    tree = make_experiment(tmp_path, "exp", range(6))
    tree.report("config.yaml").write_text("decision: multiclass\nquery_label: -1\nclasses: [tabby_cat, 7, <b>]\n")
    for path in tmp_path.rglob("*.jpg"):
        Image.open(path).convert("L").save(path)
    info = next(tree.results.rglob("0000000.txt"))
    info.write_text(info.read_text().replace("BKL: 0.25", "BKL: nan"))
    page = page_of(tree)
    (experiment,) = data_of(page)["experiments"]
    assert experiment["classes"] == ["tabby cat", "7", "<b>"] and experiment["attribute"] is None
    assert "<b>" not in page.replace("\\u003cb\\u003e", "") and ">of " not in page
    image = data_of(page)["images"][0]
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
    small = page_of(tree, pixels=64, strips=0)  # large images are reduced
    for path in [*tmp_path.rglob("CF/*.jpg"), *tmp_path.rglob("SM/*.jpg"), *tmp_path.rglob("Correct/*.jpg")]:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(path)
    # three pictures of 64x64 noise an image at about a byte per pixel
    assert len(page_of(tree, pixels=64, strips=0)) - len(small) < 6 * 3 * 64 * 64


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


def test_everything_that_is_there_is_read_and_nothing_else_is_needed(tmp_path):
    tree = make_experiment(tmp_path, "smile/dime", range(6), with_frames=[2])
    experiment = read_experiment(tree)
    assert list(experiment.images) == list(range(6))
    assert experiment.attribute == "Smiling" and experiment.summary["n"] == 6
    assert experiment.evaluation is None and experiment.plot is None
    image, expected = experiment.images[2], record(2)
    assert all(image.info[name] == getattr(expected, name) for name in ("orig_conf", "scale", "cf_pred", "l_1"))
    assert [path.name for path in image.frames["x_t"]] == [f"{step:04d}.jpg" for step in range(STEPS)]
    assert experiment.images[3].frames == {} and not experiment.images[3].pair.flipped
    for path in [*tree.results.rglob("*.txt"), *tree.results.glob("*.yaml"), *tree.results.rglob("SM/*.jpg")]:
        path.unlink()
    experiment = read_experiment(tree)
    assert experiment.summary is None and experiment.attribute is None
    assert all(image.info == {} and image.difference is None for image in experiment.images.values())
    image = experiment.images[0]  # a missing difference map is made
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in (image.pair.original, image.pair.counterfactual)]
    np.testing.assert_array_equal(np.asarray(pictures.difference_image(image)), difference_map(*pixels))
    empty = ResultTree(tmp_path, "empty")
    empty.create()
    with pytest.raises(InputError, match="holds no counterfactual yet"):
        read_experiment(empty)


def test_a_tree_of_the_published_code_has_six_figures(tmp_path):
    with tarfile.open(GOLDEN / "e2e_tree.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    experiment = read_experiment(ResultTree(tmp_path, "demo"))
    assert experiment.attribute is None  # it leaves no config.yaml
    for image in experiment.images.values():
        assert set(image.info) == {"label", "pred", "target", "cf_pred", "bkl", "l_1"}
        assert image.difference is not None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("summary.yaml", "evaluation.json") for content in (b"{ n: [", b"\xff\xfe\x00")),
        *(("config.yaml", b"[1, 2]"), ("evaluation.json", b"[1, 2]"), ("summary.yaml", b"just words")),
        ("CC/CCF/Info/0000001.txt", b"label: 1\nBKL: small"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, content):
    tree = make_experiment(tmp_path, "exp", range(2))
    tree.report(name).write_bytes(content)
    with pytest.raises(InputError, match=name + ".*(not readable|holds no table|BKL is 'small', expected a number)"):
        read_experiment(tree)


def test_attribute_changes_are_the_decisions_that_differ(tmp_path):
    experiment = read_experiment(make_experiment(tmp_path, "exp", range(4)))

    def logits(paths):
        rows = -torch.ones(len(paths), 40)
        for row, path in zip(rows, paths, strict=True):
            is_counterfactual = path.parent.name == "CF"
            row[31] = 1 if is_counterfactual else -1  # gained by all
            row[5] = -1 if is_counterfactual and path.stem == "0000002" else 1  # lost by the last
        return rows

    ids = [0, 1, 2, 9]  # of which another experiment has the last
    assert with_changes(experiment, ids, logits).changes == {0: [(31, 1)], 1: [(31, 1)], 2: [(5, -1), (31, 1)]}
    assert with_changes(experiment, [9], logits).changes == {}
    with pytest.raises(InputError, match="39 outputs"):
        with_changes(experiment, ids, lambda paths: torch.zeros(len(paths), 39))


def test_a_film_strip_has_both_ends_and_an_embedded_image_is_never_enlarged(tmp_path):
    greys = np.linspace(0, 240, 30).astype(int)
    paths = [tmp_path / f"{step:04d}.png" for step in range(30)]
    for path, grey in zip(paths, greys, strict=True):
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(path)
    strip = np.asarray(pictures.film_strip(paths))
    assert strip.shape == (96, 96 * 12, 3)
    assert strip[0, 0, 0] == greys[0] and strip[0, -1, 0] == greys[-1]
    assert (np.diff(strip[0, ::96, 0].astype(int)) > 0).all()
    image = Image.fromarray(np.full((40, 30, 3), (200, 30, 90), dtype=np.uint8))
    for pixels, size in ((None, (30, 40)), (128, (30, 40)), (20, (15, 20))):
        again = Image.open(io.BytesIO(base64.b64decode(pictures.embedded(image, pixels))))
        assert again.format == "WEBP" and again.size == size
        assert np.abs(np.asarray(again.convert("RGB"), float) - (200, 30, 90)).max() < 6  # lossy chroma


def test_the_contact_sheet_has_three_pictures_of_each_image(tmp_path):
    results = list(read_experiment(make_experiment(tmp_path, "exp", range(10))).images.values())
    size = pictures.SHEET_PIXELS
    whole, one = pictures.contact_sheet(results), pictures.contact_sheet(results[:1])
    assert whole.width > 8 * size and whole.height > 6 * size
    assert size < one.width < 2 * size and one.height > 3 * size
    cf = Image.open(results[0].pair.counterfactual).convert("RGB")
    expected = np.asarray(cf.resize((size, size), Image.Resampling.LANCZOS))
    left, top = one.width - size - 6, 6 + 18 + size + 6  # the second of the three
    np.testing.assert_array_equal(np.asarray(one)[top : top + size, left : left + size], expected)


def test_the_animation_ends_with_the_counterfactual(tmp_path):
    size = pictures.GIF_PIXELS
    result = read_experiment(make_experiment(tmp_path, "exp", [0], with_frames=[0])).images[0]
    with Image.open(io.BytesIO(pictures.denoising_animation(result))) as animation:
        frames = [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == STEPS + 1 and frames[0].shape == (size, 3 * size + 12, 3)
    last = frames[-1]
    np.testing.assert_array_equal(last[:, size + 6 : 2 * size + 6], last[:, -size:])
    cf = Image.open(result.pair.counterfactual).convert("RGB")
    expected = np.asarray(cf.resize((size, size), Image.Resampling.LANCZOS), float)
    assert np.abs(last[:, -size:] - expected).mean() < 30  # 256 colours and dithering, on noise
    assert np.abs(frames[0][:, -size:] - expected).mean() > 45


def make_report(*arguments: object) -> Run:
    return run_script("make-report", *arguments)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> ResultTree:
    return make_experiment(tmp_path_factory.mktemp("report"), "exp", range(8), with_frames=[1, 5])


def test_it_leaves_three_files_of_which_the_contact_sheet_begins_with_the_flips(tree, tmp_path):
    result = succeeded(make_report(tree.output_path, "exp", "--file", tmp_path / "new" / "page.html"))
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"page.html", "contact-sheet.png", "denoising.gif"}
    assert all(name in result.out for name in written)
    flips_first = [read_experiment(tree).images[id] for id in (0, 1, 2, 4, 5, 6, 3, 7)]
    for count in (1, 7):
        succeeded(make_report(tree.output_path, "exp", "--file", tmp_path / "p.html", "--contact-sheet", count))
        found = Image.open(io.BytesIO((tmp_path / "contact-sheet.png").read_bytes()))
        assert found.tobytes() == pictures.contact_sheet(flips_first[:count]).tobytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "no experiment lies there; experiments there: exp"),
        (["exp", "absent"], "no experiment lies there"),
        (["exp", "--gif", 2], "--gif 2: exp holds no saved steps of this image"),
        (["exp", "--oracle-path", "no-oracle.pth"], "no-oracle.pth"),
        (["exp", "--max-images", 0], "--max-images"),
    ],
)
def test_bad_input_is_one_line(tree, tmp_path, arguments, words):
    page = tmp_path / "page.html"
    assert words in refusal(make_report(tree.output_path, *arguments, "--gpu", "cpu", "--file", page))
    assert not page.exists()


def test_what_cannot_be_written_or_animated_is_said(tmp_path):
    tree = make_experiment(tmp_path, "exp", range(2))
    tree.report("report.html").mkdir()  # root may write into any folder
    assert "--file PAGE" in refusal(make_report(tmp_path, "exp"))
    elsewhere = tmp_path / "elsewhere/page.html"
    done = succeeded(make_report(tmp_path, "exp", "--file", elsewhere))
    assert str(elsewhere) in done.out and elsewhere.exists()
    make_experiment(tmp_path, "plain", range(2))
    result = make_report(tmp_path, "plain", "--contact-sheet", 0)
    assert result.code == 0 and "no saved steps to animate" in result.out
    assert [path.name for path in (tmp_path / "Results/plain").glob("*.*") if path.suffix != ".yaml"] == ["report.html"]
