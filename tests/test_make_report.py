"""make-report.py as a command."""

import io

import pytest
from PIL import Image

from dime.core.report.data import read_experiment
from dime.core.report.images import contact_sheet
from dime.core.results import ResultTree
from tests.metric_world import make_experiment
from tests.worlds import Run, refusal, run_script, succeeded


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
        assert found.tobytes() == contact_sheet(flips_first[:count]).tobytes()


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
