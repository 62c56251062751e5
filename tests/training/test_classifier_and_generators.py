"""celeba-train-classifier.py and compare-generators.py: what they learn, write, resume and refuse."""

import json
import pickle

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from dime.core.images import from_image
from dime.core.networks.classifiers import load_classifier
from dime.core.networks.features import load_oracle
from dime.core.training.classifier import positive_weights, to_file
from dime.core.training.generators import GENERATORS, GeneratorTraining, build, parameters
from dime.models.classifiers import DenseNetClassifier, SmallCNN
from dime.models.generators import GAN, LATENT, VAE, discretized_logistic
from dime.models.resnet import Oracle, caffe_resnet50
from guided_diffusion import checkpoint_util
from tests.helpers import CPU, csv_rows, fill_, rnd
from tests.training.small import make_folders_of_classes
from tests.worlds import Run, refusal, run_script, succeeded


def train(data, out, **flags) -> Run:
    common = {"arch": "small", "image_size": 16, "batch_size": 10, "epochs": 2, "num_workers": 0, "log_interval": 1}
    return run_script("celeba-train-classifier", **{"data_dir": data, "output_path": out, **common, **flags})


def test_what_a_training_leaves(data, tmp_path):
    succeeded(train(data, tmp_path, attributes="Young,Smiling", pos_weight=True))
    assert checkpoint_util.load(tmp_path / "classifier.pth")["attributes"] == ["Young", "Smiling"]
    network = load_classifier(tmp_path / "classifier.pth", CPU)
    assert network(rnd(0, 1, 3, 16, 16)).shape == (1, 2)
    assert [row["attribute"] for row in csv_rows(tmp_path / "validation.csv")] == ["Young", "Smiling"]
    aucs = [row["auc"] for row in csv_rows(tmp_path / "progress.csv") if row["auc"]]
    assert [float(auc) >= 0 for auc in aucs] == [True, True]  # one for each pass


def test_resuming_ends_in_the_same_bytes(data, tmp_path):
    common = {"lr": 1e-3, "attributes": "Smiling,Male", "eval_interval": 2}
    for folder, steps in (("straight", 5), ("halves", 3), ("halves", 5)):
        succeeded(train(data, tmp_path / folder, **common, max_steps=steps))
    straight, halves = (checkpoint_util.load(tmp_path / name / "training.pt") for name in ("straight", "halves"))
    assert straight["updates"] == halves["updates"] == 5
    for name, value in straight["network"].items():
        assert torch.equal(value, halves["network"][name]), name


def test_classes_of_a_folder_of_grey_images(tmp_path):
    folder, out = make_folders_of_classes(tmp_path / "data"), tmp_path / "out"
    flags = {"dataset": "folder", "image_channels": 1, "batch_size": 8}
    learning = flags | {"decision": "multiclass", "epochs": 10, "lr": 1e-2}
    # brightness is easily told
    assert "accuracy 1.0000, AUC 1.0000" in succeeded(train(folder, out, **learning)).out
    network = load_classifier(out / "classifier.pth", CPU)
    assert network.names == ["bright", "dark"]
    with torch.no_grad():
        assert network(torch.tensor([0.6, -0.7]).view(2, 1, 1, 1).expand(2, 1, 16, 16)).argmax(1).tolist() == [0, 1]
    for wrong, message in (
        ({"decision": "binary"}, "the images have classes; give --decision multiclass"),
        ({"data_dir": folder / "train"}, "expected two folders in it, train and val"),
        ({"attributes": "dark"}, "not with --decision multiclass"),
        ({"arch": "densenet"}, "--arch densenet sees colour"),
    ):
        assert message in refusal(train(**{"data": folder, "out": tmp_path / "none", **learning, **wrong}))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(data, tmp_path, precision):
    succeeded(train(data, tmp_path, precision=precision, max_steps=2, grad_clip=1.0))
    assert checkpoint_util.load(tmp_path / "training.pt")["network"]["classifier.weight"].dtype == torch.float32


def test_files_load_as_the_networks_that_they_are_of(tmp_path):
    for network, load in ((DenseNetClassifier(3), load_classifier), (Oracle(), load_oracle)):
        checkpoint_util.save(tmp_path / "c.pth", to_file(fill_(network), ["any"] * network.num_outputs))
        loaded, own = load(tmp_path / "c.pth", CPU).state_dict(), network.state_dict()
        assert list(loaded) == list(own) and all(torch.equal(value, own[name]) for name, value in loaded.items())
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert positive_weights(labels).tolist() == pytest.approx([3.0, 4.0, 1 / 3])


