"""The tables of the truth benchmark, to the letter."""

from __future__ import annotations

from dime.core.metrics.measurement import Measurement
from dime.core.metrics.report import Report
from dime.core.truth.report import markdown

REPORT = Report(
    measurements={
        "a": {
            "flip rate": Measurement("flip rate", 0.875, 16, (0.75, 1.0)),
            "recovered": Measurement("recovered", -12.345, 15, (-14.0, -0.001)),
            "CD": Measurement("CD", 1.5, 14),
        },
        "(true cf)": {"recovered": Measurement("recovered", 1.0, 16, (1.0, 1.0))},
    },
    missing={"a": ["classifier of a: gone"]},
    caveats={"a": ["a: 1 images are misjudged"]},
)


def test_tables_in_full():
    text = markdown(REPORT, {"Right?": ("flip rate", "recovered", "absent"), "Shortcut?": ("CD",)})
    assert text.splitlines() == [
        "**Right?**",
        "",
        "|           | a                        | (true cf)         |",
        "| --------- | ------------------------ | ----------------- |",
        "| images    | 16                       | 16                |",
        "| flip rate | 0.88 [0.75, 1.00]        |                   |",
        "| recovered | -12.3 [-14.0, 0.00] (15) | 1.00 [1.00, 1.00] |",
        "",
        "**Shortcut?**",
        "",
        "|        | a    |",
        "| ------ | ---- |",
        "| images | 14   |",
        "| CD     | 1.50 |",
        "",
        "Cells: value [95 % bootstrap interval over images] (images, where not all).",
        "",
        "Not computed:",
        "",
        "- classifier of a: gone",
        "",
        "Left out:",
        "",
        "- a: 1 images are misjudged",
    ]
