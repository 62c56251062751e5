"""The flags of the main job as such: presets, schedules of inner steps, and what contradicts."""

from __future__ import annotations

import pytest

from core.errors import InputError
from core.job.flags import parse_flags
from core.presets import PRESETS


def parsed(*arguments: str) -> dict:
    return vars(parse_flags("", arguments))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_flags_it_stands_for(name):
    spelled = [text for flag, value in PRESETS[name].items() for text in (f"--{flag}", value)]
    assert parsed("--preset", name) == parsed(*spelled) | {"preset": [name]}


def test_the_exact_preset_is_the_default():
    assert parsed("--preset", "exact") == parsed() | {"preset": ["exact"]}


def test_presets_add_up_and_the_later_one_wins():
    both = parsed("--preset", "demo, fast,exact")
    assert both == parsed("--preset", "demo") | {"preset": ["demo", "fast", "exact"]}
    assert parsed("--preset", "exact,fast")["inner_steps"] == "1"


def test_an_unknown_preset_is_one_line(capsys):
    with pytest.raises(SystemExit):
        parsed("--preset", "demo,slow")
    assert "no preset is called 'slow'; there are exact, fast" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["before", "after"])
def test_flags_that_are_given_win(place):
    given, preset = ["--inner_steps", "7:5,2"], ["--preset", "fast"]
    flags = parsed(*(given + preset if place == "before" else preset + given))
    assert flags["inner_steps"] == "7:5,2"
    assert parsed("--preset", "fast", "--inner_steps", "0")["inner_steps"] == "0"


@pytest.mark.parametrize("text", ["-1", "five", "8:20", "8:20,", "2.5"])
def test_inner_steps_that_say_nothing_are_refused(text, capsys):
    with pytest.raises(SystemExit) as exit:
        parsed(f"--inner_steps={text}")
    assert exit.value.code == 2
    line = capsys.readouterr().err
    assert "--inner_steps" in line and "8:20,1" in line and line.count("\n") == 1


@pytest.mark.parametrize("flags", [("--inner_steps", "1"), ("--inner_sampler", "ddim"), ("--preset", "fast")])
def test_inner_steps_of_a_method_without_inner_chain_are_refused(flags):
    with pytest.raises(InputError, match="--method fastdime has no inner chain"):
        parsed("--method", "fastdime", *flags)
