"""The relatives of DiME: the first batch of each published tree, with the same stream of noise."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import GOLDEN
from tests.worlds import GOLDEN_FLAGS, run_main

FAMILY_FLAGS = GOLDEN_FLAGS | {
    "noise": "stream",
    "num_batches": 1,
    "start_step": 12,
    "warmup_step": 5,
    "grad_scale": 8,
    "topk_ratio": 0.05,
    "x_t_rate": 0.5,
    "blur_kernel": 5,
    "blur_sigma": 3,
    "per_channel": False,
    "grads_clip": False,
    "save_x_t": False,
    "save_z_t": False,
}


def counterfactuals(root: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(root)): np.asarray(Image.open(path), float) for path in root.rglob("CF/*.jpg")}


@pytest.mark.parametrize("method", ["fastdime", "fastdimenomask", "fastdime2", "fastdime2+", "gmd", "maskdime"])
def test_the_published_trees(world, tmp_path, method):
    with tarfile.open(GOLDEN / "family" / f"{method}.tar.gz") as archive:
        archive.extractall(tmp_path / "expected", filter="data")
    result = run_main(*world.command(tmp_path / "ours", FAMILY_FLAGS | {"method": method}))
    assert result.code == 0, result.err
    ours, expected = counterfactuals(tmp_path / "ours"), counterfactuals(tmp_path / "expected")
    assert len(ours) == 4
    assert ours.keys() <= expected.keys()  # every image in the same class
    off = {name: np.abs(image - expected[name]).mean() for name, image in ours.items()}
    # mean grey levels: a mask's border may move by a pixel with the rounding of another kernel or thread count;
    # MaskDiME's choice of the largest gradients tips over far more easily, and then the image takes another course
    within = [difference <= (0.5 if method == "maskdime" else 1.0) for difference in off.values()]
    assert sum(within) >= (1 if method == "maskdime" else 4), off
