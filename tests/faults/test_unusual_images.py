"""Images of rare kinds among those that are explained, and broken ones among those that are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.images import UNSCALED, UNUSUAL
from tests.faults.test_bad_images import RECORDING, failed, photo
from tests.worlds import SMALL_FLAGS, World, run_main


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.data, tmp_path / "data"))


def test_what_can_be_converted_is_explained_and_what_cannot_is_recorded(world, data, tmp_path):
    kinds = UNUSUAL | UNSCALED
    for id, kind in enumerate(kinds):
        kinds[kind](photo(data, id))
    run = run_main(*world.command(tmp_path / "out", RECORDING | {"data_dir": data, "num_batches": 3}))
    assert f"{12 - len(UNSCALED)} images" in run.out, run.err
    assert list(failed(tmp_path / "out")) == [7, 8]
    assert all("16-bit or float" in reason for reason in failed(tmp_path / "out").values())


@pytest.mark.parametrize("what", ["dangling link", "folder", "nothing"])
def test_a_broken_image_that_is_not_asked_for_ends_nothing(world, data, tmp_path, what):
    """By default every chosen image must be there; of the others nothing is asked."""
    other = photo(data, 14)
    other.unlink()
    if what == "dangling link":
        other.symlink_to(tmp_path / "nowhere.jpg")
    elif what == "folder":
        other.mkdir()
    world.explain(tmp_path / "out", **SMALL_FLAGS | {"data_dir": data, "num_batches": 1})
