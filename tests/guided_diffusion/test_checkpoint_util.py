"""Checkpoints on disk: round trips, atomicity, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from guided_diffusion import checkpoint_util as cu

CONFIG = {"num_channels": 32, "attention_resolutions": "16,8", "learn_sigma": True, "dropout": 0.1}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def save(path: Path, weights: dict, config: dict | None = None) -> None:
    cu.save(path, cu.portable(weights, config))


def test_round_trip_keeps_names_values_and_config(tmp_path):
    model = network()
    for name in ("a.pt", "b.pt"):
        save(tmp_path / name, model.state_dict(), CONFIG)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    loaded = cu.load_state_dict(tmp_path / "a.pt")
    assert cu.stored_config(loaded) == CONFIG
    for weights in (loaded, torch.load(tmp_path / "a.pt", weights_only=True)):  # a plain state dict for other loaders
        assert list(weights) == list(model.state_dict())
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
        network().load_state_dict(weights)
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    assert cu.stored_config(cu.load_state_dict(tmp_path / "theirs.pt")) is None
    assert cu.stored_config({"weight": torch.zeros(1)}) is None


def test_float32_on_the_disk_and_no_more_than_the_weights(tmp_path):
    view = {"view": torch.zeros(1_000_000)[:2]}
    save(tmp_path / "model.pt", network().half().state_dict() | view)
    loaded = cu.load_state_dict(tmp_path / "model.pt")
    assert loaded["0.weight"].dtype == torch.float32 and loaded["1.num_batches_tracked"].dtype == torch.int64
    assert (tmp_path / "model.pt").stat().st_size < 10_000


@pytest.mark.parametrize("write", [save, lambda path, weights: torch.save(weights, path)])
def test_parallel_wrappers_leave_no_trace(tmp_path, write):
    write(tmp_path / "model.pt", nn.DataParallel(network()).state_dict())
    loaded = cu.load_state_dict(tmp_path / "model.pt")
    assert list(loaded) == list(network().state_dict())
    assert loaded._metadata == network().state_dict()._metadata


def test_torchs_own_words_for_a_full_disk_stay_behind(tmp_path, monkeypatch):
    def full(content, file):
        raise RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0\n  frame #0: many lines")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"model\.pt: could not be written \(is the disk full\?\)") as raised:
        save(tmp_path / "model.pt", network().state_dict())
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_another_networks_weights_are_described():
    own = network().state_dict()
    assert cu.mismatch(own, dict(own)) == ""
    other = {name: value for name, value in own.items() if name != "0.bias"}
    other |= {"0.weight": torch.zeros(2, 2), "head": torch.zeros(1)}
    found = r"1 entries are missing \(the first is 0.bias\), 1 are unknown \(the first is head\), 1 .*\(2, 2\)"
    with pytest.raises(ValueError, match=rf"model\.pt: another network .*{found} instead of \(4, 3, 3, 3\)"):
        cu.require_same_names(network(), other, "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: 0\.bias holds numbers that are not finite"):
        cu.require_finite(own | {"0.bias": torch.tensor([0.0, torch.nan])}, "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Path("b")}, "not a checkpoint of tensors"),
        (torch.zeros(2), "found a Tensor"),
        ({"model": {}, "epoch": 3}, "found a dictionary with model, epoch"),
        ({}, "nothing in it"),
        (None, "no such checkpoint"),
    ],
)
def test_what_is_not_a_state_dict_is_refused_in_one_line(tmp_path, content, message):
    """Damaged and hostile files: tests/core/networks/test_files.py."""
    path = tmp_path / "model.pt"
    if content is not None:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        cu.load_state_dict(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
