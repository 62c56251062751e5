"""What makes two runs the same: every flag, file of weights and annotation that can change a result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dime.core.config import Accepted, Config
from dime.core.errors import InputError
from dime.core.files import located, read_yaml
from dime.core.results import ResultTree
from guided_diffusion.files import is_remote, open_file

Identity = dict[str, Any]
"""Name of a flag (or of what it stands for) -> its value, plain numbers and strings."""

WITHOUT_EFFECT = {field.name for field in dataclasses.fields(Accepted)}
HARMLESS = {
    *("output_path", "exp_name", "gpu", "chunk", "merge_and_eval"),
    *("overwrite", "allow_partial", "on_bad_image", "oracle_figures"),
    # paths of data and weights: their content counts; num_batches: the images chosen count
    *("data_dir", "model_path", "classifier_path", "perceptual_path", "oracle_path", "face_path", "num_batches"),
    # the labels, targets and names that they lead to count
    *("class_names", "classes", "trust_classifier"),
    # a preset stands in the flags that it sets, use_fp16 in precision; the others have no effect here
    *("preset", "use_fp16", "use_checkpoint", *WITHOUT_EFFECT),
}
"""Flags that may differ between a run and its continuation; any other is part of the identity."""

IMAGES = "images"
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
"""What runs of earlier versions did where they did not know a flag."""
SAID = {
    IMAGES: "the chosen images and labels (--data_dir, --num_batches, --target_label)",
    "device": "the kind of device (its random numbers are its own)",
}


def identity_of(
    flags: Mapping[str, Any], images: str, count: int, digests: Mapping[str, str], device: torch.device
) -> Identity:
    """The identity shared by all chunks of a run.

    images: a text that stands for the `count` chosen images and their labels. digests: flag -> `digest_of` its file.
    """
    identity = {
        **{name: value for name, value in flags.items() if name not in HARMLESS},
        **{name: f"sha256 {digest}" for name, digest in digests.items()},
        IMAGES: f"{count}, sha256 {hashlib.sha256(images.encode()).hexdigest()}",
        "device": device.type,
    }
    return json.loads(json.dumps(identity))  # as a file gives it back, and nothing shared with the flags


def digest_of(path: str | Path, network: nn.Module | None = None) -> str:
    """The SHA-256 of a local or remote file's content, in hexadecimal digits; where there is none, of a network's."""
    digest, path = hashlib.sha256(), located(path)
    if network is not None and not is_remote(path) and not Path(path).is_file():
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()
    with open_file(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def short_hash(identity: Identity) -> int:
    """48 bits of an identity: a plain number, as everything in a summary."""
    text = json.dumps(identity, sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def require_same_run(tree: ResultTree, identity: Identity) -> None:
    """Raise InputError, naming what differs, if the experiment's folder holds results of another run."""
    configs = tree.reports("config.yaml")
    if not configs and tree.holds_images():
        raise InputError(
            f"{tree.results}: holds results of an unknown run (no config.yaml); choose another --exp_name, or start "
            "afresh with --overwrite True"
        )
    for path in configs:
        difference = difference_between(identity, read_identity(path))
        if difference:
            raise InputError(
                f"{path}: made by another run: {difference}; repeat its command to continue it, choose another "
                "--exp_name, or start afresh with --overwrite True"
            )


def read_identity(config: Path) -> Identity:
    """The identity that stands in a config.yaml, empty if it has none. Raises InputError for a damaged file."""
    try:
        content = read_yaml(config)
    except ValueError as error:
        raise InputError(f"{config}: not a readable configuration ({error})") from None
    identity = content.get("identity") if isinstance(content, dict) else None
    return identity if isinstance(identity, dict) else {}


def difference_between(ours: Identity, theirs: Identity) -> str:
    """The first thing in which two identities differ, with both values, in words; '' when they are the same."""
    if not theirs:
        return "an earlier version, which did not say with what"
    for name in sorted((ours.keys() | theirs.keys()) - WITHOUT_EFFECT):
        mine, other = (side.get(name, DEFAULTS.get(name, "absent")) for side in (ours, theirs))
        if mine != other:
            return f"{SAID.get(name, f'--{name}')} is {_short(mine)} here, and was {_short(other)} there"
    return ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:76]}…"
