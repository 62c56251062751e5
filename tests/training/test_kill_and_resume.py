"""The quick form of kill_and_resume.py."""

from __future__ import annotations

from tests.training.kill_and_resume import run_trials


def test_killed_trainings_end_in_the_same_bytes():
    outcomes = run_trials(trials=2, seed=1, updates=12)
    assert outcomes == ["same", "same"]
