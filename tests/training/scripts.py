"""Run a top-level script inside the test's process, which spares the start of an interpreter."""

from __future__ import annotations

import runpy
import sys
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guided_diffusion import dist_util, logger
from tests.helpers import GOLDEN
from tests.training.small import ROOT

SMALL_UNET = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "learn_sigma": True,
    "diffusion_steps": 100,
}


def run_script(name: str, *positional: str, **flags) -> int:
    """The script's exit status; flags as --name value."""
    arguments = [*positional, *(part for flag, value in flags.items() for part in (f"--{flag}", str(value)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / name), *arguments])
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as exit_:
            return int(exit_.code or 0)
        finally:
            dist_util.close()
            logger.reset()
    return 0


def error_line(capsys: pytest.CaptureFixture) -> str:
    """The one line that a script says when it cannot go on."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def unpack_celeba(folder: Path) -> Path:
    """Sixty drawn images in CelebA's layout: 30 train, 15 val, 15 test."""
    with tarfile.open(GOLDEN / "celeba_tiny.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def make_folders_of_classes(folder: Path) -> Path:
    """Grey images of 16x16 in folders train and val: eight dark and eight bright ones, noisy, in each."""
    rng = np.random.default_rng(0)
    for part, name, number in product(("train", "val"), ("bright", "dark"), range(8)):
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (16, 16)) + (150 if name == "bright" else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder
