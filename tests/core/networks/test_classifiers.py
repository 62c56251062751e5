"""Classifiers of every kind, each on a real file made by the kind's library; which are explained, what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dime.core.errors import InputError
from dime.core.networks import files
from dime.core.networks.checks import check_classifier, frozen
from dime.core.networks.classifiers import Classifier, load_classifier, output_column
from dime.core.networks.files import read_checkpoint, write_safetensors
from dime.core.training.classifier import to_file
from dime.models.classifiers import SmallCNN
from guided_diffusion.checkpoint_util import save
from tests.helpers import CPU, KEYS, fill_, filled, golden, input_error, relative_error, rnd

TOLERANCE = 2e-5  # float32 on another machine, other kernels
SAME = 1e-5
"""Of logits near 1: the library's own forward in float32, normalised by one multiplication instead of two."""
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def refusal(spec: object, **options: object) -> str:
    return input_error(load_classifier, spec, CPU, **options)


def assert_like(classifier: nn.Module, network: Callable, size: int, mean=0.5, std=0.5, atol: float = SAME) -> None:
    """A loaded classifier passes its check, and gives what the network gives for normalised images."""
    x = rnd(0, 2, 3, size, size).clamp(-1, 1)
    check_classifier(classifier, x, classifier.num_outputs)
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    torch.testing.assert_close(classifier(x), network(((x + 1) / 2 - mean) / std), rtol=SAME, atol=atol)


def small_net(outputs: int = 5) -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return fill_(nn.Sequential(*layers, nn.Linear(4, outputs)))


@pytest.mark.parametrize("wrapper", ["published", "parallel", "flat safetensors", "Lightning"])
def test_the_published_classifier(tmp_path, wrapper):
    path, tables = tmp_path / "c.pth", {part: filled(shapes) for part, shapes in KEYS["classifier"].items()}
    trunk = {name: value for name, value in tables["feat_extract"].items() if "num_batches" not in name}
    tables["feat_extract"] = trunk if wrapper == "parallel" else tables["feat_extract"]  # old files have no counters
    flat = {f"{part}.{name}": value for part, table in tables.items() for name, value in table.items()}
    if wrapper == "flat safetensors":
        path = tmp_path / "c.safetensors"
        write_safetensors(path, flat, torch.float32)
    elif wrapper == "Lightning":
        torch.save({"state_dict": {f"model.{name}": value for name, value in flat.items()}, "epoch": 3}, path)
    else:
        prefix = "module." if wrapper == "parallel" else ""
        torch.save({part: {prefix + k: v for k, v in table.items()} for part, table in tables.items()}, path)
    classifier = load_classifier(path, CPU)
    assert classifier.num_outputs == 40 and classifier.names is None and not classifier.training
    logits = classifier(rnd(3, 2, 3, 64, 64).clamp(-1, 1))  # frozen: they become numpy
    assert relative_error(logits, golden("networks")["classifier_logits"]) < TOLERANCE


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_a_small_cnn_keeps_its_weights_and_names(tmp_path, name):
    network = fill_(SmallCNN(2, (16, 32, 48), channels=1))
    save(tmp_path / "c.pth", to_file(network, ["Young", "Smiling"]))
    if name != "c.pth":
        write_safetensors(tmp_path / name, read_checkpoint(tmp_path / "c.pth"), torch.float32)
    loaded, x = load_classifier(tmp_path / name, CPU), rnd(1, 2, 1, 32, 32)
    assert torch.equal(loaded(x), network(x)) and loaded.names == ["Young", "Smiling"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (filled({"a.weight": [2, 2], "b.weight": [2]}), "a table of 2 tensors (a.weight, b.weight)"),
        ({"feat_extract": filled({"x": [3]}), "b": filled({"w": [7]})}, "a dict with feat_extract (x), b (w)"),
        ({"epoch": 3, "lr": 0.1, "a": 1, "b": 2}, "a dict with epoch, lr, a, …"),
        ({}, "an empty dict"),
        (torch.zeros(3), "a Tensor"),
    ],
)
def test_unknown_content_is_no_classifier(tmp_path, content, found):
    torch.save(content, tmp_path / "c.pth")
    message = refusal(tmp_path / "c.pth")
    assert found in message and "DenseNet-121" in message and "timm:NAME@FILE" in message


