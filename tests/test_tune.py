"""tune.py: how it chooses, on trials in closed form; as a command, with inversion, it goes on where it was."""

import sys

import pytest
import yaml

import tune
from dime.core.config import parse_config
from dime.core.errors import InputError
from dime.core.tuning import KEEPS, Record, Trial, candidates, front, largest_tau, successive_halving
from tests.worlds import SMALL_FLAGS


def test_a_search_goes_on_and_its_preset_is_read(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dime.core.tuning.KEEPS", 0.0)  # random weights keep no prediction
    out, flags = tmp_path / "tune", SMALL_FLAGS | {"method": "inverted"}
    del flags["start_step"]  # it is found, although its default is beyond the process's 10 steps
    command = ["--tune_path", str(out), "--tune_images", "2", "--candidates", "2", "--budget", "100000"]

    def search() -> str:
        monkeypatch.setattr(sys, "argv", ["tune.py", *command, *world.command(tmp_path, flags)])
        tune.main()
        return capsys.readouterr().out

    first = search()
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(found) == {"preset.yaml", "trials.jsonl", "tune.md", "tune.png"}
    chosen = yaml.safe_load(found["preset.yaml"])
    assert chosen["method"] == "inverted" and chosen["start_step"] == 9 and "repaint" in chosen

    monkeypatch.setattr(tune.Tuner, "explain", lambda *_: pytest.fail("everything is known"))
    assert search() == first
    assert parse_config("", ["--preset", str(out / "preset.yaml")]).repaint == chosen["repaint"]


@pytest.mark.parametrize("edge", [1, 2, 37, 98, 99])
def test_the_largest_noise_level_that_keeps_enough(edge):
    asked = []

    def keeps(tau: int) -> float:
        asked.append(tau)
        return KEEPS if tau <= edge else KEEPS - 0.01

    assert largest_tau(keeps, 99) == edge
    assert len(asked) <= 8 and set(asked) <= set(range(1, 100))
    with pytest.raises(InputError, match="too few images keep"):
        largest_tau(lambda tau: 0.5, 99)


SETTINGS = [{"scale": scale} for scale in range(8)]


def measured(tried: list[tuple[int, int]]):
    """Scales from 3 on flip everything, and each changes as much as it is large; a trial costs 10 an image."""

    def measure(flags, images: int) -> Trial:
        tried.append((flags["scale"], images))
        return Trial(flags, images, 1.0 if flags["scale"] >= 3 else 0.5, flags["scale"] / 100, 10.0)

    return measure


def test_the_better_half_goes_on_with_twice_the_images_if_the_budget_pays_for_it():
    tried: list[tuple[int, int]] = []
    best = successive_halving(SETTINGS, measured(tried), lambda flags: 10, images=16, budget=10_000)
    assert [trial.flags["scale"] for trial in best] == [3, 4]  # all flip, and 3 changes less
    assert tried == [(s, 4) for s in range(8)] + [(s, 8) for s in (3, 4, 5, 6)] + [(s, 16) for s in (3, 4)]
    tried: list[tuple[int, int]] = []
    best = successive_halving(SETTINGS, measured(tried), lambda flags: 10, images=16, budget=320 + 320 - 1)
    assert [trial.images for trial in best] == [4] * 8 and len(tried) == 8
    with pytest.raises(InputError, match="--budget: 8 settings on 4 images can cost 320"):
        successive_halving(SETTINGS, measured([]), lambda flags: 10, images=16, budget=319)


def test_candidates_and_what_of_them_nothing_beats():
    found = candidates("inverted", 12, seed=4)
    assert len({str(flags) for flags in found}) == 12 and found == candidates("inverted", 12, seed=4)
    assert "repaint" in found[0] and "repaint" not in candidates("dime", 1, seed=4)[0]
    good = [Trial({}, 4, 1.0, 0.02, 50), Trial({}, 4, 1.0, 0.03, 20), Trial({}, 4, 0.9, 0.01, 50)]
    assert front([*good, Trial({}, 4, 1.0, 0.03, 50), Trial({}, 4, 0.8, 0.02, 60)]) == good


def test_what_is_known_is_not_computed_again(tmp_path):
    record = Record(tmp_path / "trials.jsonl", {"seed": 4})
    assert record(["trial", {"scale": 1.5}], lambda: {"flip": 0.5}) == {"flip": 0.5}
    again = Record(tmp_path / "trials.jsonl", {"seed": 4})
    assert again(["trial", {"scale": 1.5}], lambda: pytest.fail("it is known")) == {"flip": 0.5}
    assert again(["trial", {"scale": 2.5}], lambda: 3) == 3
    with pytest.raises(InputError, match="other flags"):
        Record(tmp_path / "trials.jsonl", {"seed": 5})
