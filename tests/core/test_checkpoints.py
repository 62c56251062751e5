"""Loading networks: what fits comes back whole; what does not is one line that says why."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from dime.core import checkpoints
from dime.core.networks import classifiers, features, files
from dime.core.errors import InputError
from dime.core.training.classifier_files import to_file
from dime.models.perceptual import PerceptualFeatures
from dime.models.small_cnn import SmallCNN
from guided_diffusion.checkpoint_util import save_state_dict
from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from tests.helpers import BASE, GOLDEN, filled, golden, relative_error, rnd

VGG19_FILE = "vgg19-dcbb9e9d.pth"
CPU = torch.device("cpu")
KEYS = json.loads((GOLDEN / "state_dict_keys.json").read_text())
FLAGS = {**model_and_diffusion_defaults(), **BASE}
TOLERANCE = 2e-5  # float32 on another machine, other kernels


def one_line(load, *args) -> str:
    """The message of the InputError that a call raises; it must be one line."""
    with pytest.raises(InputError) as caught:
        load(*args, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unet_file(folder: Path, variant: str = "base", prefix: str = "") -> Path:
    path = folder / f"{variant}.pt"
    torch.save({prefix + k: v for k, v in filled(KEYS[f"unet_{variant}"]).items()}, path)
    return path


def two_part_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.pth"
    torch.save({part: filled(KEYS[name][part]) for part in ("feat_extract", "classifier")}, path)
    return path


def vggface2_arrays() -> dict[str, np.ndarray]:
    arrays = {k: v.numpy() for k, v in filled(KEYS["vggface2_resnet50"]).items() if not k.startswith("fc.")}
    return arrays | {"fc.bias": np.zeros(8631, np.float32)}


# U-Net


@pytest.mark.parametrize("prefix", ["", "module."])
def test_unet_gives_the_published_output(tmp_path, prefix):
    network = checkpoints.load_unet(unet_file(tmp_path, prefix=prefix), FLAGS, CPU)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        output = network(rnd(1, 2, 3, 64, 64), torch.tensor([3.0, 480.0]))
    assert relative_error(output[:, :, ::4, ::4], golden("unet")["base"]) < TOLERANCE


def test_unet_conditioned_on_attributes(tmp_path):
    network = checkpoints.load_unet(unet_file(tmp_path, "labels_multi"), FLAGS | {"class_cond": True}, CPU)
    assert network.config["num_classes"] == 40


def test_half_precision_file_loads_in_float32(tmp_path):
    path = tmp_path / "half.pt"
    torch.save({k: v.half() for k, v in filled(KEYS["unet_base"]).items()}, path)
    network = checkpoints.load_unet(path, FLAGS | {"use_fp16": True}, CPU)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("variant", "needed"),
    [
        ("conv_resample", ["--resblock_updown False instead of True"]),
        ("additive_emb", ["--use_scale_shift_norm False instead of True"]),
        ("fixed_sigma", ["--learn_sigma False instead of True"]),
        ("labels_multi", ["--class_cond True instead of False"]),
        (
            "res2_mult124",
            [
                "--num_channels 64 instead of 32",
                "--channel_mult 1,2,4 instead of 1,2,2",
                "--num_res_blocks 2 instead of 1",
            ],
        ),
    ],
)
def test_a_unet_of_other_flags_says_which_flags_fit(tmp_path, variant, needed):
    message = one_line(checkpoints.load_unet, unet_file(tmp_path, variant), FLAGS)
    assert all(part in message for part in needed)
    assert message.count("instead of") == len(needed)


def test_other_attention_says_which_flag_fits(tmp_path):
    message = one_line(checkpoints.load_unet, unet_file(tmp_path), FLAGS | {"attention_resolutions": "32,16"})
    assert "--attention_resolutions 16 instead of 32,16" in message


@pytest.mark.parametrize("class_cond", [False, True])
def test_class_table_is_not_supported(tmp_path, class_cond):
    path = unet_file(tmp_path, "labels_index")
    message = one_line(checkpoints.load_unet, path, FLAGS | {"class_cond": class_cond})
    assert "10 classes" in message and "40 attributes" in message


def test_one_wrong_shape_is_named(tmp_path):
    state = filled(KEYS["unet_base"])
    state["middle_block.1.proj_out.weight"] = torch.zeros(64, 63, 1)
    torch.save(state, tmp_path / "m.pt")
    message = one_line(checkpoints.load_unet, tmp_path / "m.pt", FLAGS)
    assert "middle_block.1.proj_out.weight: (64, 63, 1) instead of (64, 64, 1)" in message


def test_flags_that_no_network_has(tmp_path):
    message = one_line(checkpoints.load_unet, unet_file(tmp_path), FLAGS | {"image_size": 60, "channel_mult": ""})
    assert "image_size 60" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_heads", 2), ("num_head_channels", 16), ("use_new_attention_order", True), ("image_size", 128)],
)
def test_stored_configuration_decides_what_weights_cannot_tell(tmp_path, key, value):
    network, _ = create_model_and_diffusion(**BASE)
    path = tmp_path / "model000123.pt"
    save_state_dict(path, network.state_dict(), network.config)
    assert checkpoints.load_unet(path, FLAGS, CPU).config["num_heads"] == 4
    message = one_line(checkpoints.load_unet, path, FLAGS | {key: value})
    assert f"--{key} is {value}, the file was trained with {FLAGS[key]}" in message


def test_a_classifier_is_no_unet(tmp_path):
    message = one_line(checkpoints.load_unet, two_part_file(tmp_path, "classifier"), FLAGS)
    assert "state dict" in message and "feat_extract" in message


def test_another_table_of_tensors_is_no_unet(tmp_path):
    torch.save(filled(KEYS["oracle"]["feat_extract"]), tmp_path / "other.pt")
    message = one_line(checkpoints.load_unet, tmp_path / "other.pt", FLAGS)
    assert "not the parameters of a U-Net" in message and "conv1_7x7_s2.weight" in message


# classifier and oracle


def test_classifier_gives_the_published_logits(tmp_path):
    classifier = classifiers.load_classifier(two_part_file(tmp_path, "classifier"), CPU)
    assert classifier.num_outputs == 40 and not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    logits = classifier(rnd(3, 2, 3, 64, 64).clamp(-1, 1))
    assert relative_error(logits, golden("networks")["classifier_logits"]) < TOLERANCE


def test_classifier_may_have_other_outputs_and_old_files_no_counters(tmp_path):
    trunk = filled({k: v for k, v in KEYS["classifier"]["feat_extract"].items() if "num_batches" not in k})
    head = filled({"weight": [3, 1024], "bias": [3]})
    torch.save({"feat_extract": trunk, "classifier": head}, tmp_path / "c.pth")
    classifier = classifiers.load_classifier(tmp_path / "c.pth", CPU)
    assert classifier.num_outputs == 3
    assert classifier(rnd(3, 1, 3, 64, 64)).shape == (1, 3)


def test_oracle_gives_the_published_figures(tmp_path):
    oracle = features.load_oracle(two_part_file(tmp_path, "oracle"), CPU)
    features, logits = oracle(rnd(4, 2, 3, 128, 128).clamp(-1, 1))
    assert relative_error(features, golden("networks")["oracle_features"]) < TOLERANCE
    assert relative_error(logits, golden("networks")["oracle_logits"]) < TOLERANCE


def test_safetensors_hold_the_same_classifier(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    flat = {f"{part}.{k}": v for part, state in KEYS["classifier"].items() for k, v in filled(state).items()}
    safetensors.save_file(flat, tmp_path / "classifier.safetensors")
    classifier = classifiers.load_classifier(tmp_path / "classifier.safetensors", CPU)
    logits = classifier(rnd(3, 2, 3, 64, 64).clamp(-1, 1))
    assert relative_error(logits, golden("networks")["classifier_logits"]) < TOLERANCE
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    assert "damaged" in one_line(classifiers.load_classifier, tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (filled({"a.weight": [2, 2], "b.weight": [2]}), "a table of 2 tensors (a.weight, b.weight)"),
        (
            {"feat_extract": filled({"x": [3]}), "classifier": filled({"weight": [40, 7]})},
            "a dict with feat_extract (x), classifier (weight)",
        ),
        ({"epoch": 3, "lr": 0.1, "a": 1, "b": 2}, "a dict with epoch, lr, a, …"),
        ({}, "an empty dict"),
        (torch.zeros(3), "a Tensor"),
    ],
)
def test_unknown_content_is_no_classifier(tmp_path, content, found):
    torch.save(content, tmp_path / "c.pth")
    message = one_line(classifiers.load_classifier, tmp_path / "c.pth")
    assert found in message and "DenseNet-121" in message


def test_classifier_and_oracle_are_not_mistaken_for_each_other(tmp_path):
    classifier, oracle = (two_part_file(tmp_path, name) for name in ("classifier", "oracle"))
    assert "no known classifier" in one_line(classifiers.load_classifier, oracle)
    assert "expected an oracle" in one_line(features.load_oracle, classifier)


def test_missing_unknown_and_misshapen_entries_are_named(tmp_path):
    trunk = filled(KEYS["classifier"]["feat_extract"])
    del trunk["feat_extract.features.norm5.bias"]
    trunk["feat_extract.features.extra"] = torch.zeros(1)
    trunk["feat_extract.features.norm0.bias"] = torch.zeros(63)
    torch.save({"feat_extract": trunk, "classifier": filled(KEYS["classifier"]["classifier"])}, tmp_path / "c.pth")
    message = one_line(classifiers.load_classifier, tmp_path / "c.pth")
    for part in ("norm5.bias", "features.extra", "norm0.bias: (63,) instead of (64,)"):
        assert part in message


def test_nan_weights_are_refused(tmp_path):
    content = {part: filled(KEYS["classifier"][part]) for part in ("feat_extract", "classifier")}
    content["classifier"]["bias"][7] = float("nan")
    torch.save(content, tmp_path / "c.pth")
    message = one_line(classifiers.load_classifier, tmp_path / "c.pth")
    assert "NaN" in message and "classifier.bias" in message


# VGGFace2


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("name", features.VGGFACE2_FILES)
def test_vggface2_under_both_names(tmp_path, protocol, name, capsys):
    (tmp_path / name).write_bytes(pickle.dumps(vggface2_arrays() | {"odd": np.zeros(1)}, protocol=protocol))
    network = features.load_vggface2(tmp_path / features.VGGFACE2_FILES[0], CPU)
    with torch.no_grad():
        features = network(60 * rnd(5, 2, 3, 224, 224))
    assert relative_error(features[:, ::16], golden("networks")["vggface2_features"]) < TOLERANCE
    assert "1 unknown entries are skipped (odd)" in capsys.readouterr().out


def test_vggface2_with_a_missing_entry(tmp_path):
    arrays = vggface2_arrays()
    del arrays["layer3.4.conv2.weight"]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays))
    assert "layer3.4.conv2.weight" in one_line(features.load_vggface2, tmp_path / "w.pkl")


def test_vggface2_missing_names_both_files(tmp_path):
    message = one_line(features.load_vggface2, tmp_path / "resnet50_vggface2_model.pkl")
    assert all(name in message for name in features.VGGFACE2_FILES)


class Hostile:
    """Creates the file `touched` when a pickle of it is loaded carelessly."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return Path.touch, (self.touched,)


