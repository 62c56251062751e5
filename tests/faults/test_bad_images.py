"""Images that cannot be explained: each recorded with its reason, its neighbours as if nothing had been."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.faults.forks import EXIT_SOME_FAILED, without
from tests.faults.hostile import BAD
from tests.worlds import SMALL_FLAGS, World, images, run_main, tree_of

RECORDING = SMALL_FLAGS | {"on_bad_image": "record", "noise": "stream"}

FIRST = 31
"""The number of the val partition's first file, whose id is 0."""


@pytest.fixture(scope="module")
def clean(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("clean") / "out"
    world.explain(out, noise="stream")
    return images(out)


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.data, tmp_path / "data"))


def photo(data: Path, id: int) -> Path:
    return data / f"img_align_celeba/{FIRST + id:06d}.jpg"


def failed(out: Path) -> dict[int, str]:
    return yaml.safe_load((out / "Results/exp/failed.yaml").read_text())


def test_all_kinds_are_recorded_and_the_same_command_takes_up_the_repaired(world, clean, data, tmp_path):
    """Under a stream of noise, which bad images draw from as others do."""
    victims = dict(zip((0, 1, 2, 3, 7, 13), BAD, strict=True))  # the first batch is all bad
    for id, kind in victims.items():
        BAD[kind](photo(data, id))
    out = tmp_path / "out"
    command = world.command(out, RECORDING | {"data_dir": data})
    run = run_main(*command)
    assert run.code == EXIT_SOME_FAILED, run.err
    assert "Traceback" not in run.err and "Warning" not in run.err
    reasons = failed(out)
    assert sorted(reasons) == sorted(victims)
    assert all(photo(data, id).name in reason and "\n" not in reason for id, reason in reasons.items())
    said = {"bomb": "decompression bomb", "unreadable": "not a file", "vanished": "no such image"}
    assert all(said.get(kind, "") in reasons[id] for id, kind in victims.items())
    assert images(out) == without(clean, set(victims))
    summary = yaml.safe_load((out / "Results/exp/summary.yaml").read_text())
    assert (summary["n"], summary["failed"]) == (9, 6)
    assert "9 images" in run.out and "6 failed" in run.out

    for id, kind in victims.items():
        if kind == "unreadable":
            photo(data, id).rmdir()
        shutil.copy(photo(world.data, id), photo(data, id))
    assert run_main(*command).code == 0
    assert images(out) == clean
    assert not list(out.rglob("failed.yaml"))


def test_abort_ends_at_the_first_bad_image_and_one_that_is_not_asked_for_ends_nothing(world, data, tmp_path):
    """By default every chosen image must be there; of the others nothing is asked."""
    BAD["truncated"](photo(data, 5))
    photo(data, 14).unlink()
    photo(data, 14).symlink_to(tmp_path / "nowhere.jpg")
    photo(data, 13).unlink()
    photo(data, 13).mkdir()
    flags = SMALL_FLAGS | {"data_dir": data, "num_batches": 3}
    run = run_main(*world.command(tmp_path / "out", flags | {"on_bad_image": "abort"}))
    assert run.code == 2 and str(photo(data, 5)) in run.err.splitlines()[-1]
    assert len(list((tmp_path / "out").rglob("Info/*.txt"))) == 4
    assert not [name for name in tree_of(tmp_path / "out") if name.endswith(".tmp")]


def test_what_takes_too_long_or_too_much_memory_is_bad_too(world, data, tmp_path, monkeypatch):
    """A pipe holds nothing up. Between one and two times its limit on an image's size Pillow only warns."""
    photo(data, 0).unlink()
    os.mkfifo(photo(data, 0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 178 * 218 - 1)
    run = run_main(*world.command(tmp_path / "out", RECORDING | {"data_dir": data, "num_batches": 1}))
    assert run.code == EXIT_SOME_FAILED
    assert sorted(failed(tmp_path / "out")) == [0, 1, 2, 3] and "not a file" in failed(tmp_path / "out")[0]
