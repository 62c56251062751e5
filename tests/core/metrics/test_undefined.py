"""A value that does not exist is never a number, on trees of flat grey images; the report in each of its forms."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dime.core.errors import InputError
from dime.core.guidance import Binary
from dime.core.metrics.features import Machine
from dime.core.metrics.metric import Context, Measurement, Metric
from dime.core.metrics.protocol import METRIC_NAMES, METRICS, evaluate
from dime.core.metrics.report import PUBLISHED, Report, as_csv, as_json, caveats, markdown
from dime.core.results import ResultTree
from tests.helpers import CPU
from tests.metric_world import BOTH_WAYS, POISON, grey_of, make_tree
from tests.worlds import run_script


def measure(trees: list[ResultTree], **flags) -> Report:
    weights = trees[0].output_path / "weights"
    weights.touch()
    given = {"seeds": trees, "celeba_path": "celeba", "inception_weights": weights}
    return evaluate(Context(Machine(CPU), **(given | flags)), trees)


def reasons(report: Report) -> dict[str, str]:
    """Of each undefined value, why; table, JSON and the list below the table must say the same."""
    measured = report.measurements["a"]
    for name, content in json.loads(as_json(report))["measurements"]["a"].items():
        assert (content["value"] is None) == (measured[name].value is None) == ("reason" in content)
    undefined = {name: m.reason for name, m in measured.items() if m.value is None}
    text = markdown(report)
    for name, reason in undefined.items():
        cells = next(line for line in text.splitlines() if line.startswith(f"| {name} ")).split("|")
        assert cells[2].strip().startswith("undefined")
        assert any(name in line and "undefined: " + reason in line for line in report.missing["a"])
    assert "nan" not in as_json(report).lower() and " nan" not in text
    return undefined


EVERY = {"flip rate", "FVA", "FS", "MNAC", "CD", "MAD", "COUT", "FID", "sFID", "sigma_L"}


def test_everything_has_a_value(tmp_path, networks):
    report = measure(make_tree(tmp_path, BOTH_WAYS))
    assert any("CD of a: 2 attributes never change" in line for line in report.caveats["a"])
    assert any("CD of a: rests on 6 informative images" in line for line in report.caveats["a"])
    assert set(report.measurements["a"]) == EVERY and not reasons(report)
    nobody = measure(make_tree(tmp_path, BOTH_WAYS), partition="inc")
    assert set(reasons(nobody)) == EVERY


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        pytest.param(
            BOTH_WAYS[:1], {"CD": "query attribute never varies", "FID": "2 images", "sFID": "2 images"}, id="one"
        ),
        pytest.param(BOTH_WAYS[1::2], {"CD": "query attribute never varies"}, id="one direction"),
        pytest.param([("CC/CCF", g, g) for _, g, _ in BOTH_WAYS], {"CD": "query attribute never varies"}, id="equal"),
        pytest.param([("CC/CCF", 90, 90)] * 5, dict.fromkeys(("FVA", "FS", "CD", "FID", "sFID"), ""), id="same"),
        pytest.param(
            [("CC/ICF", g, c) for _, g, c in BOTH_WAYS],
            dict.fromkeys(("FVA", "FS", "MNAC", "CD", "FID", "sFID"), "reached its target"),
            id="no flip",
        ),
        pytest.param(
            [(f"IC/{'CCF' if i < 3 else 'ICF'}", g, c) for i, (_, g, c) in enumerate(BOTH_WAYS)],
            {"COUT": "a correctly classified image", "sFID": "in a half of the images"},
            id="all misjudged, three flips",
        ),
        pytest.param(
            [*BOTH_WAYS[1:], ("CC/CCF", 20, POISON)],
            dict.fromkeys(("MNAC", "CD", "MAD", "FID", "sFID"), "0000011.png: the network gives no finite")
            | dict.fromkeys(("FVA", "FS"), "0000011.png: the network gives no finite")
            | dict.fromkeys(("COUT", "sigma_L"), "1 of its 12 images have no value"),
            id="NaN in one image",
        ),
    ],
)
def test_what_is_undefined_says_so(tmp_path, networks, images, expected):
    report = measure(make_tree(tmp_path, images))
    found = reasons(report)
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert reason in found[name], (name, found[name])


def test_networks_that_do_not_fit(tmp_path, networks):
    networks["faces.load_vggface2"] = networks["fid.load_inception"] = lambda x: torch.ones(len(x), 3)
    networks["mnac.load_oracle"] = lambda x: (grey_of(x), grey_of(x).expand(-1, 12))
    report = measure(make_tree(tmp_path, BOTH_WAYS))
    found = reasons(report)
    assert found.keys() == {"FVA", "FS", "FID", "sFID"} and all("the same features" in why for why in found.values())
    assert sum("has 12 outputs, but CelebA has 40 attributes" in line for line in report.missing["a"]) == 2
    report = measure(make_tree(tmp_path, BOTH_WAYS, CLASSES))
    assert sum("has 40 outputs, but a explains 3 classes" in line for line in report.missing["a"]) == 2


def test_the_script_says_what_the_protocol_says(tmp_path, networks):
    """One direction: the same words on stderr and in evaluate.py's list, no number, exit 0."""
    trees = make_tree(tmp_path, BOTH_WAYS[1::2])
    run = run_script(
        "compute_CD",
        *["--output-path", tmp_path, "--exp-name", "a", "--celeba-path", "celeba", "--gpu", "cpu"],
        *["--json", tmp_path / "cd.json"],
    )
    assert (run.code, run.out) == (0, "CD Result: undefined\n")
    assert run.err.splitlines() == [line for line in measure(trees).missing["a"] if line.startswith("CD")]
    assert json.loads((tmp_path / "cd.json").read_text())["CD"]["value"] is None
    assert (tmp_path / "Results/a/CD.png").read_bytes().startswith(b"\x89PNG")