def test_vggface2_pickle_never_runs_code(tmp_path):
    touched = tmp_path / "touched"
    for content in (Hostile(touched), {"conv1.weight": Hostile(touched)}, np.array([Hostile(touched)])):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
        message = one_line(features.load_vggface2, tmp_path / "w.pkl")
        assert "asks for" in message
    assert not touched.exists()


@pytest.mark.parametrize("name", ["numpy.load", "numpy._core.multiarray.fromfile", "os.system", "builtins.eval"])
def test_vggface2_pickle_names_nothing_but_arrays(tmp_path, name):
    module, _, function = name.rpartition(".")
    (tmp_path / "w.pkl").write_bytes(f"c{module}\n{function}\n(S'x'\ntR.".encode())
    assert name in one_line(features.load_vggface2, tmp_path / "w.pkl")


@pytest.mark.parametrize("core", ["core", "_core"])
def test_vggface2_pickle_of_python_2(tmp_path, core):
    """The way Python 2 wrote a float32 array of one element: byte strings, protocol 0 opcodes."""
    text = (
        f"(dS'a'\ncnumpy.{core}.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        "(I1\n(I1\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?'\ntbs."
    )
    (tmp_path / "w.pkl").write_bytes(text.encode("latin1"))
    arrays = files.read_numpy_pickle(tmp_path / "w.pkl")
    assert arrays["a"].dtype == np.float32 and arrays["a"].tolist() == [1.0]


@pytest.mark.parametrize(
    "content", [{}, {"a": 3}, [1, 2], {"a": np.array(["x"])}, {"a": np.array([None])}, {1: np.ones(1)}]
)
def test_vggface2_pickle_of_other_things(tmp_path, content):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    assert "expected a pickled dict of names and numpy arrays" in one_line(
        features.load_vggface2, tmp_path / "w.pkl"
    )


@pytest.mark.parametrize("content", [b"just text", b"\x80\x04\x95", pickle.dumps(np.ones(9))[:-20]])
def test_damaged_vggface2_pickle(tmp_path, content):
    (tmp_path / "w.pkl").write_bytes(content)
    assert "damaged" in one_line(features.load_vggface2, tmp_path / "w.pkl")


# VGG19


def test_perceptual_weights_from_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(files, "WEIGHTS_FOLDER", tmp_path / "models")
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    state = filled({k: v.shape for k, v in PerceptualFeatures(18).state_dict().items()})
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, cache / VGG19_FILE)
    network = features.load_perceptual(18, CPU)
    assert torch.equal(network.features[0].weight, state["features.0.weight"])
    assert not any(p.requires_grad for p in network.parameters())

    # a file in models/ comes first
    (tmp_path / "models").mkdir()
    first = {name: value + 1 for name, value in state.items()}
    torch.save(first, tmp_path / "models" / VGG19_FILE)
    assert torch.equal(features.load_perceptual(3, CPU).features[2].bias, first["features.2.bias"])
    assert "entries are missing" in one_line(features.load_perceptual, 20)


def test_perceptual_weights_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(files, "WEIGHTS_FOLDER", tmp_path)
    monkeypatch.setattr(features, "VGG19_URL", "http://127.0.0.1:9/vgg19-dcbb9e9d.pth")
    message = one_line(features.load_perceptual, 18)
    assert str(tmp_path / "vgg19-dcbb9e9d.pth") in message and "network" in message


def test_perceptual_layer_out_of_range():
    assert "layers 1 to 37" in one_line(features.load_perceptual, 38)


# files that are wrong in themselves

LOADERS = {
    "unet": lambda path, device: checkpoints.load_unet(path, FLAGS, device),
    "classifier": classifiers.load_classifier,
    "oracle": features.load_oracle,
    "vggface2": features.load_vggface2,
}


def hostile_zip(path: Path) -> None:
    torch.save({"x": Hostile(path.with_name("touched"))}, path)


def hostile_legacy(path: Path) -> None:
    torch.save({"x": Hostile(path.with_name("touched"))}, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"x": Hostile(path.with_name("touched"))}))


