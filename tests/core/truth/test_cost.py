"""How many evaluations a method makes, and where that is read."""

from __future__ import annotations

import pytest

from dime.core.methods import METHODS
from dime.core.truth.cost import evaluations
from guided_diffusion.script_util import model_and_diffusion_defaults

PROCESS = {**model_and_diffusion_defaults(), "diffusion_steps": 500, "timestep_respacing": "200", "learn_sigma": True}
ONCE = ("direct", "naive", "fastdime", "fastdimenomask", "gmd", "maskdime")
TAU = 60


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        *((method, {}, TAU) for method in ONCE),
        *((method, {}, 2 * TAU) for method in ("fastdime2", "fastdime2+")),
        ("dime", {}, 1771),  # 1830 as written down, the shared one of every chain but the last two made once
        ("dime", {"inner_steps": "1"}, TAU),
        ("maskdime2", {"inner_steps": "1"}, 2 * TAU),
        ("dime", {"inner_steps": "1", "guided_iterations": 0}, TAU),
    ],
)
def test_evaluations_of_one_attempt(method, settings, count):
    assert evaluations({**PROCESS, "method": method, "start_step": TAU, **settings}) == count


def test_every_method_is_counted():
    assert {*ONCE, "fastdime2", "fastdime2+", "dime", "maskdime2"} == METHODS.keys()
