"""The report's page in a headless browser: its view of the page after the scripts have run.

The browser's clock depends on the machine's load, so these tests run where DIME_BROWSER_TESTS asks for them.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.core.report.test_report import make_report
from tests.metric_world import make_experiment, record
from tests.worlds import run_command, succeeded

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
# the last but one: milliseconds of the page's own clock, which runs as fast as it can
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --window-size=1200,800 --virtual-time-budget=5000
    --enable-logging=stderr""".split()  # noqa: SIM905
IDS = range(8)
HOSTILE = "<img src=x onerror=document.title='owned'>"

pytestmark = [
    pytest.mark.skipif(not os.environ.get("DIME_BROWSER_TESTS"), reason="DIME_BROWSER_TESTS is not set"),
    pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(NAMES)}"),
]


def page_after_scripts(path: Path, fragment: str = "") -> str:
    """The page's document once its scripts have run; fails where one of them raised an error."""
    with tempfile.TemporaryDirectory() as profile:
        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"{path.as_uri()}#{fragment}"]
        done = succeeded(run_command(command, timeout=120))
    assert "Uncaught" not in done.err, done.err
    return done.out


def title(document: str) -> str:
    return re.search(r"<title>(.*?)</title>", document, re.DOTALL)[1]


def shown(document: str) -> list[int]:
    return [int(id) for id in re.findall(r'<li class="card" data-id="(\d+)"', document)]


def with_script(page: Path, script: str, policy: bool = False) -> Path:
    """A copy of the page in which a script of ours runs last, with or without the page's security policy."""
    text = page.read_text()
    if not policy:
        text, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert found == 1
    copy = page.with_name(f"copy-{page.name}")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return copy


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = make_experiment(tmp_path_factory.mktemp("report"), "exp", IDS, with_frames=[1, 5])
    succeeded(make_report(tree.output_path, "exp"))
    return tree.report("report.html")


def test_the_gallery_and_the_detail_view(page):
    document = page_after_scripts(page, "id=5")
    assert shown(document) == list(IDS)
    gallery, detail = document.split("<dialog")
    assert gallery.count('alt="counterfactual of ') == len(IDS)
    assert f"{len(IDS)} of {len(IDS)} images" in document
    assert "0.900 → 0.250" in document and "CCF ✓" in document
    assert not re.search(r'<img(?![^>]*alt=")', document)
    assert " open" in detail[: detail.index(">")]
    assert "x_t, the clean estimate: all 5 steps" in detail and "z_t, the noisy image: all 5 steps" in detail
    assert "not Smiling" in detail and "scale used" in detail and "0.900 → 0.250" in detail


def test_filters_and_sorting(page):
    expected = {  # what stands behind the # of the address -> the ids shown, in order
        "flipped=ICF": [3, 7],
        "target=1&flipped=CCF": [0, 2, 4, 6],
        "find=0000005": [5],
        "sort=l_1": sorted(IDS, key=lambda id: record(id).l_1),
        "sort=change": sorted(IDS, key=lambda id: record(id).mad),
        "sort=l_1&order=largest": sorted(IDS, key=lambda id: -record(id).l_1),
        "sort=change&flipped=ICF&correct=IC": [],
        "sort=nonsense&exp=9": list(IDS),
    }
    script = """
      (async () => {
        const seen = [];
        for (const fragment of %s) {
          const changed = new Promise((resolve) => window.addEventListener("hashchange", resolve, { once: true }));
          location.hash = fragment;
          await changed;
          const ids = [...gallery.children].map((item) => Number(item.dataset.id));
          seen.push([ids, document.getElementById("empty").hidden]);
        }
        document.title = JSON.stringify(seen);
      })();
    """
    document = page_after_scripts(with_script(page, script % json.dumps(list(expected))))
    assert json.loads(title(document)) == [[ids, bool(ids)] for ids in expected.values()]


