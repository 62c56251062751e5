"""Images that must be tried again fill up the batches of those that follow, and nothing but the time is changed."""

from __future__ import annotations

import pytest

from tests.test_main_invariance import MIXED, hooked, images_of, results
from tests.worlds import refused, tree_of

METHODS = {
    "dime": {},
    "a shorter chain": {"inner_steps": 1, "save_x_t": True},
    "fastdime2+": {"method": "fastdime2+", "warmup_step": 1},
    "maskdime": {"method": "maskdime"},
}


@pytest.mark.parametrize("flags", METHODS.values(), ids=METHODS)
def test_no_byte_depends_on_refill(world, tmp_path, monkeypatch, flags):
    """With batches of one shape; the statistics too."""
    shapes = []
    hooked(monkeypatch, "load_unet", lambda unet: unet.register_forward_hook(lambda *args: shapes.append(len(args[2]))))
    flags = {**MIXED, "pad_batches": True, "save_z_t": True, **flags}
    trees, evaluations = {}, {}
    for refill in (True, False):
        trees[refill] = results(world, tmp_path / str(refill), refill=refill, **flags)
        evaluations[refill] = sum(shapes)
        shapes.clear()
    assert trees[True] == trees[False]
    assert evaluations[True] < evaluations[False]


def test_batches_are_full(world, tmp_path, monkeypatch):
    shapes = []
    hooked(monkeypatch, "load_unet", lambda unet: unet.register_forward_hook(lambda *args: shapes.append(len(args[2]))))
    world.explain(tmp_path, **MIXED, method="naive")
    tau = 3
    scales = [text.rpartition("scale: ")[2] for text in (path.read_text() for path in tmp_path.rglob("Info/*.txt"))]
    attempts = 15 + scales.count("30.0")
    assert sum(shapes) == attempts * tau and attempts > 15
    assert all(shape == 4 for shape in shapes[: 15 // 4 * tau])
    assert [shape for shape in shapes if shape < 4] == shapes[len(shapes) - sum(shape < 4 for shape in shapes) :]


def test_with_a_stream_of_noise_there_is_no_refill(world, tmp_path):
    assert "--noise stream" in refused(world, tmp_path / "refused", noise="stream", refill=True)
    assert "--noise stream" in refused(world, tmp_path / "refused", noise="stream", pad_batches=True)
    left_out = results(world, tmp_path / "a", noise="stream", num_batches=1)
    assert left_out == results(world, tmp_path / "b", noise="stream", num_batches=1, refill=False)


def test_a_killed_run_continues_in_the_same_company(world, tmp_path):
    """Whichever images are lost, the ones that are computed again get their bytes back, without --pad_batches."""
    world.explain(tmp_path / "whole", **MIXED)
    expected = images_of(tree_of(tmp_path / "whole"))
    for lost in ([14], [0, 5], [3, 7, 8, 9]):
        for id in lost:
            for path in (tmp_path / "whole").rglob(f"{id:07d}.*"):
                path.unlink()
        world.explain(tmp_path / "whole", **MIXED)
        assert images_of(tree_of(tmp_path / "whole")) == expected