def test_columns_by_attribute_and_by_index():
    classifier = SimpleNamespace(names=["Young", "Smiling"], num_outputs=2)
    assert output_column(classifier, 31, "c.pth") == output_column(classifier, 0, "c.pth", "cat", ["dog", "cat"]) == 1
    with pytest.raises(InputError, match=r"Male.*decides on Young, Smiling only"):
        output_column(classifier, 20, "c.pth")
    for names in (None, ["cat", "dog"]):
        classifier.names = names
        assert output_column(classifier, 1, "c.pth") == 1
        with pytest.raises(InputError, match="has 2 outputs"):
            output_column(classifier, 31, "c.pth")


def test_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    network = timm.create_model("resnet10t", num_classes=10).eval()
    torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
    before = torch.random.get_rng_state()
    classifier = load_classifier(f"timm:resnet10t@{tmp_path / 'w.pth'}", CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_like(classifier, network, 176, MEAN, STD)
    assert classifier.num_outputs == 10 and classifier.names is None
    assert "unknown" in refusal(f"timm:resnet18@{tmp_path / 'w.pth'}")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert 'needs timm: pip install "dime-counterfactuals[timm]"' in refusal("timm:resnet10t@w.pth")


def test_torchvision(tmp_path, monkeypatch, capsys):
    from safetensors.torch import save_file

    network = torchvision.models.resnet18(num_classes=10).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    classifier = load_classifier(f"torchvision:resnet18@{tmp_path / 'w.safetensors'}", CPU, size=64)
    assert_like(classifier, lambda x: network(F.interpolate(x, (64, 64), mode="bilinear")), 48, MEAN, STD)
    assert "nonesuch" in refusal(f"torchvision:nonesuch@{tmp_path / 'w.safetensors'}")

    # the library's own weights lie where everybody's do
    monkeypatch.setattr(files, "WEIGHTS_FOLDER", tmp_path)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18-f37072fd.pth")
    own = load_classifier("torchvision:resnet18", CPU)
    assert own.size == (224, 224) and own.names[0] == "tench"
    assert str(tmp_path / "resnet18-f37072fd.pth") in capsys.readouterr().out


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.fixture
def vit(tmp_path) -> tuple[Path, nn.Module]:
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    names = {0: "cat", 1: "dog", 2: "newt"}
    config = transformers.ViTConfig(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": 32, "patch_size": 8, "id2label": names, "label2id": {name: i for i, name in names.items()}},
    )
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit", network


def test_hugging_face_folders(vit):
    folder, network = vit
    classifier = load_classifier(f"hf:{folder}", CPU)
    assert_like(classifier, lambda x: network(x).logits, 32)
    assert classifier.names == ["cat", "dog", "newt"] and classifier.size == (32, 32)
    folder, _ = vit
    edit(folder / "config.json", auto_map={"AutoModelForImageClassification": "evil.Model"})
    assert "code of its own (auto_map)" in refusal(f"hf:{folder}")
    edit(folder / "config.json", auto_map={}, id2label={str(n): str(n) for n in range(5)})
    assert "2 weights are missing or misshapen (the first is classifier" in refusal(f"hf:{folder}")
    (folder / "preprocessor_config.json").unlink()
    edit(folder / "config.json", id2label={str(n): str(n) for n in range(3)})
    assert "does not say what it wants to see" in refusal(f"hf:{folder}")
    assert load_classifier(f"hf:{folder}", CPU, size=32, mean=0.5, std=0.5).num_outputs == 3
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "holds no .safetensors" in refusal(f"hf:{folder}")
    assert "config.json: cannot be read" in refusal("hf:google/vit")


@pytest.mark.parametrize(
    ("processor", "size", "white", "black"),
    [
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, 32, 1, -1),
        ({"size": {"shortest_edge": 32}, "do_normalize": False}, 32, 1, 0),
        ({"size": 32, "do_rescale": False, "do_normalize": False}, 32, 255, 0),
        ({"rescale_factor": 2 / 255, "rescale_offset": True, "do_normalize": False}, 32, 1, -1),
    ],
)
def test_hugging_faces_ways_of_describing_an_input(vit, processor, size, white, black):
    folder, network = vit
    edit(folder / "preprocessor_config.json", **processor)
    classifier = load_classifier(f"hf:{folder}", CPU)
    for x, seen in ((1.0, white), (-1.0, black)):
        expected = network(pixel_values=torch.full((1, 3, size, size), float(seen))).logits
        torch.testing.assert_close(classifier(torch.full((1, 3, 8, 8), x)), expected, rtol=1e-4, atol=1e-4)


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is an extra")
    pytest.importorskip("onnx2torch", reason="onnx2torch is an extra")
    network = small_net()
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 13]>
        net (float[n, 3, 16, 16] x) => (float[n, 5] logits) {
            a = Conv<kernel_shape = [3, 3], strides = [2, 2]>(x, w0, b0)
            b = BatchNormalization(a, w1, b1, m1, v1)
            c = Relu(b)
            d = GlobalAveragePool(c)
            e = Flatten(d)
            logits = Gemm<transB = 1>(e, w5, b5)
        }""")
    for name, value in network.state_dict().items():
        layer, _, kind = name.partition(".")
        own = {"weight": "w", "bias": "b", "running_mean": "m", "running_var": "v"}.get(kind, kind) + layer
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), own))
    onnx.save(model, tmp_path / "net.onnx")
    classifier = load_classifier(tmp_path / "net.onnx", CPU, mean=0.5, std=0.25)
    assert_like(classifier, network, 16, 0.5, 0.25)
    assert classifier.size == (16, 16)

    model.graph.node[2].op_type = "Multinomial"
    onnx.save(model, tmp_path / "net.onnx")
    assert "dynamo=False" in refusal(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"hello")
    assert "cannot be loaded (DecodeError" in refusal(tmp_path / "net.onnx")
    assert "no such file" in refusal(tmp_path / "none.onnx")


@pytest.fixture
def own_code(tmp_path) -> Path:
    (tmp_path / "layers_beside.py").write_text("OUTPUTS = 5\n")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "from layers_beside import OUTPUTS\n"
        "def build():\n"
        "    layers = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(4, OUTPUTS))\n"
        "def flat():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 2))\n"
        "def number():\n    return 3\n"
        "def spatial():\n    return nn.Conv2d(3, 4, 3)\n"
    )
    return tmp_path / "mine.py"


def test_ones_own_code(own_code, tmp_path, capsys):
    torch.save(nn.DataParallel(small_net()).state_dict(), tmp_path / "w.pth")
    spec = f"python:{own_code}:build@{tmp_path / 'w.pth'}"
    classifier = load_classifier(spec, CPU, value_range=(0, 255), mean=[1, 2, 3], std=[4, 5, 6])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{spec}: runs your own code" and "is set to eval mode" in lines[1]
    mean, std = (torch.tensor(v).view(3, 1, 1) / 255 for v in ([1, 2, 3], [4, 5, 6]))
    assert_like(classifier, small_net(), 20, mean, std, atol=1e-4)  # logits up to some tens here
    assert load_classifier(f"python:{own_code}:flat", CPU).num_outputs == 2


@pytest.mark.parametrize(
    ("ending", "options", "expected"),
    [
        (":number", {}, "gives int, expected a torch.nn.Module"),
        ("", {}, "expected python:FILE.py:FACTORY"),
        (":build@no.pth", {}, "no such file"),
        (":spatial", {}, "expected logits (N, K)"),
        (":flat", {"size": 32}, "cannot take images (1, 3, 32, 32)"),
        (":build", {"std": 0}, "std be above 0"),
        (":build", {"value_range": (1, 0)}, "range must rise"),
    ],
)
def test_ones_own_code_that_is_wrong(own_code, ending, options, expected):
    assert expected in refusal(f"python:{own_code}{ending}", **options)


def test_programs_are_refused_unless_trusted(tmp_path):
    network, x = small_net(), torch.zeros(2, 3, 16, 16)
    torch.jit.trace(network, x).save(tmp_path / "script.pt")
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=({0: batch},)), tmp_path / "export.pt2")
    for name, what in (("script.pt", "TorchScript"), ("export.pt2", "torch.export")):
        message = refusal(tmp_path / name)
        assert f"is a {what} archive, a program" in message and "--trust_classifier True" in message
        assert_like(load_classifier(tmp_path / name, CPU, trust=True, size=16), network, 16)


def test_resizing_reaches_every_pixel():
    """Without antialiasing most of a large image's pixels would have no gradient."""
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 1)), 4)
    x = rnd(0, 1, 3, 32, 32).requires_grad_()
    classifier(x).sum().backward()
    assert (x.grad != 0).all()
    # a constant image stays what it is, whatever the size
    assert torch.allclose(classifier(torch.full((1, 3, 9, 32), 0.25)), classifier(torch.full((1, 3, 4, 4), 0.25)))