def truncated_zip(path: Path) -> None:
    torch.save(OrderedDict(a=torch.zeros(1000)), path)
    path.write_bytes(path.read_bytes()[:-500])


def empty_zip(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


BAD_FILES = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("hello, world\n" * 9), ""),
    "truncated": (truncated_zip, ""),
    "empty zip": (empty_zip, ""),
    "hostile": (hostile_zip, ""),
    "hostile in the old format": (hostile_legacy, ""),
    "plain pickle": (plain_pickle, ""),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(tmp_path, loader, kind):
    write, expected = BAD_FILES[kind]
    path = tmp_path / "weights.pt"
    write(path)
    message = one_line(LOADERS[loader], path)
    assert message.startswith(str(path)) and expected in message
    assert "weights_only=False" not in message
    assert not (tmp_path / "touched").exists()


def test_a_parallel_wrappers_prefix_is_dropped(tmp_path):
    content = torch.load(two_part_file(tmp_path, "classifier"), weights_only=True)
    wrapped = {part: {f"module.{name}": value for name, value in table.items()} for part, table in content.items()}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    assert classifiers.load_classifier(tmp_path / "wrapped.pth", CPU).num_outputs == 40


def test_a_small_cnn_is_a_classifier_of_the_attributes_it_names(tmp_path):
    torch.manual_seed(0)
    network = SmallCNN(2).eval()
    torch.save(to_file(network, ["Young", "Smiling"]), tmp_path / "c.pth")
    loaded = classifiers.load_classifier(tmp_path / "c.pth", CPU)
    x = rnd(1, 2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), network(x))
    assert classifiers.output_column(loaded, 31, "c.pth") == 1
    assert classifiers.output_column(loaded, 39, "c.pth") == 0
    with pytest.raises(InputError, match=r"Male.*decides on Young, Smiling only"):
        classifiers.output_column(loaded, 20, "c.pth")


def test_outputs_without_names_are_celebas(tmp_path):
    classifier = classifiers.load_classifier(two_part_file(tmp_path, "classifier"), CPU)
    assert classifiers.output_column(classifier, 31, "c.pth") == 31
    classifier.num_outputs = 5
    with pytest.raises(InputError, match="has 5 outputs"):
        classifiers.output_column(classifier, 31, "c.pth")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("table", [dict, OrderedDict])
def test_numpy_pickles_of_every_protocol_are_read(tmp_path, protocol, table):
    arrays = table(weight=np.arange(6, dtype=np.float32).reshape(2, 3), count=np.array(3))
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol))
    read = files.read_numpy_pickle(tmp_path / "w.pkl")
    assert read.keys() == arrays.keys()
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
