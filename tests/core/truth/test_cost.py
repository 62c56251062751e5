"""How many evaluations a method makes, as the truth benchmark counts them."""

from __future__ import annotations

import pytest

from dime.core.truth.rows import evaluations
from guided_diffusion.script_util import model_and_diffusion_defaults
from tests.core.test_methods import EVALUATIONS, TAU

PUBLISHED = {**model_and_diffusion_defaults(), "diffusion_steps": 500, "timestep_respacing": "200", "learn_sigma": True}


@pytest.mark.parametrize(("method", "count"), EVALUATIONS.items())
def test_evaluations_of_one_attempt(method, count):
    assert evaluations({**PUBLISHED, "method": method, "start_step": TAU}) == count


def test_settings_are_those_of_the_run():
    assert evaluations({**PUBLISHED, "method": "dime", "start_step": 60}) == 1771
    assert evaluations({**PUBLISHED, "method": "dime", "start_step": 60, "inner_steps": "1"}) == 60
