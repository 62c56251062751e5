"""What the tests share: deterministic weights and inputs, golden figures, the small U-Net of the golden figures."""

import csv
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dime.core.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
KEYS = json.loads((GOLDEN / "state_dict_keys.json").read_text())
"""Names and shapes of every parameter of every published network."""
CPU = torch.device("cpu")

BASE = {
    **{"image_size": 64, "num_channels": 32, "num_res_blocks": 1, "num_heads": 4, "attention_resolutions": "16,8"},
    **{"learn_sigma": True, "diffusion_steps": 500, "timestep_respacing": "50", "resblock_updown": True},
    **{"use_scale_shift_norm": True, "channel_mult": "1,2,2"},
}
"""Flags of the small U-Net behind the golden figures, where they differ from the defaults."""


def rnd(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled_tensor(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The weights that a parameter of this name and shape carries behind the golden figures."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return 1 + 0.1 * torch.rand(*shape, generator=generator)
    if len(shape) <= 1:
        offset = 1.0 if name.endswith("weight") else 0.0
        return offset + 0.1 * torch.randn(*shape, generator=generator)
    fan_in = int(np.prod(shape[1:]))
    return torch.randn(*shape, generator=generator) / fan_in**0.5


def filled(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """A state dict with those names and shapes, filled with deterministic weights."""
    return {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else filled_tensor(name, shape)
        for name, shape in shapes.items()
    }


@torch.no_grad()
def fill_(module: nn.Module) -> nn.Module:
    """Overwrite a network's floating-point entries with weights made from their names, in place; eval mode."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(filled_tensor(name, tensor.shape))
    return module.eval()


def golden(name: str) -> Mapping[str, np.ndarray]:
    return np.load(GOLDEN / f"{name}.npz")


def relative_error(got: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """max |got - expected| over the largest magnitude of what was expected; shapes must agree."""
    got = np.asarray(got, dtype=np.float64)
    assert got.shape == expected.shape, f"shape {got.shape} instead of {expected.shape}"
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-12))


reference_arithmetic = torch.backends.mkldnn.flags(enabled=False)
"""Decorator for comparisons of gradients with golden figures: convolutions without oneDNN.

Its kernels sum in an order that depends on the number of threads, and a ReLU or a maximum that tips over by one
rounding changes a gradient by up to 1e-3; without it, every gradient and chain agrees to 2e-5 on any number of threads.
"""


def input_error(call: Callable, *arguments: object, **options: object) -> str:
    """The one line of the InputError that a call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_close(found: Mapping, expected: Mapping, **tolerance: float) -> None:
    """Of summaries: tables in tables of figures, all of those expected; ours have more than the published ones."""
    assert found.keys() >= expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_close(found[key], value, **tolerance)
        else:
            assert found[key] == pytest.approx(value, **tolerance), key