def test_the_oracle_starts_from_vggface2(data, tmp_path):
    weights = {name: value.numpy() for name, value in fill_(caffe_resnet50()).state_dict().items()}
    (tmp_path / "resnet50_ft_weight.pkl").write_bytes(pickle.dumps(weights))
    flags = {"arch": "oracle", "weights-path": tmp_path / "resnet50_ft_weight.pkl", "lr": 1e-12, "max_steps": 1}
    succeeded(train(data, tmp_path / "out", **flags, batch_size=2, attributes="Smiling"))
    first = checkpoint_util.load(tmp_path / "out" / "oracle.pth")["feat_extract"]["conv1_7x7_s2.weight"]
    torch.testing.assert_close(first, torch.from_numpy(weights["conv1.weight"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"attributes": "Smiling,Happy"}, "no attribute is called 'Happy'"),
        ({"attributes": "Smiling,Smiling"}, "an attribute is named twice"),
        ({"batch_size": 31}, "batch_size 31: the data set has only 30 image"),
        ({"arch": "oracle", "weights-path": "/nowhere/face.pkl"}, "/nowhere/face.pkl: no such file"),
    ],
)
def test_bad_flags(data, tmp_path, flags, message):
    assert message in refusal(train(data, tmp_path, **flags))


def test_another_network_or_other_attributes_are_refused_and_a_loss_that_is_no_number_stops(data, tmp_path):
    succeeded(train(data, tmp_path, max_steps=1, attributes="Smiling"))
    for flags, message in (
        ({"attributes": "Young"}, "trained on other attributes"),
        ({"attributes": "Smiling", "arch": "densenet", "image_size": 32}, "another network than the flags describe"),
        ({"attributes": "Smiling", "lr": 1e37}, "not finite|is not a finite number"),
    ):
        line = refusal(train(data, tmp_path, max_steps=9, **flags))
        assert any(words in line for words in message.split("|"))
    state = checkpoint_util.load(tmp_path / "training.pt")["network"]
    assert all(value.isfinite().all() for value in state.values())


LEVELS = torch.arange(256) / 127.5 - 1


def bars() -> np.ndarray:
    return (torch.eye(16)[:, None, :, None] * 255).expand(16, 16, 16, 1).to(torch.uint8).numpy()


def training(name: str, folder, last_update: int) -> GeneratorTraining:
    settings = {"batch_size": 16, "precision": "fp32", "log_interval": 1000, "save_interval": 1000}
    torch.manual_seed(0)
    network = build(name, 16, 1, width=8)
    return GeneratorTraining(network, bars(), folder, seconds=1e6, last_update=last_update, **settings)


@pytest.mark.parametrize(("name", "part"), [("DDPM", "loss"), ("GAN", "discriminator"), ("VAE", "loss")])
def test_losses_fall(name, part, tmp_path):
    """Of a GAN's two losses the discriminator's does at first: nothing is as easily told from bars as early samples."""
    trained, images = training(name, tmp_path, last_update=60), from_image(bars()).repeat(8, 1, 1, 1)
    before = trained.model.losses(images)[part].mean()
    trained.run_loop()
    assert trained.model.losses(images)[part].mean() < 0.8 * before


@pytest.mark.parametrize("name", GENERATORS)
def test_a_training_goes_on_to_the_same_weights(name, tmp_path):
    for folder in ("whole", "halves"):
        (tmp_path / folder).mkdir()
    whole, half = training(name, tmp_path / "whole", 6), training(name, tmp_path / "halves", 3)
    for each in (whole, half):
        torch.manual_seed(1)
        each.run_loop()
    rest = training(name, tmp_path / "halves", 6)
    assert rest.updates == 3 and 0 < rest.spent < whole.spent * 10 and len(rest.pictures) == 4
    rest.run_loop()
    for ours, theirs in ((rest.model, whole.model), (rest.average, whole.average)):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    with pytest.raises(ValueError, match=r"training\.pt: does not hold what this training saves"):
        training("VAE" if name == "GAN" else "GAN", tmp_path / "halves", 6)


