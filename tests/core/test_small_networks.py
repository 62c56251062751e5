"""Small networks in the places of large ones, and checkpoints as .safetensors in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dime.core.checkpoints import load_unet
from dime.core.errors import InputError
from dime.core.networks.classifiers import load_classifier
from dime.core.networks.features import load_oracle, load_perceptual
from dime.core.networks.files import read_checkpoint, write_safetensors
from dime.core.training.classifier_files import to_file
from dime.models.small_cnn import SmallCNN
from guided_diffusion.checkpoint_util import save, save_state_dict
from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from tests.helpers import BASE, fill_, rnd

CPU = torch.device("cpu")
FLAGS = {**model_and_diffusion_defaults(), **BASE}
HALF_PRECISION = 2.0**-11
"""Rounding to float16, relative, for weights above 6e-5; below, 2^-25 absolute."""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A small CNN that decides on Smiling and Young."""
    path = tmp_path_factory.mktemp("small") / "classifier.pth"
    save(path, to_file(fill_(SmallCNN(2, (8, 16))).eval(), ["Smiling", "Young"]))
    return path


def test_a_unet_keeps_weights_and_configuration(tmp_path):
    model, _ = create_model_and_diffusion(**FLAGS)
    save_state_dict(tmp_path / "m.pt", fill_(model).state_dict(), model.config)
    write_safetensors(tmp_path / "m.safetensors", read_checkpoint(tmp_path / "m.pt"))
    assert (tmp_path / "m.safetensors").stat().st_size < 0.55 * (tmp_path / "m.pt").stat().st_size
    whole, half = (load_unet(tmp_path / name, FLAGS, CPU) for name in ("m.pt", "m.safetensors"))
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=HALF_PRECISION, atol=2.0**-25)
    with pytest.raises(InputError, match="stored configuration contradicts the flags: --num_heads"):
        load_unet(tmp_path / "m.safetensors", FLAGS | {"num_heads": 2 * FLAGS["num_heads"]}, CPU)


def test_the_state_of_a_training_is_no_network(tmp_path):
    content = {"network": {"weight": torch.ones(2)}, "optimizer": {"state": {0: torch.ones(2)}, "param_groups": []}}
    with pytest.raises(InputError, match="'optimizer' holds more than tensors"):
        write_safetensors(tmp_path / "t.safetensors", content)
    assert not list(tmp_path.iterdir())


def test_tensors_beside_tables_come_back(tmp_path):
    content = {"table": {"weight": torch.ones(2)}, "alone": torch.zeros(3), "epoch": 4}
    write_safetensors(tmp_path / "t.safetensors", content, torch.float32)
    again = read_checkpoint(tmp_path / "t.safetensors")
    assert again.keys() == content.keys() and again["epoch"] == 4
    assert torch.equal(again["alone"], content["alone"])
    assert torch.equal(again["table"]["weight"], content["table"]["weight"])


def test_a_classifier_keeps_its_tables_and_names(tmp_path, small):
    write_safetensors(tmp_path / "c.safetensors", read_checkpoint(small), torch.float32)
    content, again = read_checkpoint(small), read_checkpoint(tmp_path / "c.safetensors")
    assert content.keys() == again.keys()
    for part in ("feat_extract", "classifier"):
        assert all(torch.equal(content[part][name], again[part][name]) for name in content[part])
    classifier = load_classifier(tmp_path / "c.safetensors", CPU)
    assert classifier.attributes == ["Smiling", "Young"]


def test_metadata_of_other_programs_does_no_harm(tmp_path, small):
    from safetensors.torch import save_file

    tables = read_checkpoint(small)
    flat = {f"{part}.{k}": v for part in ("feat_extract", "classifier") for k, v in tables[part].items()}
    for number, metadata in enumerate([{"format": "pt"}, {"tables": '"none"'}, {"attributes": "[" * 100_000}]):
        save_file(flat, tmp_path / f"{number}.safetensors", metadata)
        assert load_classifier(tmp_path / f"{number}.safetensors", CPU).num_outputs == 2


def test_a_small_oracle_gives_features_and_logits(small):
    oracle, classifier = load_oracle(small, CPU), load_classifier(small, CPU)
    x = rnd(1, 3, 3, 32, 32)
    features, logits = oracle(x)
    assert features.shape == (3, 16)
    assert torch.equal(logits, classifier(x))
    assert not oracle.training and not any(p.requires_grad for p in oracle.parameters())


def test_a_small_perceptual_network_has_its_levels_as_layers(small):
    network, whole = load_perceptual(1, CPU, small), load_classifier(small, CPU)
    x = 2 * rnd(1, 3, 3, 32, 32)
    assert torch.equal(network(x), whole.feat_extract[0](x.clamp(-1, 1)))
    assert load_perceptual(2, CPU, small)(x).shape == (3, 16, 8, 8)
    with pytest.raises(InputError, match="levels 1 to 2, not 3"):
        load_perceptual(3, CPU, small)


def test_a_perceptual_network_of_another_kind_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="expected a small CNN"):
        load_perceptual(1, CPU, tmp_path / "x.pth")