CLASSES = "decision: multiclass\nclasses: [cat, dog, cow]\ndataset: folder\n"


class Three(torch.nn.Module):
    """Three classes, whose logits are 0, g and -g for an image of grey 128 + 50 g."""

    num_outputs, names = 3, ["cat", "dog", "cow"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (grey_of(x) - 128) / 50 * torch.tensor([0.0, 1.0, -1.0])


def test_classes(tmp_path, networks):
    """MAD is the change of the target's softmax; CD and MNAC say what they need; the rest works as it does."""
    networks["metric.load_classifier"] = Three()
    report = measure(trees := make_tree(tmp_path, BOTH_WAYS, CLASSES))
    assert set(report.measurements["a"]) == EVERY - {"CD", "MNAC"} and not reasons(report)
    logits = (np.array([greys for _, *greys in BOTH_WAYS])[..., None] - 128) / 50 * np.array([0, 1, -1])
    p = (np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))[..., 1]  # of the target, class 1
    # 1e-6: float32
    assert report.measurements["a"]["MAD"].value == pytest.approx(np.abs(p[:, 1] - p[:, 0]).mean(), abs=1e-6)
    missing = " ".join(report.missing["a"])
    assert "CD: needs one of CelebA's 40 attributes" in missing
    assert "MNAC: needs images of CelebA and the oracle of its 40 attributes" in missing
    path = tmp_path / "Results/a/CC/CCF/Info/0000003.txt"
    for info in ("label: 0", "target: cat", None):
        path.unlink() if info is None else path.write_text(info)
        assert "0000003.txt: names no target" in reasons(measure(trees))["MAD"]


RECORDED = """dataset: bdd
query_label: 2
classifier_path: mine.onnx
classifier_size: 32
classifier_mean: [0.5, 0.4, 0.3]
"""


def test_the_classifier_is_the_one_that_was_explained(tmp_path, monkeypatch):
    """Loaded as config.yaml says, once for all experiments; of other images, query_label counts its outputs."""
    loaded = []
    monkeypatch.setattr("dime.core.metrics.metric.load_classifier", lambda *a, **k: loaded.append((a, k)) or Three())
    trees, context = make_tree(tmp_path, BOTH_WAYS[:1], RECORDED), Context(Machine(CPU))
    assert [context.explained(tree)[1] for tree in trees] == [Binary(2), Binary(2)]
    described = {"size": 32, "mean": (0.5, 0.4, 0.3), "std": None, "value_range": None, "trust": False}
    assert loaded == [(("mine.onnx", CPU), described)]
    moved = Context(Machine(CPU), classifier_path="moved.onnx", trust_classifier=True)
    moved.explained(trees[0])
    assert loaded[1:] == [(("moved.onnx", CPU), described | {"trust": True})]
    monkeypatch.setattr(Three, "num_outputs", 1)
    assert Context(Machine(CPU)).explained(trees[0])[1] == Binary(0)  # the one output was asked, whatever its number


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("classifier_path: python:evil:make\n", "runs code"),
        ("classifier_path: models/demo/classifier.safetensors\nclassifier_mean: [x]\n", "describes its input wrongly"),
        ("classifier_path: [1]\n", "models/classifier.pth"),
    ],
)
def test_a_strangers_configuration_runs_nothing(tmp_path, config, expected):
    [tree, _] = make_tree(tmp_path, BOTH_WAYS[:1], config)
    with pytest.raises(InputError, match=expected):
        Context(Machine(CPU)).explained(tree)


