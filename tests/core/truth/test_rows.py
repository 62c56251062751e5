"""Figures of the truth benchmark on pictures that are their own answer, what they cost, and the tables."""

from pathlib import Path

import numpy as np
import pytest

from dime.core.metrics.metric import Measurement
from dime.core.metrics.report import Report
from dime.core.results import Pair
from dime.core.truth import rows
from dime.core.truth.benchmark import markdown
from dime.core.truth.cases import Case, Cases
from guided_diffusion.script_util import model_and_diffusion_defaults
from tests.core.test_methods import EVALUATIONS, TAU

RNG = np.random.default_rng(0)
N, SIZE = 3, 8
X = RNG.integers(40, 200, (N, SIZE, SIZE, 3)).astype(np.uint8)
REGION = np.zeros((N, SIZE, SIZE), bool)
REGION[:, 2:4, 1:5] = True  # 8 of 64 pixels


def shifted(where: np.ndarray, by: int) -> np.ndarray:
    return (X.astype(int) + by * where[..., None]).astype(np.uint8)


TRUTH = shifted(REGION, 40)


def cases(cf: np.ndarray, region: np.ndarray = REGION) -> Cases:
    nothing, path = np.zeros(1, bool), Path()
    pairs = [Pair(id, True, True, path, path, path) for id in range(N)]
    each = [Case(pair, *arrays, nothing, nothing) for pair, *arrays in zip(pairs, X, cf, TRUTH, region, strict=True)]
    return Cases(each, oracle=lambda pictures: np.zeros((len(pictures), 1), int), query=0)


def figures(cf: np.ndarray) -> dict[str, np.ndarray]:
    found = {row.name: (row, row.per_image(cases(cf))) for row in rows.ROWS}
    return {name: values if row.combine is np.mean else row.combine(values) for name, (row, values) in found.items()}


@pytest.mark.parametrize(
    ("cf", "inside", "outside", "share_outside", "localisation", "alignment", "recovered"),
    [
        pytest.param(TRUTH, 40, 0, 0, 1, 1, 1, id="the truth itself"),
        pytest.param(X, 0, 0, np.nan, 0.5, np.nan, 0, id="the input itself"),
        pytest.param(shifted(REGION, 10), 10, 0, 0, 1, 1, 0.25, id="a quarter of the way"),
        pytest.param(shifted(REGION, -40), 40, 0, 0, 1, -1, -1, id="the wrong way"),
        # distance: 56 pixels of 4 levels come to the 8 of 40 that are missing
        pytest.param(shifted(~REGION, 4), 0, 4, 1, 0, 0, -0.7, id="elsewhere"),
        # 8 · 40 of 8 · 40 + 56 · 5 = 600 lie inside; the cosine is 40√8 / √(8·40² + 56·5²)
        pytest.param(
            shifted(REGION, 40) + shifted(~REGION, 5) - X,
            *(40, 5, 280 / 600, 1, (12800 / 14200) ** 0.5, 1 - 280 / 320),
            id="the truth and something elsewhere",
        ),
    ],
)
def test_closed_forms(cf, inside, outside, share_outside, localisation, alignment, recovered):
    expected = {
        **{rows.INSIDE: inside, rows.OUTSIDE: outside, rows.CHANGE: inside * 8 / 64 + outside * 56 / 64},
        **{rows.SHARE_OUTSIDE: share_outside, rows.LOCALISATION: localisation},
        **{rows.ALIGNMENT: alignment, rows.RECOVERED: recovered},
        **{rows.RECOVERED_ADDED: recovered, rows.RECOVERED_REMOVED: np.nan},  # all are to get the attribute
    }
    found = figures(cf)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)  # float64


def test_what_is_not_defined_or_next_to_nothing_and_evaluations():
    nowhere = cases(X, region=np.zeros_like(REGION))
    assert not nowhere.shows.any()
    assert np.isnan(rows.within(np.ones((N, SIZE, SIZE)), nowhere.region)).all()
    assert np.isnan(rows.localisation(nowhere)).all()
    assert np.isnan(rows.recovered(np.stack([np.ones(N), np.zeros(N)], axis=1)))
    # an image that needs next to no change does not outweigh the others
    assert rows.recovered(np.array([[1.0, 9.999], [1.0, 0.001]])) == pytest.approx(0.8)
    for method, count in EVALUATIONS.items():
        assert rows.evaluations({**PUBLISHED, "method": method, "start_step": TAU}) == count
    for flags, count in (({}, 1771), ({"inner_steps": "1"}, 60)):  # settings are those of the run
        assert rows.evaluations({**PUBLISHED, "method": "dime", "start_step": 60, **flags}) == count


PUBLISHED = {**model_and_diffusion_defaults(), "diffusion_steps": 500, "timestep_respacing": "200", "learn_sigma": True}


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
    blocks = """**Right?**

|           | a                        | (true cf)         |
| --------- | ------------------------ | ----------------- |
| images    | 16                       | 16                |
| flip rate | 0.88 [0.75, 1.00]        |                   |
| recovered | -12.3 [-14.0, 0.00] (15) | 1.00 [1.00, 1.00] |

**Shortcut?**

|        | a    |
| ------ | ---- |
| images | 14   |
| CD     | 1.50 |

Cells: value"""
    assert text.startswith(blocks)
    assert text.endswith("\nNot computed:\n\n- classifier of a: gone\n\nLeft out:\n\n- a: 1 images are misjudged\n")
