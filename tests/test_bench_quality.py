"""The quality bench on a handful of drawn faces and untrained networks: what it counts, keeps and refuses."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench import quality
from dime.core.datasets import ATTRIBUTES, open_dataset
from dime.core.drawn_faces.folder import Plan, write_folder
from dime.core.errors import InputError
from dime.core.training.classifier_files import to_file
from dime.models.small_cnn import SmallCNN
from guided_diffusion.checkpoint_util import save_state_dict
from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from tests.helpers import fill_

UNET = {
    "image_size": 16,
    "num_channels": 32,
    "channel_mult": "1,1",
    "num_res_blocks": 1,
    "attention_resolutions": "8",
    "learn_sigma": True,
    "diffusion_steps": 100,
    "timestep_respacing": "10",
}
TAU, N = 4, 3


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    write_folder(root / "data", Plan(num_train=2, num_val=N))
    unet, _ = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **UNET})
    save_state_dict(root / "unet.pt", fill_(unet).state_dict())
    torch.save(to_file(fill_(SmallCNN(widths=(8, 8))), ATTRIBUTES), root / "net.pth")
    networks = {"model_path": "unet.pt", "classifier_path": "net.pth", "oracle_path": "net.pth", "data_dir": "data"}
    job = {"start_step": TAU, "query_label": "Smiling", "batch_size": 2, "classifier_scales": "0,0", "gpu": "cpu"}
    places = {name: root / path for name, path in networks.items()}
    return [text for name, value in {**UNET, **job, **places}.items() for text in (f"--{name}", str(value))]


def bench(monkeypatch, output, flags, *settings: str, num_images: int = N) -> dict:
    arguments = ["--output", str(output), "--num_images", str(num_images), "--settings", *settings]
    monkeypatch.setattr(sys, "argv", ["quality.py", *arguments, "--", *flags])
    quality.main()
    return json.loads(output.read_text())


def test_every_setting_is_measured_once(flags, tmp_path, monkeypatch, capsys):
    output = tmp_path / "quality.json"
    first = bench(monkeypatch, output, flags, "fast", "other=--method naive --l1_loss 3")
    for figures in first["settings"].values():
        scales = 2 - figures["flipped"]  # nothing but the second scale is saved where the first one flips
        assert TAU <= figures["evaluations"] <= TAU * 2 and figures["evaluations"] >= TAU * scales - 1e-9
        assert figures["oracle"] == figures["flipped"], "the oracle is the classifier here"
        assert 0 < figures["change"] < 1 and figures["seconds"] > 0
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "| fast |" in capsys.readouterr().out
    second = bench(monkeypatch, output, flags, "fast", "exact")
    assert second["settings"]["fast"] == first["settings"]["fast"]
    assert second["settings"].keys() == {"fast", "other", "exact"}
    with pytest.raises(InputError, match="images 3, not 2"):
        bench(monkeypatch, output, flags, "fast", num_images=2)


def test_the_truth_is_the_other_drawing(flags):
    data = flags[flags.index("--data_dir") + 1]
    dataset = open_dataset("CelebA", data, 16, use_train=False)
    for id, truth in quality.true_counterfactuals(dataset, range(N), ATTRIBUTES.index("Smiling"), 16):
        x = dataset[id].image
        assert 0 < truth.region.sum() < 16 * 16 / 2
        assert quality.distance(x, truth.image) < 0.1
        jpeg = 0.03  # the folder's pictures are JPEG files, the drawn truth is not
        assert quality.distance(x, truth.image, ~truth.region) < jpeg < quality.distance(x, -truth.image)
        assert quality.distance(x, truth.image, truth.region) > quality.distance(x, truth.image, ~truth.region)


@pytest.mark.parametrize("text", ["unknown", ""])
def test_unknown_settings_are_refused(text):
    with pytest.raises(InputError, match="known are exact"):
        quality.chosen(text)


def test_settings_of_ones_own():
    assert quality.chosen("fast") == ("fast", "--method dime --inner_steps 1")
    assert quality.chosen("mine=--l1_loss 1") == ("mine", "--l1_loss 1")
    assert quality.chosen("K=9 mine=--l1_loss 1 --l2_loss 2") == ("K=9 mine", "--l1_loss 1 --l2_loss 2")