def test_the_metric_of_the_documentation(tmp_path):
    """A file of one's own is all that it takes; with robust=True it is computed only when asked for."""
    code = (Path(__file__).parents[3] / "docs/metrics.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code, scope := {})
    metric: Metric = scope["BRIGHTNESS"]
    trees, context = make_tree(tmp_path, BOTH_WAYS), Context(Machine(CPU))
    expected = np.mean([cf_grey - grey for _, grey, cf_grey in BOTH_WAYS])
    found = evaluate(context, trees, metrics=[*METRICS[:1], metric])
    assert found.measurements["a"]["brightness"].value == pytest.approx(expected, abs=1e-4)  # float32
    assert "| brightness" in markdown(found)
    robust = replace(metric, robust=True)
    assert not evaluate(context, trees, metrics=[robust]).measurements["a"]
    assert evaluate(context, trees, True, [robust]).measurements == {
        exp: {"brightness": measured["brightness"]} for exp, measured in found.measurements.items()
    }


REPORT = Report(
    measurements={
        "a": {"FVA": Measurement("FVA", 0.5, 12, (0.25, 0.75)), "FID": Measurement("FID", 3.25, 12)},
        "b/c": {"FVA": Measurement("FVA", 1.0, 11, (1.0, 1.0)), "FID": Measurement("FID", None, 0, reason="one image")},
    },
    missing={"a": ["MNAC: oracle.pth: no such file"], "b/c": ["MNAC: oracle.pth: no such file", "CD of b/c: none"]},
    caveats={"a": ["few images", "JPEG"], "b/c": ["JPEG"]},
    rows=METRIC_NAMES,
)


def test_markdown():
    lines = markdown(REPORT, ["DiME"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["metric", "a", "b/c", "DiME (paper)"]
    assert cells[2] == ["FVA", "0.5 [0.25, 0.75] (12)", "1 [1, 1] (11)", "0.983"]
    assert cells[3] == ["FID", "3.25 (12)", "undefined", "3.17"]
    assert len({len(line) for line in lines[:4]}) == 1  # columns are aligned
    assert lines[lines.index("Not computed:") + 2 :][:2] == ["- MNAC: oracle.pth: no such file", "- CD of b/c: none"]
    assert [line for line in lines if line.startswith("- ")][2:] == ["- few images", "- JPEG"]
    text = markdown(Report({"a": REPORT.measurements["a"]}, {"a": []}, {"a": []}, METRIC_NAMES))
    assert "Not computed" not in text and "Compare" not in text
    own = REPORT.of("b/c")
    assert list(own.measurements) == ["b/c"] and own.caveats == {"b/c": ["JPEG"]}
    assert "CD of b/c: none" in markdown(own) and "CD of b/c: none" not in markdown(REPORT.of("a"))
    assert {name for figures in PUBLISHED.values() for name in figures} <= set(METRIC_NAMES)


def test_csv_and_json_hold_the_same():
    rows = list(csv.DictReader(io.StringIO(as_csv(REPORT))))
    assert [(row["experiment"], row["metric"], row["value"], row["low"], row["n"]) for row in rows] == [
        ("a", "FVA", "0.5", "0.25", "12"),
        ("a", "FID", "3.25", "", "12"),
        ("b/c", "FVA", "1.0", "1.0", "11"),
        ("b/c", "FID", "", "", "0"),
    ]
    content = json.loads(as_json(REPORT))
    assert content["measurements"]["a"]["FVA"] == {"name": "FVA", "value": 0.5, "n": 12, "interval": [0.25, 0.75]}
    undefined = {"name": "FID", "value": None, "n": 0, "interval": None, "reason": "one image"}
    assert content["measurements"]["b/c"]["FID"] == undefined
    assert content["missing"] == REPORT.missing and content["caveats"] == REPORT.caveats


def test_the_mini_validation_set_is_a_caveat(tmp_path):
    tree = ResultTree(tmp_path, "exp")
    tree.create()
    tree.report("config.yaml", 2, 1).write_text("dataset: CelebA\n")
    assert caveats(tree) == []
    tree.report("config.yaml", 2, 0).write_text("dataset: CelebAMV\n")
    assert "mini-validation" in caveats(tree)[0]
    tree.report("config.yaml", 2, 0).write_text("[")
    assert caveats(tree) == []
