"""Write a small diffusion model and a classifier with random weights, the same every time.

    python tools/untrained_weights.py FOLDER

They let the main job run from end to end where no trained weights are at hand; nothing they say about an image means
anything.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from core import cli
from core.errors import InputError
from guided_diffusion.checkpoint_util import save, save_state_dict
from guided_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from models.classifiers import DenseNetClassifier

FLAGS = {
    "image_size": 64,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2,2",
    "learn_sigma": True,
    "diffusion_steps": 500,
    "resblock_updown": True,
}


def main() -> None:
    """Write ddpm.pt and classifier.pth."""
    if len(sys.argv) != 2:
        raise InputError("give one folder, where ddpm.pt and classifier.pth are written")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **FLAGS})
    save_state_dict(folder / "ddpm.pt", model.state_dict(), model.config)
    classifier = sensitive_classifier()
    parts = {
        "feat_extract": classifier.feat_extract.state_dict(),
        "classifier": classifier.classifier.state_dict(),
    }
    save(folder / "classifier.pth", parts)


@torch.no_grad()
def sensitive_classifier() -> DenseNetClassifier:
    """A random classifier whose decisions differ between images and move with them: it is undecided about grey."""
    classifier = DenseNetClassifier().eval()
    classifier.classifier.weight.normal_()
    classifier.classifier.bias.sub_(classifier(torch.zeros(1, 3, FLAGS["image_size"], FLAGS["image_size"]))[0])
    return classifier


if __name__ == "__main__":
    cli.run(main)
