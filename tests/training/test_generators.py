"""DDPM, GAN and VAE: their losses, equal sizes, trainings that go on, and the script that compares them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from dime.core.images import from_image
from dime.core.training.classifier import to_file
from dime.core.training.generators import GENERATORS, GeneratorTraining, build, parameters
from dime.models.classifiers import SmallCNN
from dime.models.generators import GAN, LATENT, VAE, discretized_logistic
from tests.helpers import fill_, rnd
from tests.training.small import make_folders_of_classes
from tests.worlds import refusal, run_script, succeeded

LEVELS = torch.arange(256) / 127.5 - 1


def bars() -> np.ndarray:
    """A bright bar in each of sixteen columns, uint8 (16, 16, 16, 1)."""
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
        gradients[part] = {
            name: p.grad for name, p in network.named_parameters() if p.grad is not None and p.grad.any()
        }
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
        torch.save(
            to_file(fill_(SmallCNN(2 + (name == "b"), (8, 8), channels=1)), list("xyz")), tmp_path / f"{name}.pth"
        )
        run = succeeded(run_script("compare-generators", **flags, features=tmp_path / f"{name}.pth"))
        with (out / "comparison.csv").open(newline="") as file:
            rows = {row.pop("figure"): row for row in csv.DictReader(file)}
        names = [
            f"{figure} (classifier {tmp_path / name}.pth)" for figure in ("IS", "FID", "precision", "recall", "KID")
        ]
        assert {*names, "bits per dimension", "seconds to train", "seconds per 1000 samples"} <= rows.keys()
        assert list(rows[names[0]]) == ["DDPM", "DDPM, 50 steps of DDIM", "GAN", "VAE", "training images"]
        bits = rows["bits per dimension"]
        assert bits["GAN"] == "none" and 0 < float(bits["DDPM"]) < 20 and 0 < float(bits["VAE"]) < 20
        assert run.out.endswith((out / "comparison.md").read_text())
        times.append({path: path.stat().st_mtime_ns for path in out.rglob("samples_*.npz")})
    assert len(times[0]) == 4 and times[0] == times[1]
    assert (out / "samples.png").exists() and (out / "DDPM" / "terms.png").exists()
    assert json.loads((out / "VAE" / "figures.json").read_text())["VAE"]["updates"] == 3


@pytest.mark.parametrize(
    ("flags", "said"), [({"image_size": 24}, "a power of two"), ({"image_size": 20}, "multiples of 8")]
)
def test_sizes_that_do_not_fit_are_refused(flags, said, tmp_path):
    torch.save(to_file(fill_(SmallCNN(2, (8, 8), channels=1)), ["x", "y"]), tmp_path / "classifier.pth")
    flags |= {
        "features": tmp_path / "classifier.pth",
        "dataset": "folder",
        "output_path": tmp_path,
        "generators": "GAN",
    }
    data = make_folders_of_classes(tmp_path / "data")
    assert said in refusal(run_script("compare-generators", data_dir=data, **flags))
