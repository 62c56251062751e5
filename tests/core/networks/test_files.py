"""Files of weights: what is whole comes back, in whatever wrapper; what is not is one line; nothing is ever run."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dime.core.errors import InputError
from dime.core.networks.files import install, read_checkpoint, read_numpy_pickle, read_state_dict, write_safetensors
from guided_diffusion.checkpoint_util import portable, save, stored_config
from tests.faults.hostile import Payload
from tests.helpers import CPU, fill_, rnd

HALF_PRECISION = 2.0**-11
"""Rounding to float16, relative, for weights above 6e-5; below, 2^-25 absolute."""


def one_line(load, *args) -> str:
    """The message of the InputError that a call raises; it must be one line."""
    with pytest.raises(InputError) as caught:
        load(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def truncated(path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


BAD_FILES = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("hello, world\n" * 9), "damaged"),
    "truncated": (truncated, "damaged"),
    "empty zip": (lambda path: zipfile.ZipFile(path, "w").close(), ""),
}
"""Hostile ones: tests/faults/test_hostile_files.py."""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pkl"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(tmp_path, suffix, kind):
    write, expected = BAD_FILES[kind]
    path = tmp_path / f"weights{suffix}"
    write(path)
    message = one_line(read_numpy_pickle if suffix == ".pkl" else read_checkpoint, path)
    assert message.startswith(str(path)) and (expected in message or suffix != ".pt")
    assert "weights_only=False" not in message


# wrappers


def network() -> nn.Module:
    return fill_(nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))))


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in network().state_dict().items()}


WRAPPED = {
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "a part compiled": {name.replace("conv.", "conv._orig_mod."): value for name, value in prefixed("").items()},
    "Lightning": {"state_dict": prefixed("model."), "epoch": 3, "optimizer_states": [{"lr": 0.1}]},
    "Lightning, another name": {"state_dict": prefixed("net."), "epoch": 3},
    "a training": {"model": prefixed("module."), "optimizer": {"state": {}}, "step": 7},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_of_weights_are_taken_off(tmp_path, wrapper, capsys):
    torch.save(WRAPPED[wrapper], tmp_path / "w.pt")
    fresh, x = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))), rnd(0, 1, 3, 8, 8)
    assert torch.equal(install(fresh, read_state_dict(tmp_path / "w.pt"), "w.pt", CPU)(x), network()(x))
    is_said = "the network is its entry" in capsys.readouterr().out
    assert is_said == ({"epoch", "step"} & WRAPPED[wrapper].keys() != set())
    own = nn.ModuleDict({"model": network()})  # a network whose own names begin like a wrapper's
    assert torch.equal(install(own, own.state_dict(), "w.pt", CPU)["model"](x), network()(x))


def test_what_keeps_a_file_from_loading_is_named(tmp_path):
    for content, expected in (
        (nn.Linear(2, 2), "torch.save(network.state_dict(), FILE)"),
        ({**prefixed(""), "step": 7}, "its entry 'step' is a int"),
    ):
        torch.save(content, tmp_path / "w.pt")
        assert expected in one_line(read_state_dict, tmp_path / "w.pt")
    torch.save({"state_dict": {"criterion.weight": torch.ones(3), **prefixed("model.")}}, tmp_path / "w.pt")
    assert "criterion.weight" in one_line(install, network(), read_state_dict(tmp_path / "w.pt"), "w.pt", CPU)


def test_missing_unknown_misshapen_and_broken_weights_are_named():
    state = prefixed("") | {"extra": torch.zeros(1), "norm.weight": torch.zeros(5)}
    del state["conv.bias"], state["norm.num_batches_tracked"]  # the counter has no effect, and old files lack it
    message = one_line(install, network(), state, "w.pt", CPU)
    for part in ("1 entries are missing (the first is conv.bias)", "extra", "norm.weight: (5,) instead of (4,)"):
        assert part in message
    state = prefixed("") | {"conv.bias": torch.tensor([0, 1, float("nan"), 3])}
    assert "NaN" in (message := one_line(install, network(), state, "w.pt", CPU)) and "conv.bias" in message


# safetensors


def test_half_the_size_keeps_weights_and_configuration(tmp_path):
    big = fill_(nn.Linear(300, 300))
    save(tmp_path / "m.pt", portable(big.state_dict(), {"num_heads": 4}))
    write_safetensors(tmp_path / "m.safetensors", read_checkpoint(tmp_path / "m.pt"))
    assert (tmp_path / "m.safetensors").stat().st_size < 0.55 * (tmp_path / "m.pt").stat().st_size
    whole, half = (read_state_dict(tmp_path / name) for name in ("m.pt", "m.safetensors"))
    for name in whole:
        torch.testing.assert_close(half[name].float(), whole[name], rtol=HALF_PRECISION, atol=2.0**-25)
    assert stored_config(whole) == stored_config(half) == {"num_heads": 4}
    training = {"network": {"weight": torch.ones(2)}, "optimizer": {"state": {0: torch.ones(2)}, "param_groups": []}}
    message = one_line(write_safetensors, tmp_path / "t.safetensors", training)
    assert "'optimizer' holds more than tensors" in message and len(list(tmp_path.iterdir())) == 2


def test_tables_tensors_beside_them_and_notes_come_back(tmp_path):
    notes = {"epoch": 4, "attributes": ["Young"]}
    content = {"table": {"weight": torch.ones(2)}, "alone": torch.zeros(3), **notes}
    for _ in range(2):  # also from a file of its own kind
        write_safetensors(tmp_path / "t.safetensors", content, torch.float32)
        content = read_checkpoint(tmp_path / "t.safetensors")
        assert content.keys() == {"table.weight", "alone"} and content._metadata[""] == notes
        assert torch.equal(content["alone"], torch.zeros(3)) and torch.equal(content["table.weight"], torch.ones(2))


@pytest.mark.parametrize(
    "metadata", [{"format": "pt"}, {"tables": '"none"'}, {"config": "[" * 100_000}, {"config": "3"}]
)
def test_metadata_of_other_programs_does_no_harm(tmp_path, metadata):
    from safetensors.torch import save_file

    save_file(prefixed(""), tmp_path / "m.safetensors", metadata)
    state = read_state_dict(tmp_path / "m.safetensors")
    assert state.keys() == prefixed("").keys() and stored_config(state) is None


# pickles of arrays (VGGFace2)


@pytest.mark.parametrize("name", ["numpy.load", "numpy._core.multiarray.fromfile", "os.system", "builtins.eval"])
def test_a_pickle_of_arrays_names_nothing_but_arrays(tmp_path, name):
    path = tmp_path / "w.pkl"
    path.write_bytes("c{}\n{}\n(S'x'\ntR.".format(*name.rsplit(".", 1)).encode())
    assert name in one_line(read_numpy_pickle, path)
    path.write_bytes(pickle.dumps({"conv1.weight": np.array([Payload(tmp_path / "touched")])}))
    assert "asks for" in one_line(read_numpy_pickle, path) and not (tmp_path / "touched").exists()


@pytest.mark.parametrize("core", ["core", "_core"])
def test_a_pickle_of_python_2(tmp_path, core):
    """The way Python 2 wrote a float32 array of one element: byte strings, protocol 0 opcodes."""
    text = (
        f"(dS'a'\ncnumpy.{core}.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        "(I1\n(I1\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?'\ntbs."
    )
    (tmp_path / "w.pkl").write_bytes(text.encode("latin1"))
    arrays = read_numpy_pickle(tmp_path / "w.pkl")
    assert arrays["a"].dtype == np.float32 and arrays["a"].tolist() == [1.0]


@pytest.mark.parametrize("table", [dict, OrderedDict])
def test_pickles_of_every_protocol_are_read(tmp_path, table):
    arrays = table(weight=np.arange(6, dtype=np.float32).reshape(2, 3), count=np.array(3))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol))
        read = read_numpy_pickle(tmp_path / "w.pkl")
        assert read.keys() == arrays.keys() and all(np.array_equal(read[name], arrays[name]) for name in arrays)


NO_ARRAYS = [{}, {"a": 3}, [1, 2], {"a": np.array(["x"])}, {"a": np.array([None])}, {1: np.ones(1)}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *((pickle.dumps(content), "expected a pickled dict of names and numpy arrays") for content in NO_ARRAYS),
        *((content, "damaged") for content in (b"just text", b"\x80\x04\x95", pickle.dumps(np.ones(9))[:-20])),
    ],
)
def test_a_pickle_of_other_things_and_a_damaged_one(tmp_path, content, expected):
    (tmp_path / "w.pkl").write_bytes(content)
    assert expected in one_line(read_numpy_pickle, tmp_path / "w.pkl")