X = rnd(0, 2, 3, 8, 8)
CLASSES, SMILE = SimpleNamespace(), SimpleNamespace(output=1)


def linear(*more: nn.Module, outputs: int = 3) -> nn.Module:
    return fill_(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, outputs), *more))


class Layer(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.forward = function


def company(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.batch_norm(x, None, None, training=True) if len(x) > 1 else x


BAD = {
    "no column": (lambda x: x.mean(dim=(1, 2, 3)), CLASSES, r"gives \(2,\).*expected logits \(N, K\)"),
    "a map": (nn.Conv2d(3, 2, 1), CLASSES, r"gives \(2, 2, 8, 8\)"),
    "a dict": (linear(Layer(lambda x: {"out": x})), CLASSES, "gives a dict"),
    "decisions": (lambda x: x.flatten(1).argmax(1, keepdim=True), CLASSES, "decisions instead of the logits"),
    "one output for classes": (linear(outputs=1), CLASSES, "no choice between classes"),
    "too few outputs": (linear(outputs=1), SMILE, "asks for output 1"),
    "other classes": (linear(), 10, "gives 3 logits, expected 10"),
    "another size": (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), CLASSES, "cannot take images.*--classifier_size"),
    "another size, by assertion": (lambda x: [][0], CLASSES, "cannot take images"),
    "no gradient": (linear(Layer(lambda x: x.detach() * 2)), CLASSES, "not differentiable.*ends at its layer 2"),
    "no gradient, no layers": (lambda x: x.detach().flatten(1), CLASSES, "no gradient of its logits reaches the image"),
    "not of the image": (lambda x: torch.ones(len(x), 3, requires_grad=True) * 2, CLASSES, "no gradient"),
    "zero gradient": (linear(Layer(torch.round)), CLASSES, "gradient is zero"),
    "gradient of a root at 0": (lambda x: (x.flatten(1)[:, :3] * 0).abs().sqrt(), CLASSES, "gradient is not finite"),
    "not finite": (lambda x: linear()(x) / 0, CLASSES, "not finite"),
    "depends on company": (linear(Layer(company)), CLASSES, "change with the rest of its batch"),
    "depends on chance": (lambda x: linear()(x + torch.randn_like(x)), CLASSES, "or by chance"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_classifier_that_cannot_be_explained(kind):
    classifier, decision, message = BAD[kind]
    with pytest.raises(InputError, match=message) as caught:
        check_classifier(classifier, X, decision, "mine")
    assert str(caught.value).startswith("mine: ") and "\n" not in str(caught.value)


def test_a_good_classifier_passes_and_a_module_comes_out_as_it_went_in(capsys):
    classifier = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), linear())
    classifier.train()
    classifier[0].eval()
    classifier[2][1].bias.requires_grad_(False)
    check_classifier(classifier, X, CLASSES, "mine")
    assert "mine: is in training mode; it is used in eval mode" in capsys.readouterr().out
    assert [m.training for m in (classifier, classifier[0], classifier[1])] == [True, False, True]
    assert [p.requires_grad for p in classifier.parameters()] == [True, True, True, False]
    with pytest.raises(KeyError), frozen(classifier):
        assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
        raise KeyError
    assert classifier.training and classifier[2][1].weight.requires_grad
    for decision in (CLASSES, SMILE, 3):
        check_classifier(linear(), X, decision)
        check_classifier(lambda x: linear()(x), X[:1], decision)  # any callable, one image