@pytest.mark.parametrize(("size", "channels", "width"), [(16, 1, 8), (32, 1, 32), (64, 3, 32)])
def test_parameters_are_equal_within_a_tenth(size, channels, width):
    ddpm, gan, vae = (parameters(build(name, size, channels, width)) for name in GENERATORS)
    assert abs(gan - ddpm) <= 0.1 * ddpm and abs(vae - ddpm) <= 0.1 * ddpm


def test_one_backward_pass_gives_both_players_their_own_gradients():
    network = fill_(GAN(8, 1, 4))  # eval mode: the norms' vectors stay as they are
    x, gradients = rnd(0, 5, 1, 8, 8), {}
    for part in ("loss", "generator", "discriminator"):
        torch.manual_seed(0)
        network.zero_grad()
        network.losses(x)[part].mean().backward()
        told = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        gradients[part] = {name: gradient for name, gradient in told.items() if gradient.any()}
    assert {name.partition(".")[0] for name in gradients["generator"]} == {"generator"}
    assert {name.partition(".")[0] for name in gradients["discriminator"]} == {"discriminator"}
    for name, gradient in (gradients["generator"] | gradients["discriminator"]).items():
        assert torch.equal(gradient, gradients["loss"][name])


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, -2.0), (-1.3, -4.0), (0.9, 0.5), (0.3, -7.0)])
def test_pixels_have_a_distribution_over_the_grey_levels(mean, log_scale):
    means, scales = torch.full((256,), mean, requires_grad=True), torch.full((256,), log_scale)
    log_p = discretized_logistic(LEVELS, means, scales)
    assert log_p.detach().double().exp().sum().item() == pytest.approx(1, abs=1e-4)  # float32
    log_p.sum().backward()
    assert log_p.isfinite().all() and means.grad.isfinite().all()  # far from the mean, too


def test_the_bound_of_a_vae_and_what_has_collapsed():
    network, x = fill_(VAE(8, 1, 4)), rnd(0, 6, 1, 8, 8).clamp(-1, 1)
    with torch.no_grad():
        mean, log_variance = network.encoder(x).chunk(2, dim=1)
        losses = network.losses(x)
    nats = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(losses["kl"] * 64 * torch.tensor(2.0).log(), nats, rtol=1e-4)
    assert torch.allclose(losses["loss"], losses["kl"] + losses["reconstruction"])
    with torch.no_grad():
        network.encoder[1].weight[5:LATENT] = 0  # these say nothing of the image
    assert 0 < network.active_units(x) <= 5


def test_the_comparison(tmp_path):
    """One table, of which other features make another without any training or drawing."""
    data, out = make_folders_of_classes(tmp_path / "data"), tmp_path / "out"
    flags = {"data_dir": data, "dataset": "folder", "output_path": out, "image_size": 16, "width": 8, "max_steps": 3}
    flags, times = flags | {"batch_size": 4, "num_samples": 16}, []
    for name in "ab":
        network = fill_(SmallCNN(2 + (name == "b"), (8, 8), channels=1))
        torch.save(to_file(network, list("xyz")), tmp_path / f"{name}.pth")
        run = succeeded(run_script("compare-generators", **flags, features=tmp_path / f"{name}.pth"))
        rows = {row.pop("figure"): row for row in csv_rows(out / "comparison.csv")}
        figures = ("IS", "FID", "precision", "recall", "KID")
        names = [f"{figure} (classifier {tmp_path / name}.pth)" for figure in figures]
        assert {*names, "bits per dimension", "seconds to train", "seconds per 1000 samples"} <= rows.keys()
        assert list(rows[names[0]]) == ["DDPM", "DDPM, 50 steps of DDIM", "GAN", "VAE", "training images"]
        bits = rows["bits per dimension"]
        assert bits["GAN"] == "none" and 0 < float(bits["DDPM"]) < 20 and 0 < float(bits["VAE"]) < 20
        assert run.out.endswith((out / "comparison.md").read_text())
        times.append({path: path.stat().st_mtime_ns for path in out.rglob("samples_*.npz")})
    assert len(times[0]) == 4 and times[0] == times[1]
    assert (out / "samples.png").exists() and (out / "DDPM" / "terms.png").exists()
    assert json.loads((out / "VAE" / "figures.json").read_text())["VAE"]["updates"] == 3


@pytest.mark.parametrize(("name", "size", "said"), [("GAN", 24, "a power of two"), ("DDPM", 20, "multiples of 8")])
def test_sizes_that_do_not_fit_are_refused(name, size, said):
    with pytest.raises(ValueError, match=said):
        build(name, size, 1, width=8)
