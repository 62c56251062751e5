"""Files of weights: whole ones come back, in whatever wrapper, others are one line; the other networks."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dime.core.networks import features, files
from dime.core.networks.classifiers import load_classifier
from dime.core.networks.files import install, read_checkpoint, read_numpy_pickle, read_state_dict, write_safetensors
from dime.core.training.classifier import to_file
from dime.models.classifiers import SmallCNN
from dime.models.perceptual import IMAGENET_MEAN, IMAGENET_STD, PerceptualFeatures
from guided_diffusion.checkpoint_util import portable, save, stored_config
from tests.faults.hostile import Payload
from tests.helpers import CPU, KEYS, fill_, filled, golden, input_error, relative_error, rnd
from tests.worlds import VGG19_FILE

HALF_PRECISION = 2.0**-11
"""Rounding to float16, relative, for weights above 6e-5; below, 2^-25 absolute."""


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
    message = input_error(read_numpy_pickle if suffix == ".pkl" else read_checkpoint, path)
    assert message.startswith(str(path)) and (expected in message or suffix != ".pt")
    assert "weights_only=False" not in message


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
        assert expected in input_error(read_state_dict, tmp_path / "w.pt")
    torch.save({"state_dict": {"criterion.weight": torch.ones(3), **prefixed("model.")}}, tmp_path / "w.pt")
    assert "criterion.weight" in input_error(install, network(), read_state_dict(tmp_path / "w.pt"), "w.pt", CPU)


def test_missing_unknown_misshapen_and_broken_weights_are_named():
    state = prefixed("") | {"extra": torch.zeros(1), "norm.weight": torch.zeros(5)}
    del state["conv.bias"], state["norm.num_batches_tracked"]  # the counter has no effect, and old files lack it
    message = input_error(install, network(), state, "w.pt", CPU)
    for part in ("1 entries are missing (the first is conv.bias)", "extra", "norm.weight: (5,) instead of (4,)"):
        assert part in message
    state = prefixed("") | {"conv.bias": torch.tensor([0, 1, float("nan"), 3])}
    assert "NaN" in (message := input_error(install, network(), state, "w.pt", CPU)) and "conv.bias" in message


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
    message = input_error(write_safetensors, tmp_path / "t.safetensors", training)
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


@pytest.mark.parametrize("name", ["numpy.load", "numpy._core.multiarray.fromfile", "os.system", "builtins.eval"])
def test_a_pickle_of_arrays_names_nothing_but_arrays(tmp_path, name):
    path = tmp_path / "w.pkl"
    path.write_bytes("c{}\n{}\n(S'x'\ntR.".format(*name.rsplit(".", 1)).encode())
    assert name in input_error(read_numpy_pickle, path)
    path.write_bytes(pickle.dumps({"conv1.weight": np.array([Payload(tmp_path / "touched")])}))
    assert "asks for" in input_error(read_numpy_pickle, path) and not (tmp_path / "touched").exists()


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
    assert expected in input_error(read_numpy_pickle, tmp_path / "w.pkl")


TOLERANCE = 2e-5  # float32 on another machine, other kernels


def faces_file(path: Path, without: str = "") -> Path:
    arrays = {k: v.numpy() for k, v in filled(KEYS["vggface2_resnet50"]).items() if not k.startswith("fc.")}
    arrays |= {"fc.bias": np.zeros(8631, np.float32), "odd": np.zeros(1)}
    path.write_bytes(pickle.dumps({name: array for name, array in arrays.items() if name != without}))
    return path


def test_oracle_gives_the_published_figures(tmp_path):
    torch.save({part: filled(shapes) for part, shapes in KEYS["oracle"].items()}, tmp_path / "oracle.pth")
    found, logits = features.load_oracle(tmp_path / "oracle.pth", CPU)(rnd(4, 2, 3, 128, 128).clamp(-1, 1))
    assert relative_error(found, golden("networks")["oracle_features"]) < TOLERANCE
    assert relative_error(logits, golden("networks")["oracle_logits"]) < TOLERANCE
    assert "no known classifier" in input_error(load_classifier, tmp_path / "oracle.pth", CPU)


@pytest.mark.parametrize("name", features.VGGFACE2_FILES)
def test_vggface2_under_both_names(tmp_path, name, capsys):
    faces_file(tmp_path / name)
    network = features.load_vggface2(tmp_path / features.VGGFACE2_FILES[0], CPU)
    with torch.no_grad():
        found = network(60 * rnd(5, 2, 3, 224, 224))
    assert relative_error(found[:, ::16], golden("networks")["vggface2_features"]) < TOLERANCE
    assert "1 unknown entries are skipped (odd)" in capsys.readouterr().out


def test_vggface2_that_is_missing_or_incomplete(tmp_path):
    line = input_error(features.load_vggface2, tmp_path / features.VGGFACE2_FILES[0], CPU)
    assert all(name in line for name in features.VGGFACE2_FILES)
    incomplete = faces_file(tmp_path / "w.pkl", without="layer3.4.conv2.weight")
    assert "the first is layer3.4.conv2.weight" in input_error(features.load_vggface2, incomplete, CPU)


def test_perceptual_weights_from_models_or_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(files, "WEIGHTS_FOLDER", tmp_path / "models")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = filled({k: v.shape for k, v in PerceptualFeatures(18).state_dict().items()})
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "hub" / "checkpoints" / VGG19_FILE)
    network = features.load_perceptual(18)
    assert torch.equal(network.features[0].weight, state["features.0.weight"])
    assert not any(p.requires_grad for p in network.parameters())

    (tmp_path / "models").mkdir()
    first = {name: value + 1 for name, value in state.items()}
    torch.save(first, tmp_path / "models" / VGG19_FILE)
    assert torch.equal(features.load_perceptual(3).features[2].bias, first["features.2.bias"])
    assert "entries are missing" in input_error(features.load_perceptual, 20)
    assert "layers 1 to 37" in input_error(features.load_perceptual, 38)
    for path in tmp_path.rglob(VGG19_FILE):
        path.unlink()
    line = input_error(files.pretrained_weights, f"http://127.0.0.1:9/{VGG19_FILE}")  # it cannot be had
    for part in (tmp_path / "models" / VGG19_FILE, tmp_path / "hub" / "checkpoints" / VGG19_FILE, "network"):
        assert str(part) in line


def test_a_small_cnn_stands_in_for_the_oracle_and_vgg19(tmp_path):
    save(small := tmp_path / "small.pth", to_file(fill_(SmallCNN(2, (8, 16))), ["Smiling", "Young"]))
    oracle, classifier, x = features.load_oracle(small, CPU), load_classifier(small, CPU), 2 * rnd(1, 3, 3, 32, 32)
    found, logits = oracle(x)
    assert found.shape == (3, 16) and torch.equal(logits, classifier(x))
    assert not oracle.training and not any(p.requires_grad for p in oracle.parameters())
    assert torch.equal(features.load_perceptual(1, small)(x), classifier.feat_extract[0](x.clamp(-1, 1)))
    assert features.load_perceptual(2, small)(x[:, :1]).shape == (3, 16, 8, 8)  # grey as three equal channels
    assert "levels 1 to 2" in (line := input_error(features.load_perceptual, 3, small)) and "--l_perc_layer 3: " in line
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    assert "expected a small CNN" in input_error(features.load_perceptual, 1, tmp_path / "x.pth")
    assert "expected an oracle" in input_error(features.load_oracle, tmp_path / "x.pth", CPU)


@pytest.mark.parametrize("channels", [3, 1])
def test_one_perceptual_layer_is_a_convolution_of_the_normalised_image(channels):
    network = fill_(PerceptualFeatures(1)).requires_grad_(False)
    x = (2 * rnd(1, 2, channels, 32, 32)).requires_grad_()  # beyond [-1, 1] too
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    seen = ((x.expand(-1, 3, -1, -1).clamp(-1, 1) + 1) / 2 - mean) / std
    expected = torch.conv2d(seen, network.features[0].weight, network.features[0].bias, padding=1)
    # 1e-5: the same float32 operations
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
    network(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
