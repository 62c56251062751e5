"""Networks small enough to be trained in a test, and how several processes are started."""

import os
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from guided_diffusion.script_util import create_model_and_diffusion
from tests.helpers import fill_
from tests.worlds import ROOT, Run, run_command, succeeded

BIN = Path(sys.executable).parent

FLAGS = {
    **{"image_size": 8, "num_res_blocks": 1, "num_heads": 2, "attention_resolutions": "", "channel_mult": "1"},
    "num_channels": 64,  # two channels to a group: a bias before a group norm keeps a gradient
    **{"learn_sigma": True, "diffusion_steps": 100},
}

SMALL_UNET = {
    **{"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": "8"},
    **{"learn_sigma": True, "diffusion_steps": 100},
}
"""Flags for the scripts."""

LAUNCHERS = {
    "mpiexec": [str(BIN / "mpiexec"), "-n", "2", sys.executable],
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"],
}


def network_and_diffusion(**flags):
    """A filled network of 0.3 M parameters for images of 8x8, and its process of 100 steps."""
    model, diffusion = create_model_and_diffusion(**{**FLAGS, **flags})
    return fill_(model), diffusion


def endless(batch_size: int, seed: int = 0, size: int = 8):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(batch_size, 3, size, size, generator=generator).clamp(-1, 1), {}


def settings(**other) -> dict:
    common = {
        "batch_size": 4,
        "microbatch": -1,
        "lr": 1e-3,
        "ema_rate": "0.9",
        "log_interval": 1,
        "save_interval": 1000,
    }
    return {**common, "resume_checkpoint": "", **other}


def environment(**other: str) -> dict[str, str]:
    """This process's environment, with one thread and the project importable."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **other}


def launched(*command: str, **other: str) -> Run:
    """Run a command in the project's folder to its end; it must succeed."""
    return succeeded(run_command(command, cwd=ROOT, env=environment(**other), timeout=300))


def make_folders_of_classes(folder: Path) -> Path:
    """Grey images of 16x16 in folders train and val: eight dark and eight bright ones, noisy, in each."""
    rng = np.random.default_rng(0)
    for part, name, number in product(("train", "val"), ("bright", "dark"), range(8)):
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (16, 16)) + (150 if name == "bright" else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder
