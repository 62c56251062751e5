"""Layout and allocator: what changes is speed, not the result."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dime.core.arithmetic import prepare_unet
from guided_diffusion.script_util import create_model_and_diffusion
from tests.helpers import BASE, fill_, relative_error, rnd

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CHANNELS_LAST = torch.channels_last


def unet() -> torch.nn.Module:
    return fill_(create_model_and_diffusion(**BASE)[0])


def is_channels_last(network: torch.nn.Module) -> bool:
    weights = [p for p in network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    return all(weight.is_contiguous(memory_format=CHANNELS_LAST) for weight in weights)


@pytest.mark.parametrize(
    ("device", "precision", "expected"), [(CPU, "fp32", True), (GPU, "fp32", False), (GPU, "fp16", True)]
)
def test_the_layout_is_the_one_for_the_device(device, precision, expected):
    assert is_channels_last(prepare_unet(unet(), precision, device)) == expected


@torch.no_grad()
def test_a_prepared_network_says_the_same():
    x, t = rnd(0, 2, 3, 32, 32), torch.tensor([7])
    expected = unet()(x, t.expand(2)).numpy()
    # 2e-5: float32 sums in another order; 2e-2: bfloat16 has 8 bits, some tens of operations in a row
    for precision, tolerance in (("fp32", 2e-5), ("bf16", 2e-2)):
        model = prepare_unet(unet(), precision, CPU)
        assert is_channels_last(model)
        assert relative_error(model(x, t), expected) < tolerance


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_freed_memory_is_kept():
    script = """
import resource, torch
from dime.core.arithmetic import keep_freed_memory

def page_faults():
    torch.ones(20_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = page_faults()
keep_freed_memory()
print(before, min(page_faults() for _ in range(10)))  # where alignment splits a block, the next one does not fit it
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 100  # 80 MB, in pages of 4 kB or of 2 MB (nothing to see where those are larger still)
    assert after < before / 10
