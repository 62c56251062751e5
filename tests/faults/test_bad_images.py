"""Images that cannot be explained: each recorded with its reason, its neighbours as if nothing had been."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

import main as main_script
from tests.faults.images import BAD, UNUSUAL
from tests.test_main_resume import comparable
from tests.worlds import SMALL_FLAGS, World, run_main

RECORDING = SMALL_FLAGS | {"on_bad_image": "record"}

FIRST = 31
"""The number of the val partition's first file, whose id is 0."""


@pytest.fixture(scope="module")
def clean(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All images of a run without a fault."""
    out = tmp_path_factory.mktemp("clean") / "out"
    world.explain(out)
    return images(out)


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.data, tmp_path / "data"))


def images(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in comparable(out).items() if not name.endswith((".yaml", ".pth"))}


def photo(data: Path, id: int) -> Path:
    return data / f"img_align_celeba/{FIRST + id:06d}.jpg"


def failed(out: Path) -> dict[int, str]:
    return yaml.safe_load((out / "Results/exp/failed.yaml").read_text())


def without(files: dict[str, bytes], ids: set[int]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if int(Path(name).stem) not in ids}


def test_every_kind_is_recorded_and_the_others_keep_their_bytes(world, clean, data, tmp_path):
    victims = dict(zip((0, 1, 2, 3, 5, 7, 11, 14), BAD, strict=True))  # the first batch is all bad
    for id, kind in victims.items():
        BAD[kind](photo(data, id))
    out = tmp_path / "out"
    command = world.command(out, RECORDING | {"data_dir": data})
    run = run_main(*command)
    assert run.code == main_script.EXIT_SOME_FAILED, run.err
    assert "Traceback" not in run.err and "Warning" not in run.err
    reasons = failed(out)
    assert sorted(reasons) == sorted(victims)
    assert all(photo(data, id).name in reason and "\n" not in reason for id, reason in reasons.items())
    assert images(out) == without(clean, set(victims))
    summary = yaml.safe_load((out / "Results/exp/summary.yaml").read_text())
    assert (summary["n"], summary["failed"]) == (7, 8)
    assert "7 images" in run.out and "8 failed" in run.out


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "not a readable image"),
        ("empty", "empty"),
        ("16 bit", "16-bit"),
        ("float", "float"),
        ("vanished", "no such image"),
        ("unreadable", "not a file"),
        ("bomb", "decompression bomb"),
    ],
)
def test_reasons_say_what_was_found(world, data, tmp_path, kind, reason):
    BAD[kind](photo(data, 1))
    run_main(*world.command(tmp_path / "out", RECORDING | {"data_dir": data, "num_batches": 1}))
    assert reason in failed(tmp_path / "out")[1]


def test_unusual_images_are_explained_like_any_other(world, data, tmp_path):
    for id, kind in enumerate(UNUSUAL):
        UNUSUAL[kind](photo(data, id))
    run = run_main(*world.command(tmp_path / "out", SMALL_FLAGS | {"data_dir": data, "num_batches": 2}))
    assert run.code == 0, run.err
    assert "8 images" in run.out and "failed" not in run.out


@pytest.mark.parametrize("what", ["dangling link", "folder", "nothing"])
def test_a_bad_image_that_is_not_asked_for_ends_nothing(world, data, tmp_path, what):
    """By default every chosen image must be there; of the others nothing is asked."""
    other = photo(data, 14)
    other.unlink()
    if what == "dangling link":
        other.symlink_to(tmp_path / "nowhere.jpg")
    elif what == "folder":
        other.mkdir()
    world.explain(tmp_path / "out", data_dir=data, num_batches=1)


def test_repaired_images_are_taken_up_by_the_same_command(world, clean, data, tmp_path):
    whole = photo(data, 2).read_bytes()
    BAD["truncated"](photo(data, 2))
    command = world.command(tmp_path / "out", RECORDING | {"data_dir": data})
    assert run_main(*command).code == main_script.EXIT_SOME_FAILED
    photo(data, 2).write_bytes(whole)
    assert run_main(*command).code == 0
    assert images(tmp_path / "out") == clean
    assert not list((tmp_path / "out").rglob("failed.yaml"))


def test_abort_ends_at_the_first_bad_image(world, data, tmp_path):
    BAD["truncated"](photo(data, 5))
    run = run_main(*world.command(tmp_path / "out", SMALL_FLAGS | {"data_dir": data, "on_bad_image": "abort"}))
    assert run.code == 2 and str(photo(data, 5)) in run.err.splitlines()[-1]
    assert len(list((tmp_path / "out").rglob("Info/*.txt"))) == 4
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_stream_noise_is_the_same_for_the_neighbours_of_a_bad_image(world, data, tmp_path):
    world.explain(tmp_path / "clean", noise="stream")
    BAD["vanished"](photo(data, 1))
    run = run_main(*world.command(tmp_path / "out", RECORDING | {"data_dir": data, "noise": "stream"}))
    assert run.code == main_script.EXIT_SOME_FAILED
    assert images(tmp_path / "out") == without(images(tmp_path / "clean"), {1})


def test_a_pipe_in_place_of_an_image_holds_nothing_up(world, data, tmp_path):
    photo(data, 0).unlink()
    os.mkfifo(photo(data, 0))
    run = run_main(*world.command(tmp_path / "out", RECORDING | {"data_dir": data, "num_batches": 1}))
    assert run.code == main_script.EXIT_SOME_FAILED
    assert "not a file" in failed(tmp_path / "out")[0]


def test_an_image_that_takes_too_much_memory_before_the_hard_limit_is_bad_too(world, data, tmp_path, monkeypatch):
    """Between one and two times the limit Pillow only warns."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 178 * 218 - 1)
    run = run_main(*world.command(tmp_path / "out", RECORDING | {"data_dir": data, "num_batches": 1}))
    assert run.code == main_script.EXIT_SOME_FAILED
    assert sorted(failed(tmp_path / "out")) == [0, 1, 2, 3]
