"""What a counterfactual cost: evaluations of the diffusion model, and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn

from dime.core.errors import InputError
from dime.core.files import read_yaml
from dime.core.methods import METHODS, Settings
from dime.core.metrics.measurement import Measurement
from dime.core.results import ResultTree
from dime.core.run_config import configurations
from dime.core.sampler import Denoiser
from dime.core.summary import ImageRecord
from dime.core.truth.rows import Row
from guided_diffusion.script_util import create_diffusion

EVALUATIONS = "evaluations per image"
SECONDS = "seconds per image"


def evaluations(flags: Mapping[str, Any], attempts: int = 1) -> int:
    """How often a method evaluates the U-Net in so many attempts: counted, on a network that does nothing.

    flags: of main.py; those of the diffusion process, the method and its settings.
    """
    network, x = _Counter(2 if flags["learn_sigma"] else 1), torch.zeros(1, 3, 8, 8)
    settings = Settings(**{each.name: flags[each.name] for each in fields(Settings) if each.name in flags})
    method, denoiser = METHODS[flags["method"]](settings), Denoiser(network, create_diffusion(flags))
    inversion = method.invert(denoiser, x, x, torch.zeros)
    for _ in range(attempts):
        method(denoiser, x, x, _NoPull(), noise=lambda i: torch.zeros, inversion=inversion)
    return network.count


class _Counter(nn.Module):
    """Predicts zero, `outputs` numbers for each that comes in."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs, self.count = outputs, 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x.new_zeros(len(x), self.outputs * x.shape[1], *x.shape[2:])


class _NoPull:
    """Gradients that are zero (core.sampler.Pull)."""

    def class_gradient(self, x_t: torch.Tensor, wrt: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(x_t)

    def perceptual_gradient(self, x_t: torch.Tensor) -> float:
        return 0.0

    distance_gradient = perceptual_gradient


def evaluations_spent(trees: Sequence[ResultTree]) -> Row:
    """The row of evaluations per image, all scales tried together. Raises InputError where a run does not say them."""
    spent = {}
    for tree in trees:
        flags = next(iter(configurations(tree)), {})
        try:
            scales = np.float32(flags["classifier_scales"]).tolist()
            after = [evaluations(flags, attempts) for attempts in range(1, len(scales) + 1)]
            for pair in tree.pairs():
                record = ImageRecord.from_text(pair.id, pair.info.read_text())
                spent[pair.info] = after[scales.index(record.scale)]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{tree.results}: its files do not say which scales were tried ({error})") from None
    return Row(EVALUATIONS, lambda c: np.array([spent[case.pair.info] for case in c.each]), among="all")


def seconds_spent(trees: Sequence[ResultTree]) -> Measurement | None:
    """Seconds per image, where the summary of every run says how many it took in all."""
    try:
        summaries = [read_yaml(tree.report("summary.yaml")) for tree in trees]
        images, seconds = (sum(summary[name] for summary in summaries) for name in ("n", "seconds"))
        return Measurement(SECONDS, seconds / images, images)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