def test_keys_move_through_the_detail_view_and_close_it(page):
    script = """
      const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      const seen = [];
      const look = () => seen.push(detail.open ? document.getElementById("detail-title").textContent.slice(-1) : "-");
      look();
      for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft"]) { press(key); look(); }
      seen.push(detail.querySelectorAll(".film img").length);
      press("ArrowRight"); press("ArrowRight");
      seen.push(location.hash);
      press("Escape"); look();
      setTimeout(() => {
        seen.push(location.hash, document.activeElement.getAttribute("aria-label"));
        document.title = seen.join(" ");
      }, 50);
    """
    document = page_after_scripts(with_script(page, script), "flipped=CCF&id=1")
    assert title(document) == "1 2 4 2 1 0 0 #flipped=CCF&amp;id=2 - #flipped=CCF Image 2: details"


def test_several_experiments_absent_images_and_classes(tmp_path):
    for name, ids in (("a", [0, 1, 2]), ("b", [2, 3])):
        make_experiment(tmp_path, name, ids)
    succeeded(make_report(tmp_path, "a", "b"))
    page = tmp_path / "Results" / "a" / "report.html"
    assert shown(page_after_scripts(page)) == [0, 1, 2, 3]
    assert shown(page_after_scripts(page, "exp=1&flipped=ICF")) == [3]
    assert shown(page_after_scripts(page, "exp=1")) == [0, 1, 2, 3]
    for order in ("smallest", "largest"):  # b lacks 0 and 1
        assert set(shown(page_after_scripts(page, f"exp=1&sort=l_1&order={order}"))[2:]) == {0, 1}
    assert page_after_scripts(page).count('class="run absent"') == 3
    tree = make_experiment(tmp_path, "classes", IDS)
    tree.report("config.yaml").write_text("decision: multiclass\nclasses: [cat, dog]\n")
    succeeded(make_report(tmp_path, "classes", "--contact-sheet", 0))
    document = page_after_scripts(tree.report("report.html"), "pred=0&target=1")  # they are filtered by name
    assert shown(document) == [id for id in IDS if record(id).pred == 0]
    assert document.count('<option value="0">cat</option>') == 2 and "p(dog)" in document and "p(cat)" not in document


def test_thousands_of_images_are_made_when_they_come_into_view(tmp_path):
    make_experiment(tmp_path, "many", range(400))
    succeeded(make_report(tmp_path, "many", "--contact-sheet", 0))
    script = """
      const last = gallery.lastElementChild;
      const before = last.childElementCount;
      show(399);
      detail.close();
      setTimeout(() => { document.title = `${before} ${last.querySelectorAll("img").length}`; }, 50);
    """
    document = page_after_scripts(with_script(tmp_path / "Results" / "many" / "report.html", script))
    assert len(shown(document)) == 400
    assert title(document) == "0 3"  # closing the detail view leads to a card that was not there yet
    assert 12 <= document.count("<img") / 3 < 150  # of 400: what has been near a window of 1200x800


def test_hostile_names_files_and_scripts_run_nothing(page, tmp_path):
    tree = make_experiment(tmp_path, HOSTILE, range(3))
    tree.report("summary.yaml").write_text(f"n: {HOSTILE!r}\nFVA: {HOSTILE!r}\n")
    succeeded(make_report(tmp_path, HOSTILE, "--contact-sheet", 0))
    bare = with_script(tree.report("report.html"), "")  # without the policy, which would hide a lack of escaping
    for fragment in ("id=1", f"find={HOSTILE}&sort={HOSTILE}"):
        document = page_after_scripts(bare, fragment)
        assert title(document) != "owned" and "&lt;img src=x" in document and "<img src=" + "x" not in document
    for policy in (True, False):  # which stops scripts that are not the page's
        owned = title(page_after_scripts(with_script(page, "document.title = 'owned'", policy))) == "owned"
        assert owned == (not policy)
