"""The report of an evaluation in each of its forms, and what keeps its figures from being compared."""

from __future__ import annotations

import csv
import io
import json

from dime.core.metrics.measurement import Measurement
from dime.core.metrics.protocol import METRIC_NAMES
from dime.core.metrics.report import PUBLISHED, Report, as_csv, as_json, caveats, markdown
from dime.core.results import ResultTree

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
